"""Logger, callbacks and Trainer of a run: the defaults, each overridable under `lightning:` in the yaml."""
from __future__ import annotations

import importlib.util
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger

from ldm.training.checkpointing import AtomicCheckpointIO, EmbeddingsSaver, LastCheckpoint, RestoreChance, SaveOnSignal
from ldm.training.metrics import JsonLinesLogger
from ldm.training.progress import StepBar
from ldm.training.run_folder import RunFolder
from ldm.util import instantiate_from_config

TRAINSTEPS = "metrics_over_trainsteps_checkpoint"


def default_callbacks(folder: RunFolder, project: DictConfig, lightning: DictConfig) -> dict[str, dict[str, Any]]:
    """The callbacks that every run has, by the keys under which `lightning.callbacks` overrides them."""
    return {
        "setup_callback": {
            "target": "main.SetupCallback",
            "params": {
                "resume": str(folder.resume_from or ""),
                "now": folder.time,
                "logdir": str(folder.path),
                "ckptdir": str(folder.checkpoints),
                "cfgdir": str(folder.configs),
                "config": project,
                "lightning_config": lightning,
            },
        },
        "image_logger": {"target": "main.ImageLogger", "params": {"batch_frequency": 750, "max_images": 4, "clamp": True}},
        "learning_rate_logger": {"target": "pytorch_lightning.callbacks.LearningRateMonitor", "params": {"logging_interval": "step"}},
        "cuda_callback": {"target": "main.CUDACallback"},
    }


def checkpoint_settings(folder: RunFolder, lightning: DictConfig, monitor: str | None) -> tuple[ModelCheckpoint, LastCheckpoint]:
    """(the best by the model's monitor, the last): `lightning.modelcheckpoint` merged into their settings.

    A monitored value is known only after a validation, so `every_n_train_steps` then belongs to `last.ckpt` alone.
    """
    params: dict[str, Any] = {"dirpath": str(folder.checkpoints), "filename": "{epoch:06}", "verbose": True, "save_last": True}
    if monitor is not None:
        params |= {"monitor": monitor, "save_top_k": 1}
    merged = OmegaConf.merge({"target": "pytorch_lightning.callbacks.ModelCheckpoint", "params": params}, lightning.get("modelcheckpoint") or {})
    params = dict(OmegaConf.to_container(merged.params, resolve=True))
    every = params.get("every_n_train_steps")
    keep_last = params.pop("save_last")
    if params.get("monitor") is not None:
        params.pop("every_n_train_steps", None)
        params.setdefault("save_on_train_epoch_end", not params["monitor"].startswith("val"))
    best = instantiate_from_config({"target": merged.target, "params": params})
    return best, LastCheckpoint(folder.checkpoints, every) if keep_last else None


def build_callbacks(folder: RunFolder, project: DictConfig, lightning: DictConfig, monitor: str | None) -> list[Callback]:
    """All callbacks of a run, in the order in which they are called (checkpoints last)."""
    given = OmegaConf.to_container(lightning.get("callbacks") or OmegaConf.create())
    settings = default_callbacks(folder, project, lightning)
    if TRAINSTEPS in given:
        settings[TRAINSTEPS] = trainstep_checkpoints(folder)
    for key, override in given.items():
        base = settings.get(key, {})
        settings[key] = {**base, **(override or {}), "params": {**base.get("params", {}), **((override or {}).get("params") or {})}}
    best, last = checkpoint_settings(folder, lightning, monitor)
    callbacks = [instantiate_from_config(setting) for setting in settings.values()]
    callbacks += [RestoreChance(), EmbeddingsSaver(folder.checkpoints), StepBar()]
    return [*callbacks, best, *([SaveOnSignal(last), last] if last else [])]


def trainstep_checkpoints(folder: RunFolder) -> dict[str, Any]:
    """Weights every 10,000 steps, all of them kept."""
    params = {
        "dirpath": str(folder.checkpoints / "trainstep_checkpoints"),
        "filename": "{epoch:06}-{step:09}",
        "verbose": True,
        "save_top_k": -1,
        "every_n_train_steps": 10000,
        "save_weights_only": True,
    }
    return {"target": "pytorch_lightning.callbacks.ModelCheckpoint", "params": params}


def build_loggers(folder: RunFolder, lightning: DictConfig) -> list[Logger]:
    """metrics.jsonl, and TensorBoard's files under testtube where it is installed; `lightning.logger` is merged into the latter."""
    given = lightning.get("logger") or {}
    loggers: list[Logger] = [JsonLinesLogger(folder.path / "metrics.jsonl")]
    if given or importlib.util.find_spec("tensorboard"):
        default = {"target": "pytorch_lightning.loggers.TensorBoardLogger", "params": {"name": "testtube", "save_dir": str(folder.path)}}
        loggers.append(instantiate_from_config(OmegaConf.to_container(OmegaConf.merge(default, given))))
    return loggers


def build_trainer(folder: RunFolder, project: DictConfig, lightning: DictConfig, trainer_config: dict[str, Any], monitor: str | None, *, trust_pickle: bool) -> Trainer:
    """The Trainer of a run; `trainer_config` names its device already (`devices.chosen_devices`)."""
    defaults = {"max_epochs": -1, "log_every_n_steps": 1, "enable_model_summary": False, "use_distributed_sampler": False, "default_root_dir": str(folder.path)}
    return Trainer(
        **{**defaults, **trainer_config},
        callbacks=build_callbacks(folder, project, lightning, monitor),
        logger=build_loggers(folder, lightning),
        plugins=[AtomicCheckpointIO(trust_pickle)],
    )


def learning_rate(model: pl.LightningModule, base: float, *, batch_size: int, devices: int, accumulate: int, scale: bool) -> str:
    """Sets `model.learning_rate`; returns how it came about."""
    if not scale:
        model.learning_rate = base
        return f"{base:.3g} (the base rate: --scale_lr false)"
    model.learning_rate = accumulate * devices * batch_size * base
    return f"{model.learning_rate:.3g} = {accumulate} (accumulate_grad_batches) × {devices} (devices) × {batch_size} (batch size) × {base:.3g} (base_learning_rate)"
