"""Callbacks under the names that yaml files know: set-up of the run folder, timing, and the two phases of pivotal tuning."""
from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback

from ldm.training.processes import reduce_what_trains_now

logger = logging.getLogger(__name__)

# The callbacks that every run has, by the keys under which `lightning.callbacks` overrides them.
DEFAULT_CALLBACKS = {
    "setup_callback": "main.SetupCallback",
    "image_logger": "main.ImageLogger",
    "learning_rate_logger": "pytorch_lightning.callbacks.LearningRateMonitor",
    "cuda_callback": "main.CUDACallback",
}
TRAINSTEPS = "metrics_over_trainsteps_checkpoint"              # not one of them, but known by its key
MODEL_CHECKPOINT = "pytorch_lightning.callbacks.ModelCheckpoint"


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


class ModeSwapCallback(Callback):
    """Pivotal tuning in one run: first the embedding alone, then the network.

    swap_step: optimiser steps of the first phase (the change happens at the start of an epoch).
    train_embeddings_after: whether the word goes on learning in the second phase (as in the original); false fixes it.
    """

    def __init__(self, swap_step=2000, *, train_embeddings_after=True):
        super().__init__()
        self.is_frozen = False
        self.swap_step = swap_step
        self.train_embeddings_after = train_embeddings_after
        self.resumed_phase: bool | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A resumed run's optimiser state is restored after this: it has to meet the optimiser of its own phase.
        if self.resumed_phase is not None:
            self.enter(trainer, pl_module, embedding_only=self.resumed_phase)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        swap = math.ceil(self.swap_step / an_epoch) * an_epoch
        if 0 < trainer.max_steps <= swap and trainer.max_epochs == -1:
            logger.warning(
                "the second phase never comes: it begins at step %d, the first start of an epoch (%d steps) from swap_step %d on, and max_steps is %d. "
                "Lower swap_step or repeats, or raise max_steps", swap, an_epoch, self.swap_step, trainer.max_steps,
            )  # fmt: skip

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # a run resumed from an epoch's end goes on with the next one without telling of its start
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        embedding_only = trainer.global_step < self.swap_step
        if embedding_only != self.is_frozen or (not embedding_only and trainer.global_step == 0):
            self.enter(trainer, pl_module, embedding_only=embedding_only)
            logger.info("step %d: %s", trainer.global_step, "only the embedding trains" if embedding_only else "the network trains")

    def enter(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, embedding_only: bool) -> None:
        """Gives the Trainer the optimiser of one phase."""
        self.is_frozen = embedding_only
        if embedding_only:
            optimizer = pl_module.configure_opt_embedding()
        else:
            pl_module.train_embeddings = self.train_embeddings_after
            optimizer = pl_module.configure_opt_model()
        trainer.strategy.optimizers = [optimizer]
        reduce_what_trains_now(trainer, pl_module)

    def state_dict(self) -> dict[str, bool]:
        return {"embedding_only": self.is_frozen}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        self.resumed_phase = state_dict["embedding_only"]
