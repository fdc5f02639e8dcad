"""Every published model is laid out at its full size without memory, and random checkpoints have its keys."""
from __future__ import annotations

import json

import pytest
import torch

from benchmarks import full_size
from ldm.checkpoints import read_state_dict
from ldm.checkpoints.keys import family
from tests.golden.case import REPOSITORY, oracle_file

PUBLISHED = sorted(json.loads((REPOSITORY / "tests/contract/recorded/configs.json").read_text()))
WORDS = 2  # string_to_param_dict and initial_embeddings of one placeholder
CHARACTERS = str(REPOSITORY / "configs/characters/finetune_unfrozen_reg.yaml")


@pytest.mark.parametrize("path", PUBLISHED)
def test_a_published_model_is_laid_out_with_the_recorded_number_of_tensors(path):
    layout = full_size.layout_of_config(REPOSITORY / path)
    assert any(value.is_meta for value in layout.values())
    outcome = json.loads(oracle_file("facts_config_sweep.json").read_text())[path]
    if outcome.startswith("ok"):
        recorded = int(outcome.split()[1])
        absent = 0
        if "cond_stage_model.transformer.text_model.final_layer_norm.bias" in layout:
            absent = WORDS + 1  # and position_ids
        elif "model.diffusion_model.out.2.weight" in layout:
            absent = 1 if path.endswith("eval_with_tokens.yaml") else WORDS
        assert len(layout) == recorded - absent


@pytest.mark.parametrize(("path", "name"), [
    ("configs/stable-diffusion/v1-inference.yaml", "Stable Diffusion 1"), ("configs/latent-diffusion/txt2img-1p4B-finetune.yaml", "1.4-billion"),
    ("models/first_stage_models/kl-f8/config.yaml", "a first stage"),
])  # fmt: skip
def test_families_are_told_by_the_published_models_keys(path, name):
    assert name in str(family({key: value.shape for key, value in full_size.layout_of_config(REPOSITORY / path).items()}))


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_checkpoint_has_the_models_keys_shapes_and_its_format(tmp_path, name, dtype):
    assert full_size.main([str(tmp_path / name), "--config", CHARACTERS, "--dtype", dtype, "--position-ids"]) == 0
    tensors, layout = read_state_dict(tmp_path / name), full_size.layout_of_config(CHARACTERS)
    assert {key: value.shape for key, value in tensors.items() if key != full_size.POSITION_IDS} == {key: value.shape for key, value in layout.items()}
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {getattr(torch, dtype)}
    assert torch.equal(tensors["betas"], layout["betas"].to(getattr(torch, dtype)))
    assert tensors["model.diffusion_model.out.2.weight"].any()


def test_a_manifests_tensors_are_written(tmp_path):
    manifest = {"keys": {"betas": {"shape": [1000], "dtype": "float32"}, "model.w.weight": {"shape": [3, 4], "dtype": "float32"},
                         full_size.POSITION_IDS: {"shape": [1, 77], "dtype": "int64"}}}  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    full_size.main([str(tmp_path / "m.ckpt"), "--manifest", str(tmp_path / "manifest.json"), "--bare", "--averages"])
    tensors = torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert set(tensors) == {*manifest["keys"], "model_ema.wweight", "model_ema.decay", "model_ema.num_updates"}
    assert tensors["betas"][0].item() == pytest.approx(0.00085) and torch.equal(tensors[full_size.POSITION_IDS], torch.arange(77)[None])


def test_a_part_alone_is_written_under_its_own_names(tmp_path):
    full_size.main([str(tmp_path / "vae.safetensors"), "--config", CHARACTERS, "--part", "first_stage_model", "--strip"])
    tensors = read_state_dict(tmp_path / "vae.safetensors")
    assert "encoder.conv_in.weight" in tensors and not any(key.startswith(("first_stage_model.", "model.")) for key in tensors)
