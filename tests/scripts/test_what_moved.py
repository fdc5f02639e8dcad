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


def test_a_word_that_only_the_second_has_is_compared_with_the_vectors_it_began_with(tmp_path, capsys, before):
    """As a run's last.ckpt has it beside its base."""
    start = torch.ones(4, 3)
    learnt = {"embedding_manager.string_to_param_dict.@": start * 1.25, "embedding_manager.initial_embeddings.@": start}
    groups = said(tmp_path, capsys, before | learnt)
    assert groups["learnt words"] == (
        "0 of 1 tensors moved; 1 of 1 words moved from its initial vectors, a value by at most 0.25, all by 0.25 of their norm; 2 only in the second"
    )
    del before["embedding_manager.string_to_param_dict.*"]
    save_weights(tmp_path / "before.safetensors", before)
    two = learnt | {key.replace("@", "%"): start for key in learnt}
    save_weights(tmp_path / "two.ckpt", before | two)
    assert main([str(tmp_path / "before.safetensors"), str(tmp_path / "two.ckpt")]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 words moved from their initial vectors, a value by at most 0.25, all by 0.177 of their norm" in out  # 0.25 / sqrt(2)
    assert "    0.25  embedding_manager.string_to_param_dict.@ (from its initial vectors)" in out.splitlines()


def test_a_word_that_began_with_no_known_vectors_is_counted_apart(tmp_path, capsys, before):
    """A placeholder without an init word, or a file that keeps none."""
    rest = {key: value for key, value in before.items() if not key.startswith("embedding_manager.")}
    save_weights(tmp_path / "before.safetensors", rest)
    assert said(tmp_path, capsys, before)["learnt words"] == "1 only in the second"


def test_checkpoints_of_two_models_are_refused(tmp_path, capsys, before):
    save_weights(tmp_path / "other.ckpt", {KEYS[0]: torch.zeros(2)})
    assert main([str(tmp_path / "before.safetensors"), str(tmp_path / "other.ckpt")]) == 1
    assert "not checkpoints of one model" in capsys.readouterr().err
