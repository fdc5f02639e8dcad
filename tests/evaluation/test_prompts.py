"""Prompt files: what is read, and what each prompt asks for."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldm.evaluation.prompts import kind_of, read_prompts
from ldm.prompts import imagenet_templates_small
from tests.golden.case import REPOSITORY

SHIPPED = REPOSITORY / "assets" / "characters" / "prompts"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("*", "concept"), ("a photo of a *", "concept"), ("* wearing a red hat", "edit"), ("a character", "class"), ("two characters", "unlike"),
        ("a red house", "unlike"), ("a character beside a *", "edit"), ("A Character, at night", "class"), ("", "unlike"),
    ],
)  # fmt: skip
def test_kind_is_told_by_the_words(text, kind):
    assert kind_of(text, placeholder="*", class_word="character") == kind


def test_a_placeholder_of_letters_is_a_word_and_no_part_of_one():
    assert kind_of("a photo of a sks", placeholder="sks", class_word=None) == "concept"
    assert kind_of("a photo of asks", placeholder="sks", class_word="dog") == "unlike"


def test_remarks_blank_lines_and_repeats_are_left_out(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# remark\r\na *\r\n\r\n  a house \r\na *\r\n".encode())
    assert [tuple(prompt) for prompt in read_prompts(path)] == [("a *", "concept"), ("a house", "unlike")]


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe\x00"])
def test_a_file_without_prompts_is_refused_by_name(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_prompts(path)


def test_a_missing_file_is_refused_by_name():
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        read_prompts(Path("nowhere.txt"))


def test_no_shipped_heldout_prompt_is_one_that_a_regulariser_sees():
    """Other nouns, and sentence shapes that are no training template, whatever the noun."""
    prompts = [prompt.text for prompt in read_prompts(SHIPPED / "heldout.txt")]
    shapes = [re.compile(re.escape(template).replace(re.escape("{}"), ".+") + "$") for template in imagenet_templates_small]
    assert len(prompts) >= 12
    assert not [prompt for prompt in prompts if "character" in prompt or "*" in prompt]
    assert not [prompt for prompt in prompts if any(shape.match(prompt) for shape in shapes)]


def test_shipped_prompts_are_of_the_kinds_that_they_are_for():
    assert {prompt.kind for prompt in read_prompts(SHIPPED / "class.txt")} == {"class"}
    assert {prompt.kind for prompt in read_prompts(SHIPPED / "heldout.txt")} == {"unlike"}
    assert {prompt.kind for prompt in read_prompts(SHIPPED / "demo.txt")} == {"concept", "class", "edit", "unlike"}
