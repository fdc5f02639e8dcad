"""One case of the recorded behaviour of the original code: its configuration, weights, inputs, outputs and gradients.

`../shared/oracle/golden` holds every case; `tests/golden/data` the small ones, so that a test run without `../shared` still has them.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
ORACLE = SHARED / "oracle"
SHIPPED = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """A named golden case; tensors are fp32 unless they are integers."""

    name: str
    config: DictConfig
    tensors: dict[str, torch.Tensor]
    notes: dict[str, Any]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose key begins with `prefix/`, that prefix removed."""
        start = prefix + "/"
        return {key[len(start) :]: value for key, value in self.tensors.items() if key.startswith(start)}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights, big sparse tables filled up with zeros."""
        state = self.under("sd")
        for key, shape in self.under("sparse_shape").items():
            table = torch.zeros(*shape.tolist())
            table[self.tensors[f"sparse_ids/{key}"].long()] = self.tensors[f"sparse_rows/{key}"]
            state[key] = table
        return state


def _folder_with(file_name: str) -> Path:
    for folder in (ORACLE / "golden", SHIPPED):
        if (folder / file_name).is_file():
            return folder
    if (ORACLE / "golden").is_dir():
        pytest.fail(f"../shared/oracle/golden has no {file_name}")
    pytest.skip(f"{file_name} is neither in ../shared/oracle/golden (absent here) nor in tests/golden/data")


def oracle_file(name: str) -> Path:
    """A file of the oracle, e.g. `manifest_sd_v1.json`, from `../shared` or from the shipped ones; the test skips where it is in neither."""
    for folder in (ORACLE, SHIPPED):
        if (folder / name).is_file():
            return folder / name
    if ORACLE.is_dir():
        pytest.fail(f"../shared/oracle has no {name}")
    pytest.skip(f"{name} is neither in ../shared/oracle (absent here) nor in tests/golden/data")


def golden_path(file_name: str) -> Path:
    """Path of a file that belongs to a case (e.g. `em_1vec_embeddings.pt`)."""
    return _folder_with(file_name) / file_name


def load_case(name: str) -> Case:
    """Case `name` with everything recorded for it; skips where it is not at hand."""
    folder = _folder_with(f"{name}.safetensors")
    raw = load_file(folder / f"{name}.safetensors")
    tensors = {key: value.float() if value.is_floating_point() and value.dtype != torch.float64 else value for key, value in raw.items()}
    config = folder / f"{name}.yaml"
    index = folder / "index.json"
    notes = json.loads(index.read_text()).get(name, {}) if index.is_file() else {}
    return Case(name, OmegaConf.load(config) if config.is_file() else OmegaConf.create(), tensors, notes)


def assert_close_to_golden(actual: torch.Tensor, expected: torch.Tensor, *, atol: float = 5e-5) -> None:
    """Values agree to `atol` (fp32 on another CPU)."""
    torch.testing.assert_close(actual.detach().float(), expected.float(), atol=atol, rtol=1e-5)


def assert_gradient_close(actual: torch.Tensor | None, expected: torch.Tensor, *, rtol: float = 1e-4) -> None:
    """Gradients agree relative to the largest entry of the expected one."""
    assert actual is not None, "no gradient arrived"
    scale = expected.abs().max().clamp_min(1e-12).item()
    torch.testing.assert_close(actual.detach().float(), expected.float(), atol=rtol * scale, rtol=0.0)
