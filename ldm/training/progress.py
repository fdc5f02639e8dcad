"""The bar of a run: optimiser steps done of all steps, and the last values logged for it."""
from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm.auto import tqdm


class StepBar(ProgressBar):
    """One bar for the whole run, counted in optimiser steps (a resumed run starts where it stood)."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self.bar = tqdm(total=total, initial=trainer.global_step, unit="step", desc="training", disable=not self.enabled, dynamic_ncols=True, file=sys.stderr)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar is not None and trainer.global_step > self.bar.n:
            self.bar.set_postfix(self.shown(trainer, pl_module), refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.say("validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.say("training")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def shown(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
        """The losses marked for the bar, short: per step where a metric has both forms."""
        values = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if isinstance(value, (int, float)) and name != "v_num"}
        return {name.removesuffix("_step"): f"{value:.4g}" for name, value in values.items() if not name.endswith("_epoch") and "global_step" not in name}

    def say(self, doing: str) -> None:
        """Names before the bar what is going on."""
        if self.bar is not None:
            self.bar.set_description(doing)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
