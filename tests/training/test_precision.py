"""Training with less memory through the command: in 16 bits, on the small shipped model and its configs, and with lighter optimisers."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.training import run as run_module
from tests.golden.case import REPOSITORY
from tests.training import tiny, toy

SMALL_MODEL = REPOSITORY / "assets" / "characters" / "model.safetensors"
QUICK = ["data.params.batch_size=2", "lightning.callbacks.image_logger.params.disabled=true", "lightning.trainer.limit_val_batches=0"]


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["finetune_unfrozen", "finetune_unfrozen_reg"])
def test_the_small_model_trains_in_bfloat16_as_in_float32(train, tmp_path, name):
    pictures = tiny.photos(tmp_path / "photos")
    words = ["--actual_resume", str(SMALL_MODEL), "--data_root", str(pictures), "--init_word", "character", "--max_steps", "2", *QUICK]
    config = OmegaConf.load(REPOSITORY / "configs" / "characters" / f"{name}.yaml")
    if name.endswith("_reg"):
        term = config.model.params.regularization_config.params
        term.latents_config.params = {"samples": 2, "ddim_steps": 2}
        term.teacher_config.params = {**term.teacher_config.get("params", {}), "noisings": 1, "cache_dir": str(tmp_path / "cache")}
    OmegaConf.save(config, tmp_path / "config.yaml")
    losses = {}
    for precision in ("32", "bf16-mixed"):
        ran = train(None, "-b", str(tmp_path / "config.yaml"), "-l", str(tmp_path / precision), "--precision", precision, *words)
        assert ran.code == 0, ran.out
        (folder,) = (tmp_path / precision).iterdir()
        losses[precision] = [line["train/loss_original_step" if "train/loss_original_step" in line else "train/loss_step"] for line in logged(folder)[:2]]
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.float32}
    assert losses["bf16-mixed"] == pytest.approx(losses["32"], rel=0.05)
    assert losses["bf16-mixed"] != losses["32"]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_in_another_format_are_refused_before_the_model_is_built(train, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(run_module, "instantiate_from_config", lambda *_: pytest.fail("the model was built"))
    config = str(REPOSITORY / "configs" / "characters" / "finetune_unfrozen.yaml")
    words = ["--actual_resume", str(SMALL_MODEL), "--data_root", str(tiny.photos(tmp_path / "photos")), "--init_word", "character"]
    ran = train(None, "-b", config, "-l", str(tmp_path / "logs"), *words, "--precision", precision)
    assert ran.code == 1 and "Traceback" not in ran.out and not (tmp_path / "logs").exists()
    assert f"error: --precision {precision}: " in ran.out and "bf16-mixed" in ran.out


def test_float16_on_the_cpu_is_one_message_and_leaves_nothing(train):
    ran = train(toy.config(), "--precision", "16-mixed")
    assert ran.code == 1 and ran.folder is None and "Traceback" not in ran.out
    assert "--precision 16-mixed: a CPU trains in float32 or bfloat16" in ran.out
