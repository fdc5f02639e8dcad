"""Callbacks under the names that yaml files know: set-up of the run folder, timing, and the two phases of pivotal tuning."""
from __future__ import annotations

import logging
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

logger = logging.getLogger(__name__)


class SetupCallback(Callback):
    """Saves what a run was started with: `configs/<time>-project.yaml` and `-lightning.yaml`."""

    def __init__(self, resume, now, logdir, ckptdir, cfgdir, config, lightning_config):
        super().__init__()
        self.resume = resume
        self.now = now
        self.logdir = logdir
        self.ckptdir = ckptdir
        self.cfgdir = cfgdir
        self.config = config
        self.lightning_config = lightning_config

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for folder in (self.logdir, self.ckptdir, self.cfgdir):
            Path(folder).mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, Path(self.cfgdir) / f"{self.now}-project.yaml")
        OmegaConf.save(OmegaConf.create({"lightning": self.lightning_config}), Path(self.cfgdir) / f"{self.now}-lightning.yaml")


class CUDACallback(Callback):
    """Tells after each epoch how long it took and, on a GPU, the most memory it needed."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)          # a run resumed within an epoch starts none

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.device = trainer.strategy.root_device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.device.type != "cuda":
            return
        torch.cuda.synchronize(self.device)
        seconds = time.monotonic() - self.start
        peak_gib = torch.cuda.max_memory_allocated(self.device) / 2**30
        logger.info("epoch %d: %.1f s, at most %.2f GiB on %s", trainer.current_epoch, seconds, peak_gib, self.device)
