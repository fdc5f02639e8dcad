"""Ctrl-C stops a run between two batches, SIGUSR1 has last.ckpt written: both are noted here and acted on by `LastCheckpoint`."""
from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

logger = logging.getLogger(__name__)


def anywhere(trainer: pl.Trainer, asked: bool) -> bool:
    """Whether any process was asked: all of them have to act at the same batch."""
    return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked


class Signals(Callback):
    """Notes what the user asks for while training runs.

    The first Ctrl-C lets the batch in hand end, so that no optimiser step is cut in two; between batches, or the second time, it stops at once.
    """

    def __init__(self) -> None:
        self.stop_asked = False
        self.save_asked = False
        self.in_batch = False
        self.previous: dict[int, Any] = {}

    def interrupt(self, *_: Any) -> None:
        at_once = self.stop_asked or not self.in_batch
        self.stop_asked = True
        if at_once:
            raise KeyboardInterrupt
        logger.info("stopping after this batch (Ctrl-C again: at once)")

    def ask_to_save(self, *_: Any) -> None:
        self.save_asked = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.previous[signal.SIGINT] = signal.signal(signal.SIGINT, self.interrupt)
        if hasattr(signal, "SIGUSR1"):
            self.previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self.ask_to_save)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.in_batch = True

    def batch_ended(self, trainer: pl.Trainer) -> None:
        """Called once everything about a batch is done. Raises KeyboardInterrupt where Ctrl-C was pressed during it."""
        self.in_batch = False
        self.stop_asked = anywhere(trainer, self.stop_asked)
        if self.stop_asked:
            raise KeyboardInterrupt

    def save_was_asked(self, trainer: pl.Trainer) -> bool:
        """Whether last.ckpt is wanted now; asking again needs another signal."""
        asked, self.save_asked = anywhere(trainer, self.save_asked), False
        return asked

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Handlers as they were before the run."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
