"""The yaml files that we ship: content as recorded, floats that are floats, targets that exist."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ldm.util import get_obj_from_str
from tests.golden.case import ORACLE, REPOSITORY

RECORD = json.loads((Path(__file__).parent / "recorded" / "configs.json").read_text())
SHIPPED = sorted(str(path.relative_to(REPOSITORY)) for folder in ("configs", "models") for path in (REPOSITORY / folder).rglob("*.yaml"))

# Loaders of data sets that are not part of this project, as their yaml files say.
ABSENT_DATA = ("imagenet", "lsun", "faceshq", "openimages", "landscapes", "previews")
# Needs packages for augmentation that nothing else here does.
FOREIGN_DATA = ("taming.data.faceshq.",)


def same(recorded: Any, here: Any, where: str = "") -> None:
    """Equal in types, values and order of keys: 1 is not 1.0 and not true."""
    assert type(recorded) is type(here), f"{where}: {recorded!r} became {here!r}"
    if isinstance(recorded, dict):
        assert list(recorded) == list(here), where
        for key, value in recorded.items():
            same(value, here[key], f"{where}.{key}")
    elif isinstance(recorded, list):
        assert len(recorded) == len(here), where
        for index, (left, right) in enumerate(zip(recorded, here, strict=True)):
            same(left, right, f"{where}[{index}]")
    else:
        assert recorded == here, f"{where}: {recorded!r} became {here!r}"


def targets_in(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["target"]] if "target" in node else []
        return own + [target for value in node.values() for target in targets_in(value)]
    return [target for value in node for target in targets_in(value)] if isinstance(node, list) else []


def is_absent_data(target: str) -> bool:
    return target.startswith(FOREIGN_DATA) or (target.startswith("ldm.data.") and target.split(".")[2] in ABSENT_DATA)


TARGETS = sorted({target for path in SHIPPED for target in targets_in(yaml.safe_load((REPOSITORY / path).read_text())) if not is_absent_data(target)})


@pytest.mark.parametrize("path", sorted(RECORD))
def test_config_has_the_recorded_content(path):
    same(RECORD[path], yaml.safe_load((REPOSITORY / path).read_text()))


@pytest.mark.parametrize("path", SHIPPED)
def test_both_readers_of_yaml_agree(path):
    """A float without a point before its exponent is a float for OmegaConf and a text for PyYAML."""
    same(yaml.safe_load((REPOSITORY / path).read_text()), OmegaConf.to_container(OmegaConf.load(REPOSITORY / path)))


@pytest.mark.parametrize("path", SHIPPED)
def test_config_opens_as_a_lab_note(path):
    lines = (REPOSITORY / path).read_text().splitlines()
    note = [line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    assert len(note) >= 2, "say what it is, and how it is used"
    assert any(word in " ".join(note) for word in ("# run:", "# use:", "# needs:"))


@pytest.mark.parametrize("target", TARGETS)
def test_target_resolves(target):
    assert callable(get_obj_from_str(target))


def test_the_unfrozen_text_to_image_config_is_its_frozen_one_with_the_model_trained():
    folder = REPOSITORY / "configs"
    frozen, unfrozen = (yaml.safe_load((folder / f"latent-diffusion/txt2img-1p4B-{name}.yaml").read_text()) for name in ("finetune", "finetune_unfrozen"))
    twin = yaml.safe_load((folder / "stable-diffusion/v1-finetune_unfrozen.yaml").read_text())
    assert unfrozen["model"]["params"].pop("unfreeze_model") is True
    assert unfrozen["model"]["params"].pop("model_lr") == twin["model"]["params"]["model_lr"]
    same(frozen, unfrozen)


def test_the_shipped_record_is_the_oracles():
    if not ORACLE.is_dir():
        pytest.skip("../shared/oracle is absent here")
    same(json.loads((ORACLE / "facts_configs.json").read_text()), RECORD)
