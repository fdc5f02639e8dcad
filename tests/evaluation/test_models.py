"""Models loaded for a comparison are the base as it was and what the runs ended with."""
from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoints import read_state_dict
from ldm.evaluation.models import chosen_device, default_names, load_frozen, load_run, open_run, sampling_of, subjects, words_of
from ldm.training.run import main as training_command
from tests.evaluation import small_characters
from tests.evaluation.scripts import script

CPU = torch.device("cpu")


def same(model, tensors) -> list[str]:
    """Names of tensors that differ."""
    own = model.state_dict()
    return [key for key, value in tensors.items() if key in own and not torch.equal(own[key], value)]


@pytest.mark.parametrize("role", ["unregularized", "regularized"])
def test_a_run_is_loaded_as_it_ended(pair, role):
    run = open_run(pair.runs[role])
    model = load_run(run, pair.base, device=CPU)
    saved = read_state_dict(run.checkpoint)
    assert set(saved) <= set(model.state_dict()) and not same(model, saved)
    assert run.role == role and run.pictures == pair.pictures
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_the_frozen_model_is_the_base(pair):
    for role in pair.runs:
        model = load_frozen(open_run(pair.runs[role]).config, pair.base, device=CPU)
        assert not same(model, read_state_dict(pair.base))
        assert type(model).__name__ == "LatentDiffusion"  # without the term: there is nothing to train


def test_runs_differ_from_the_base_and_from_each_other(pair):
    plain, held = (load_run(open_run(pair.runs[role]), pair.base, device=CPU) for role in ("unregularized", "regularized"))
    base = {key: value for key, value in read_state_dict(pair.base).items() if key.startswith("model.")}
    assert same(plain, base) and same(held, base)
    assert same(plain, {key: value for key, value in held.state_dict().items() if key.startswith("model.")})


def test_a_run_that_learnt_a_word_alone_is_laid_over_its_base(tmp_path, pair):
    config = small_characters.write_configs(tmp_path)["unregularized"]
    words = ["--base", config, "-t", "--actual_resume", pair.base, "--data_root", pair.pictures, "-l", tmp_path / "logs", "--no-test"]
    assert training_command([*map(str, words), "model.params.unfreeze_model=false"]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    model = load_run(open_run(folder), pair.base, device=CPU)
    assert not same(model, {key: value for key, value in read_state_dict(pair.base).items() if key.startswith(("model.", "cond_stage_model."))})
    learnt = {key: value for key, value in read_state_dict(folder / "checkpoints" / "last.ckpt").items() if key.startswith("embedding_manager.")}
    assert learnt and not same(model, learnt)


def test_a_run_on_adapters_is_laid_over_its_base_and_exported_merged(tmp_path, pair, capsys):
    config = small_characters.write_configs(tmp_path)["unregularized"]
    words = ["--base", config, "-t", "--actual_resume", pair.base, "--data_root", pair.pictures, "-l", tmp_path / "logs", "--no-test"]
    adapters = "model.params.adapter_config.target=ldm.models.adapters.LowRankAdapters"
    assert training_command([*map(str, words), "model.params.unfreeze_model=false", adapters]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    model = load_run(open_run(folder), pair.base, device=CPU)
    assert not same(model, {**read_state_dict(pair.base), **read_state_dict(folder / "checkpoints" / "last.ckpt")})
    assert any(model.state_dict()[key].any() for key in model.adapters.keys if key.endswith("lora_B.weight"))
    out = tmp_path / "merged.safetensors"
    assert script("export_weights").main([str(folder), str(out), "--adapter-strength", "0.8"]) == 0
    assert same(load_frozen(OmegaConf.create(small_characters.config()), out, device=CPU), read_state_dict(pair.base))
    assert script("export_weights").main([str(pair.base), str(out), "--adapter-strength", "0.8"]) == 1
    assert "holds no low-rank adapters" in capsys.readouterr().err


def test_what_is_no_run_is_refused_by_name(tmp_path, pair):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--config"):
        open_run(tmp_path / "empty")
    stopped = tmp_path / "stopped"
    shutil.copytree(pair.runs["regularized"] / "configs", stopped / "configs")
    with pytest.raises(FileNotFoundError, match="last.ckpt"):
        open_run(stopped)


def test_a_run_without_configs_takes_the_one_given(tmp_path, pair):
    bare = tmp_path / "bare"
    shutil.copytree(pair.runs["unregularized"] / "checkpoints", bare / "checkpoints")
    assert open_run(bare, OmegaConf.create(small_characters.config())).role == "unregularized"


def test_a_config_without_a_model_is_refused(tmp_path, pair):
    with pytest.raises(ValueError, match="no section model"):
        open_run(tmp_path, OmegaConf.create({"data": {}}))


def test_runs_of_unlike_networks_are_not_put_on_one_page(tmp_path, pair):
    other = tmp_path / "other"
    shutil.copytree(pair.runs["unregularized"], other)
    (config,) = (other / "configs").glob("*project.yaml")
    changed = OmegaConf.load(config)
    changed.model.params.unet_config.params.num_heads = 2
    OmegaConf.save(changed, config)
    with pytest.raises(ValueError, match="unet_config"):
        subjects([open_run(pair.runs["unregularized"]), open_run(other)], pair.base, names=["a", "b"], device=CPU)


def test_roles_name_the_runs_where_they_can(pair):
    plain, held = (open_run(pair.runs[role]) for role in ("unregularized", "regularized"))
    assert default_names([plain, held]) == ["Unregularised", "Regularised"]
    assert default_names([held, replace(held, folder=Path("logs/other"))]) == [held.folder.name, "other"]
    assert default_names([held, replace(held, folder=Path("elsewhere") / held.folder.name)]) == [str(held.folder), f"elsewhere/{held.folder.name}"]


def test_weight_nought_is_no_regulariser(pair):
    run = open_run(pair.runs["regularized"])
    OmegaConf.update(run.config, "model.params.regularization_config.params.weight_config.params.weight", 0.0)
    assert run.role == "unregularized"


def test_words_and_guidance_come_from_the_config():
    config = OmegaConf.create(small_characters.config())
    assert words_of(config) == ("*", "character")
    assert words_of(OmegaConf.create({"model": {"params": {}}})) == ("*", None)
    assert sampling_of(config, steps=None).guidance_scale == 5.0
    OmegaConf.update(config, "lightning.callbacks.image_logger.params.log_images_kwargs.unconditional_guidance_scale", 3.0, force_add=True)
    assert sampling_of(config).guidance_scale == 3.0
    assert sampling_of(config, guidance_scale=2.0, steps=7) == sampling_of(config, guidance_scale=2.0).__class__(7, 2.0)


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(ValueError, match="--device nonsense"):
        chosen_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cuda"):
            chosen_device("cuda")
    assert chosen_device("cpu") == CPU
