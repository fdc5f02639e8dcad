"""Two checkpoints side by side: what moved is named, and nothing else."""
from __future__ import annotations

import pytest
import torch

from ldm.checkpoints import save_weights
from scripts.what_moved import main

KEYS = ("model.diffusion_model.out.weight", "cond_stage_model.layer.weight", "first_stage_model.conv.weight",
        "embedding_manager.string_to_param_dict.*", "betas")  # fmt: skip


@pytest.fixture
def before(tmp_path):
    torch.manual_seed(0)
    tensors = {key: torch.randn(4, 3) for key in KEYS}
    save_weights(tmp_path / "before.safetensors", tensors)
    return tensors


def said(tmp_path, capsys, after: dict, name: str = "after.ckpt") -> dict[str, str]:
    save_weights(tmp_path / name, after)
    assert main([str(tmp_path / "before.safetensors"), str(tmp_path / name)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("    ")]
    return {line[:20].strip(): line[20:].strip() for line in lines}


def test_a_tensor_that_moved_is_counted_in_its_group_with_its_distance(tmp_path, capsys, before):
    key = KEYS[0]
    after = {**before, key: before[key] * 1.5}
    groups = said(tmp_path, capsys, after)
    assert groups["network"].startswith("1 of 1 tensors moved") and "all by 0.5 of their norm" in groups["network"]
    for still in ("text encoder", "first stage", "learnt words", "tables and counters"):
        assert groups[still] == "0 of 1 tensors moved"


def test_what_a_checkpoint_leaves_out_is_counted_apart(tmp_path, capsys, before):
    """As a run on a frozen base does."""
    groups = said(tmp_path, capsys, {key: before[key] for key in KEYS[3:]})
    assert groups["network"] == groups["first stage"] == "1 only in the first"
    assert groups["learnt words"] == "0 of 1 tensors moved"


def test_checkpoints_of_two_models_are_refused(tmp_path, capsys, before):
    save_weights(tmp_path / "other.ckpt", {KEYS[0]: torch.zeros(2)})
    assert main([str(tmp_path / "before.safetensors"), str(tmp_path / "other.ckpt")]) == 1
    assert "not checkpoints of one model" in capsys.readouterr().err
