"""Previews on disk: `images/SPLIT/KEY_gs-000000_e-000000_b-000000.jpg`, at chosen steps."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid

from ldm.training.random_state import isolated

logger = logging.getLogger(__name__)

PICTURES_PER_ROW = 4


class ImageLogger(Callback):
    """Calls the model's `log_images` every `batch_frequency` steps and writes what it returns.

    max_images: of each kind; clamp: to [-1, 1]; rescale: from [-1, 1] to [0, 1]; increase_log_steps: also at the powers of two below
    `batch_frequency`; log_on_batch_idx: count batches of the epoch instead of optimiser steps; log_first_step: also at step 0.
    """

    def __init__(self, batch_frequency, max_images, clamp=True, increase_log_steps=True, rescale=True, disabled=False,
                 log_on_batch_idx=False, log_first_step=False, log_images_kwargs=None):
        super().__init__()
        self.rescale = rescale
        self.batch_freq = batch_frequency
        self.max_images = max_images
        self.logger_log_images = {TensorBoardLogger: self._testtube}
        self.log_steps = [2**n for n in range(int(batch_frequency).bit_length()) if 2**n <= batch_frequency] if increase_log_steps else []
        self.clamp = clamp
        self.disabled = disabled
        self.log_on_batch_idx = log_on_batch_idx
        self.log_images_kwargs = log_images_kwargs or {}
        self.log_first_step = log_first_step
        self._logged: set[tuple[str, int]] = set()

    @rank_zero_only
    def _testtube(self, pl_module: pl.LightningModule, images: dict[str, Tensor], batch_idx: int, split: str) -> None:
        for key, pictures in images.items():
            grid = self._grid(pictures)
            for target in pl_module.loggers:
                if isinstance(target, TensorBoardLogger):
                    target.experiment.add_image(f"{split}/{key}", grid, global_step=pl_module.global_step)

    @rank_zero_only
    def log_local(self, save_dir: str | Path, split: str, images: dict[str, Tensor], global_step: int, current_epoch: int, batch_idx: int) -> None:
        """Writes a grid of each kind; values in [-1, 1] (rescale) or [0, 1]."""
        folder = Path(save_dir) / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        for key, pictures in images.items():
            grid = (self._grid(pictures).clamp(0.0, 1.0) * 255).round().to(torch.uint8).permute(1, 2, 0)
            Image.fromarray(grid.numpy()).save(folder / f"{key}_gs-{global_step:06}_e-{current_epoch:06}_b-{batch_idx:06}.jpg", quality=95)

    def log_img(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int, split: str = "train") -> None:
        """Draws previews of a batch with the model in eval mode; chance outside is left as it was."""
        if not callable(getattr(pl_module, "log_images", None)) or self.max_images <= 0:
            return
        training = pl_module.training
        pl_module.eval()
        try:
            with torch.no_grad(), isolated(devices=True):
                images = pl_module.log_images(batch, split=split, **self.log_images_kwargs)
        finally:
            pl_module.train(training)
        images = {key: self._ready(value) for key, value in images.items() if isinstance(value, Tensor)}
        self.log_local(run_folder(pl_module), split, images, pl_module.global_step, pl_module.current_epoch, batch_idx)
        for kind, write in self.logger_log_images.items():
            if any(isinstance(target, kind) for target in pl_module.loggers):
                write(pl_module, images, batch_idx, split)

    def check_frequency(self, check_idx: int) -> bool:
        """Whether previews are due at this step."""
        due = check_idx % self.batch_freq == 0 or check_idx in self.log_steps
        return due and (check_idx > 0 or self.log_first_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._maybe(pl_module, batch, batch_idx, "train")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
                                dataloader_idx: int = 0) -> None:
        if not trainer.sanity_checking:
            self._maybe(pl_module, batch, batch_idx, "val")

    def _maybe(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int, split: str) -> None:
        step = batch_idx if self.log_on_batch_idx else pl_module.global_step
        if self.disabled or not self.check_frequency(step):
            return
        # Several batches share an optimiser step (accumulation, validation): the first of them is drawn.
        place = (split, pl_module.global_step)
        if not self.log_on_batch_idx and place in self._logged:
            return
        self._logged = {(kind, at) for kind, at in self._logged if kind != split} | {place}
        self.log_img(pl_module, batch, batch_idx, split=split)

    def _ready(self, pictures: Tensor) -> Tensor:
        pictures = pictures[: self.max_images].detach().float().cpu()
        return pictures.clamp(-1.0, 1.0) if self.clamp else pictures

    def _grid(self, pictures: Tensor) -> Tensor:
        grid = make_grid(pictures, nrow=PICTURES_PER_ROW)
        return (grid + 1.0) / 2.0 if self.rescale else grid


def run_folder(pl_module: pl.LightningModule) -> Path:
    """Where a run's pictures go: the folder that the Trainer was given."""
    return Path(pl_module.trainer.default_root_dir)
