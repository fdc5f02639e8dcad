"""Real models, base checkpoint, pictures and Trainer, small enough for a test."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regularized import RegularizedLatentDiffusion
from ldm.prompts import imagenet_templates_small
from tests.models.diffusion.tiny import DEFAULTS, WORDS

PARAMS = {**DEFAULTS, "personalization_config": WORDS, "unfreeze_model": True, "model_lr": 1.0e-3}
ISLAND = "ldm.regularization"


def write_base(path: Path) -> str:
    """A checkpoint of a model none of whose layers is zero, so that everything it computes depends on everything."""
    torch.manual_seed(0)
    model = LatentDiffusion(**copy.deepcopy(PARAMS))
    with torch.no_grad():
        for parameter in model.model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05)
    save_file({key: value.contiguous() for key, value in model.state_dict().items() if not key.startswith("embedding_manager")}, path)
    return str(path)


def term_config(
    cache_dir: Path, *, weight: float = 10.0, every: int = 1, warmup_steps: int = 0, conditioning: Any = "ClassPrompts", latents: Any = "PriorSamples",
    teacher: Any = "CachedTeacher", loss: Any = "NoiseMSE", batch_size: int = 2, seed: int = 23, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A regularization_config; a part is a class name or (class name, params)."""
    defaults = {
        "PriorSamples": {"samples": 4, "ddim_steps": 2, "cache_dir": str(cache_dir)},
        "NoiseLatents": {"samples": 4},
        "CachedTeacher": {"noisings": 3, "cache_dir": str(cache_dir)},
    }

    def part(module: str, chosen: Any) -> dict[str, Any]:
        name, params = chosen if isinstance(chosen, tuple) else (chosen, {})
        return {"target": f"{ISLAND}.{module}.{name}", "params": {**defaults.get(name, {}), **params}}

    return {
        "target": f"{ISLAND}.regularizer.LocalityRegularizer",
        "params": {
            "batch_size": batch_size,
            "seed": seed,
            "weight_config": part("weight", ("ConstantWeight", {"weight": weight, "every": every, "warmup_steps": warmup_steps})),
            "conditioning_config": part("conditioning", conditioning),
            "latents_config": part("latents", latents),
            "teacher_config": part("teacher", teacher),
            "loss_config": part("losses", loss),
            **more,
        },
    }


def plain_model(base: str | None, **params: Any) -> LatentDiffusion:
    return _with_rate(LatentDiffusion(**copy.deepcopy({**PARAMS, **params}), ckpt_path=base))


def regularized_model(base: str | None, cache_dir: Path, params: dict[str, Any] | None = None, **term: Any) -> RegularizedLatentDiffusion:
    config = term_config(cache_dir, **term)
    return _with_rate(RegularizedLatentDiffusion(**copy.deepcopy({**PARAMS, **(params or {})}), ckpt_path=base, regularization_config=config))


def _with_rate(model: LatentDiffusion) -> LatentDiffusion:
    model.learning_rate = 5.0e-3
    return model


def ready(model: RegularizedLatentDiffusion) -> RegularizedLatentDiffusion:
    """As a Trainer leaves it before the first step."""
    model.setup("fit")
    return model.train()


class Pictures(torch.utils.data.Dataset):
    """Random pictures with training captions."""

    def __init__(self, count: int):
        generator = torch.Generator().manual_seed(7)
        self.pictures = torch.rand(count, 16, 16, 3, generator=generator) * 2 - 1

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.pictures[index], "caption": imagenet_templates_small[index].format("*")}


def batch_of(size: int) -> dict[str, Any]:
    return next(iter(DataLoader(Pictures(size), batch_size=size)))


class Log(Logger):
    """What was logged: by optimiser step, and of whole epochs."""

    name, version = "log", 0

    def __init__(self):
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}
        self.epochs: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        of_step = {key.removesuffix("_step"): value for key, value in metrics.items() if key.endswith("_step")}
        if of_step:
            self.steps.setdefault(step, {}).update(of_step)
        else:
            self.epochs.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def by_step(self, key: str) -> dict[int, float]:
        return {step: metrics[key] for step, metrics in self.steps.items() if key in metrics}

    def by_epoch(self, key: str) -> list[float]:
        return [metrics[key] for metrics in self.epochs if key in metrics]


def fit(model: LatentDiffusion, folder: Path, *, steps: int, pictures: int = 4, batch_size: int = 2, resume: str | None = None, validate: bool = False,
        save: bool = False, datamodule: pl.LightningDataModule | None = None, **settings: Any) -> Log:  # fmt: skip
    """Train in order of the pictures, or on a data module; with `save`, leave `last.ckpt` in `folder`."""
    pl.seed_everything(11)
    log = Log()
    trainer = pl.Trainer(
        **{"max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "logger": log, "log_every_n_steps": 1, "enable_checkpointing": False,
           "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": str(folder), **settings}
    )  # fmt: skip
    validation = [DataLoader(Pictures(2), batch_size=2)] if validate else None
    data = {"datamodule": datamodule} if datamodule else {"train_dataloaders": DataLoader(Pictures(pictures), batch_size=batch_size)}
    trainer.fit(model, val_dataloaders=validation, ckpt_path=resume, weights_only=True, **data)
    if save:
        trainer.save_checkpoint(folder / "last.ckpt")
    return log


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
