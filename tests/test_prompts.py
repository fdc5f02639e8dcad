"""The caption templates are the published ones, in their order, duplicates included."""
import ast
import hashlib
import json
from pathlib import Path

import pytest

from ldm import prompts
from tests.golden.case import oracle_file

HOMES = {
    "personalized.imagenet_templates_small": "imagenet_templates_small",
    "personalized.imagenet_templates_smallest": "imagenet_templates_smallest",
    "personalized.imagenet_dual_templates_small": "imagenet_dual_templates_small",
    "personalized.per_img_token_list": "per_img_token_list",
    "personalized_style.imagenet_templates_small": "style_templates_small",
    "personalized_style.imagenet_dual_templates_small": "style_dual_templates_small",
    "personalized_style.per_img_token_list": "per_img_token_list",
}
# SHA-256 of the list joined by newlines, so that the check also holds where the recorded facts are not at hand.
SHA256 = {
    "imagenet_templates_small": "9492b607526eaaaefe38c5f4dabd0f5ca492456e6e8437ff1870590754628d7a",
    "imagenet_templates_smallest": "a49db5fdb0eb48888b22addd1e83eb8336e2f5dd2a5f47e7fba06eccef851a98",
    "imagenet_dual_templates_small": "b464a5e799ee76fc0e71a609768cb8d49cb698fd881d58aa9a05c9493f1d238a",
    "per_img_token_list": "25f6baf7dbab8e3cd241495fbee684efa230c0fb26f96be22760a25a994454f3",
    "style_templates_small": "e7ec2b1750c5ab55d7abc8afd59dba90ef334f8f48b7b1bf720c5ff8a9438749",
    "style_dual_templates_small": "34cb854112a217653162b1e6c5210a9bfce4a9b60de78e833ef681466be0053a",
}


@pytest.mark.parametrize("name", SHA256)
def test_each_list_has_its_published_hash(name):
    assert hashlib.sha256("\n".join(getattr(prompts, name)).encode()).hexdigest() == SHA256[name]


def test_the_lists_equal_the_recorded_ones():
    recorded = json.loads(oracle_file("facts_caption_templates.json").read_text())
    assert {key: facts["items"] for key, facts in recorded.items()} == {key: getattr(prompts, name) for key, name in HOMES.items()}


def test_the_file_is_readable_by_python_3_8():
    ast.parse(Path(prompts.__file__).read_text(), feature_version=(3, 8))
