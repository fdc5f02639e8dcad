"""A file of weights alone comes out of every run, and loads."""
from __future__ import annotations

import pytest
import torch

from ldm.checkpoints import read_state_dict
from ldm.checkpoints.export import export_weights


@pytest.fixture
def run(tmp_path):
    """A run folder with a training checkpoint that keeps averages."""
    weights = {"model.a.weight": torch.randn(3, 3), "first_stage_model.b": torch.randn(2), "betas": torch.arange(3)}
    averages = {"model_ema.aweight": torch.randn(3, 3), "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    (tmp_path / "checkpoints").mkdir()
    content = {"state_dict": weights | averages, "loops": {}, "optimizer_states": [{"exp_avg": torch.randn(1000)}], "global_step": 3}
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path, weights, averages


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_export_holds_the_weights_and_nothing_else(run, suffix):
    """A27."""
    folder, weights, _ = run
    assert export_weights(folder, folder / f"m{suffix}") == 3
    tensors = read_state_dict(folder / f"m{suffix}")
    assert tensors.keys() == weights.keys() and all(torch.equal(tensors[key], value) for key, value in weights.items())
    assert (folder / f"m{suffix}").stat().st_size < (folder / "checkpoints" / "last.ckpt").stat().st_size


def test_export_of_the_averages_in_half_precision(run):
    folder, weights, averages = run
    export_weights(folder / "checkpoints" / "last.ckpt", folder / "m.safetensors", dtype=torch.float16, averaged=True)
    tensors = read_state_dict(folder / "m.safetensors")
    assert tensors.keys() == weights.keys() and tensors["betas"].dtype == torch.int64
    assert torch.equal(tensors["model.a.weight"], averages["model_ema.aweight"].half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_tables_are_exported_as_exact_as_they_are(run, dtype):
    """Half of 1 - 0.99999 is nothing."""
    folder, weights, _ = run
    last = folder / "checkpoints" / "last.ckpt"
    tables = {"betas": torch.tensor([1e-5, 2e-5]), "posterior_variance": torch.tensor([1e-20, 1.0])}
    torch.save({"state_dict": weights | tables}, last)
    export_weights(last, folder / "m.safetensors", dtype=dtype)
    tensors = read_state_dict(folder / "m.safetensors")
    assert all(torch.equal(tensors[key], value) for key, value in tables.items()) and tensors["model.a.weight"].dtype == dtype


def test_export_opens_without_running_anything_of_ours(run):
    """A15: plain tensors, which torch alone reads."""
    folder, weights, _ = run
    export_weights(folder, folder / "m.ckpt")
    assert torch.load(folder / "m.ckpt", weights_only=True)["state_dict"].keys() == weights.keys()
    assert set(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)) >= {"state_dict", "optimizer_states"}


def test_run_that_tuned_only_the_word_points_to_its_embeddings(tmp_path):
    torch.save({"state_dict": {"embedding_manager.x": torch.ones(1)}, "loops": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="embeddings.pt"):
        export_weights(tmp_path / "last.ckpt", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
