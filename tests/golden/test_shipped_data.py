"""The recorded numbers that travel with the project are the oracle's own, small, and enough for what they are used for."""
from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.golden.case import ORACLE, SHIPPED, load_case

LARGEST_FILE, LARGEST_TOTAL = 250_000, 2_500_000
FILES = sorted(path.name for path in SHIPPED.iterdir() if path.name != "index.json")


def test_the_data_stays_small():
    sizes = [path.stat().st_size for path in SHIPPED.iterdir()]
    assert max(sizes) < LARGEST_FILE and sum(sizes) < LARGEST_TOTAL


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_is_the_oracles(name):
    if not ORACLE.is_dir():
        pytest.skip("../shared/oracle is absent here")
    (original,) = [folder / name for folder in (ORACLE, ORACLE / "golden") if (folder / name).is_file()]
    if name.endswith(".json"):
        assert json.loads((SHIPPED / name).read_text()) == json.loads(original.read_text())
    else:
        assert (SHIPPED / name).read_bytes() == original.read_bytes()


@pytest.mark.parametrize("name", [name.removesuffix(".safetensors") for name in FILES if name.endswith(".safetensors")])
def test_a_shipped_case_is_whole(name, monkeypatch):
    """Configuration, tensors and notes are there also where `../shared` is not."""
    monkeypatch.setattr("tests.golden.case.ORACLE", SHIPPED / "absent")
    case = load_case(name)
    assert set(case.tensors) == set(load_file(SHIPPED / f"{name}.safetensors"))
    assert case.config and case.notes["note"]


@pytest.mark.parametrize("case", ["autoencoder_kl", "vq_interface", "ld_a_weights"])
def test_a_case_that_is_too_large_to_ship_is_skipped_with_the_reason(case, monkeypatch):
    monkeypatch.setattr("tests.golden.case.ORACLE", SHIPPED / "absent")
    with pytest.raises(pytest.skip.Exception, match=f"{case}.safetensors is neither in ../shared"):
        load_case(case)
