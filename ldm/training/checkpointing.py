"""What a run writes beside its pictures: `last.ckpt`, the learnt words, and how a file gets to the disk whole."""
from __future__ import annotations

import copy
import logging
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint

from ldm.checkpoints import atomic_write, read_checkpoint
from ldm.training import random_state

logger = logging.getLogger(__name__)

LAST = "last.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Writes to a temporary file in the same folder and renames it; reads without running what is in the file."""

    def __init__(self, trust_pickle: bool = False):
        self.trust_pickle = trust_pickle

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path, trust_pickle=self.trust_pickle)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` from which the run goes on exactly: every n optimiser steps, at the end, after an error, on a signal.

    The loops and the states of chance are those of the last optimiser step, so a run that was stopped between two steps
    (in the middle of an accumulation, of a validation, of a preview) repeats from there.
    """

    def __init__(self, folder: str | Path, every_n_train_steps: int | None = None):
        self.path = Path(folder) / LAST
        self.every_n_train_steps = every_n_train_steps or 0
        self.saved_step = -1
        self.seen_step = -1
        self.boundary: tuple[dict[str, Any], dict[str, Any]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved_step = self.seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.seen_step:
            return                                             # accumulating: no step was made
        crossed = self.every_n_train_steps and trainer.global_step // self.every_n_train_steps > self.seen_step // self.every_n_train_steps
        self.seen_step = trainer.global_step
        self.boundary = copy.deepcopy(trainer.fit_loop.state_dict()), random_state.capture()
        if crossed:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.every_n_train_steps:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.boundary is not None and not is_disk_fault(exception):
            self.save(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        loops, chance = self.boundary if self.boundary is not None else (None, random_state.capture())
        if loops is not None and "loops" in checkpoint:
            checkpoint["loops"]["fit_loop"] = copy.deepcopy(loops)
        checkpoint["random_states"] = gathered(chance, trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.to_restore = checkpoint.get("random_states")

    def save(self, trainer: pl.Trainer) -> None:
        """Writes last.ckpt, unless it already holds this step."""
        if trainer.global_step != self.saved_step or not self.path.exists():
            trainer.save_checkpoint(self.path)
            self.saved_step = trainer.global_step


def is_disk_fault(error: BaseException) -> bool:
    """Whether this error says that a file could not be written: then a second attempt helps nobody."""
    return isinstance(error, ValueError) and "could not be written" in str(error)


def gathered(chance: dict[str, Any], trainer: pl.Trainer) -> list[dict[str, Any]]:
    """The states of chance of every process, by rank."""
    if trainer.world_size == 1:
        return [chance]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, chance)
    return states


class RestoreChance(Callback):
    """Resumes the streams of torch, numpy and random; validation and previews draw without disturbing them."""

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] | None = None
        self.before_validation: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint.get("random_states")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.saved is not None and trainer.global_rank < len(self.saved):
            random_state.restore(self.saved[trainer.global_rank])
            self.saved = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before_validation = random_state.capture()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.before_validation is not None:
            random_state.restore(self.before_validation)
            self.before_validation = None


class EmbeddingsSaver(Callback):
    """Beside every checkpoint, the learnt words: `embeddings.pt`, and `embeddings_gs-N.pt` that stays.

    N is one less than the optimiser steps done, as in files of the original.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        manager = getattr(pl_module, "embedding_manager", None)
        if manager is None or not trainer.is_global_zero:
            return
        manager.save(str(self.folder / "embeddings.pt"))
        manager.save(str(self.folder / f"embeddings_gs-{max(trainer.global_step - 1, 0)}.pt"))


class SaveOnSignal(Callback):
    """SIGUSR1: write last.ckpt at the end of this batch and go on."""

    def __init__(self, last: LastCheckpoint):
        self.last = last
        self.asked = False

    def ask(self, *_: Any) -> None:
        self.asked = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, self.ask)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.asked:
            self.asked = False
            self.last.save(trainer)
            logger.info("asked by a signal: wrote %s at step %d", self.last.path, trainer.global_step)
