"""Logger, callbacks and Trainer of a run: the defaults, each overridable under `lightning:` in the yaml."""
from __future__ import annotations

import importlib.util
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers.logger import Logger

from ldm.training.callbacks import DEFAULT_CALLBACKS, MODEL_CHECKPOINT, TRAINSTEPS
from ldm.training.checkpointing import AtomicCheckpointIO, EmbeddingsSaver, LastCheckpoint, RestoreChance
from ldm.training.metrics import JsonLinesLogger
from ldm.training.progress import StepBar
from ldm.training.run_folder import RunFolder
from ldm.training.signals import Signals
from ldm.util import instantiate_from_config


def default_callbacks(folder: RunFolder, project: DictConfig, lightning: DictConfig) -> dict[str, dict[str, Any]]:
    """Settings of the callbacks that every run has."""
    params = {
        "setup_callback": {
            "resume": str(folder.resume_from or ""),
            "now": folder.stamp,
            "logdir": str(folder.path),
            "ckptdir": str(folder.checkpoints),
            "cfgdir": str(folder.configs),
            "config": project,
            "lightning_config": lightning,
        },
        "image_logger": {"batch_frequency": 750, "max_images": 4, "clamp": True},
        "learning_rate_logger": {"logging_interval": "step"},
    }
    return {key: {"target": target, "params": params.get(key, {})} for key, target in DEFAULT_CALLBACKS.items()}


def build_checkpoints(folder: RunFolder, lightning: DictConfig, monitor: str | None, signals: Signals) -> list[Checkpoint]:
    """The best by the model's monitor, and the last; `lightning.modelcheckpoint` is merged into their settings.

    A monitored value is known only after a validation, so `every_n_train_steps` then belongs to `last.ckpt` alone.
    """
    params: dict[str, Any] = {"dirpath": str(folder.checkpoints), "filename": "{epoch:06}", "verbose": True, "save_last": True}
    if monitor is not None:
        params |= {"monitor": monitor, "save_top_k": 1}
    merged = OmegaConf.merge({"target": MODEL_CHECKPOINT, "params": params}, lightning.get("modelcheckpoint") or {})
    params = dict(OmegaConf.to_container(merged.params, resolve=True))
    last = LastCheckpoint(folder.checkpoints, params.get("every_n_train_steps"), signals=signals, enabled=bool(params.pop("save_last")))
    if params.get("monitor") is not None:
        params.pop("every_n_train_steps", None)
        params.setdefault("save_on_train_epoch_end", not params["monitor"].startswith("val"))
    return [instantiate_from_config({"target": merged.target, "params": params}), last]


def build_callbacks(folder: RunFolder, project: DictConfig, lightning: DictConfig, trainer_config: dict[str, Any], monitor: str | None) -> list[Callback]:
    """All callbacks of a run, in the order in which they are called (checkpoints last)."""
    given = OmegaConf.to_container(lightning.get("callbacks") or OmegaConf.create())
    settings = default_callbacks(folder, project, lightning)
    if TRAINSTEPS in given:
        settings[TRAINSTEPS] = trainstep_checkpoints(folder)
    for key, override in given.items():
        base = settings.get(key, {})
        settings[key] = {**base, **(override or {}), "params": {**base.get("params", {}), **((override or {}).get("params") or {})}}
    signals = Signals()
    built = [signals, *(instantiate_from_config(setting) for setting in settings.values()), RestoreChance()]
    if trainer_config.get("enable_progress_bar") is not False:
        built.append(StepBar())
    if trainer_config.get("enable_checkpointing") is not False:
        built += [EmbeddingsSaver(folder.checkpoints), *build_checkpoints(folder, lightning, monitor, signals)]
    return built


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
    return {"target": MODEL_CHECKPOINT, "params": params}


def build_loggers(folder: RunFolder, lightning: DictConfig) -> list[Logger]:
    """metrics.jsonl, and TensorBoard's files under testtube where it is installed; `lightning.logger` is merged into the latter."""
    given = lightning.get("logger") or {}
    loggers: list[Logger] = [JsonLinesLogger(folder.path / "metrics.jsonl")]
    if given or importlib.util.find_spec("tensorboard"):
        default = {"target": "pytorch_lightning.loggers.TensorBoardLogger", "params": {"name": "testtube", "save_dir": str(folder.path)}}
        loggers.append(instantiate_from_config(OmegaConf.to_container(OmegaConf.merge(default, given))))
    return loggers


def build_trainer(folder: RunFolder, project: DictConfig, lightning: DictConfig, trainer_config: dict[str, Any], monitor: str | None) -> Trainer:
    """The Trainer of a run; `trainer_config` names its device already (`devices.chosen_devices`)."""
    defaults = {
        "max_epochs": -1,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "use_distributed_sampler": False,                      # the data module's own order knows the processes
        "default_root_dir": str(folder.path),
    }
    return Trainer(
        **{**defaults, **trainer_config},
        callbacks=build_callbacks(folder, project, lightning, trainer_config, monitor),
        logger=build_loggers(folder, lightning),
        plugins=[AtomicCheckpointIO()],
    )

