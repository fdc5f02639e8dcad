"""What a run writes beside its pictures: `last.ckpt`, the learnt words, and how a file gets to the disk whole."""
from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint

from ldm.checkpoints import atomic_write, read_checkpoint
from ldm.training import random_state
from ldm.training.signals import Signals

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
AT_LAST_STEP = "at_last_step"                                  # in a checkpoint on its way to the disk


class AtomicCheckpointIO(CheckpointIO):
    """Writes to a temporary file in the same folder and renames it; reads without running what is in the file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        # Callbacks are asked before the model, and so could not put this in the place of what it says itself.
        for key, state in checkpoint.pop(AT_LAST_STEP, {}).items():
            checkpoint[key] = {**checkpoint.get(key, {}), **state} if isinstance(state, dict) else state
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which the run goes on exactly: every n optimiser steps, at the end, after an error, on a signal.

    The loops, the states of chance and the model's own (`state_at_step`, where it has one) in a checkpoint are those of the last optimiser step, so
    a run that was stopped between two of them (in the middle of an accumulation, of a validation, of a preview) repeats from there. It acts when
    a batch is over for the model too, whose averages move after all callbacks were called.
    """

    def __init__(self, folder: str | Path, every_n_train_steps: int | None = None, *, signals: Signals | None = None, enabled: bool = True):
        self.path = Path(folder) / LAST
        self.every_n_train_steps = every_n_train_steps or 0
        self.signals = signals or Signals()
        self.enabled = enabled
        self.saved_step = self.seen_step = 0
        self.boundary: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved_step = self.seen_step = trainer.global_step
        end_of_the_models = pl_module.on_train_batch_end

        def end(*args: Any, **kwargs: Any) -> None:
            end_of_the_models(*args, **kwargs)
            self.batch_ended(trainer, pl_module)

        pl_module.on_train_batch_end = end

    def batch_ended(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All about a batch is done."""
        if trainer.global_step != self.seen_step:              # not in the middle of an accumulation
            own = pl_module.state_at_step() if hasattr(pl_module, "state_at_step") else {}
            self.boundary = copy.deepcopy(trainer.fit_loop.state_dict()), random_state.capture(), own
            every, before, self.seen_step = self.every_n_train_steps, self.seen_step, trainer.global_step
            if every and trainer.global_step // every > before // every:
                self.save(trainer)
        if self.signals.save_was_asked(trainer):
            self.save(trainer)
            logger.info("asked by a signal: %s holds step %d", self.path, trainer.global_step)
        self.signals.batch_ended(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.every_n_train_steps:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        vars(pl_module).pop("on_train_batch_end", None)        # its own again
        self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        vars(pl_module).pop("on_train_batch_end", None)
        # Saving takes all processes: where an error stopped one, the others would wait for it for ever.
        together = trainer.world_size == 1 or isinstance(exception, KeyboardInterrupt)
        if self.boundary is not None and together and not is_disk_fault(exception):
            self.save(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        chance = random_state.capture()
        # Of another step only if an error came between the optimiser's step and the end of its batch: then the loops as they are now fit.
        if self.boundary is not None and trainer.global_step == self.seen_step:
            loops, chance, own = self.boundary
            checkpoint["loops"]["fit_loop"] = copy.deepcopy(loops)
            checkpoint[AT_LAST_STEP] = own
        checkpoint["random_states"] = gathered(chance, trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Writes last.ckpt, unless it holds this step already."""
        if self.enabled and (trainer.global_step != self.saved_step or not self.path.exists()):
            trainer.save_checkpoint(self.path, weights_only=False)
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
        elif trainer.global_rank > 0:                          # the same seed everywhere would give every process the same noise
            pl.seed_everything(torch.initial_seed() + trainer.global_rank, verbose=False)
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

