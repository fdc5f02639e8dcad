"""How a first stage is trained: optimisers, schedule, weight average, validation.

A loss without a discriminator is trained by Lightning's automatic optimisation, so accumulation, clipping and `global_step` are the trainer's.
One with a discriminator needs two optimisers, hence manual optimisation: each batch moves the autoencoder, then the discriminator
(Esser et al. 2020, arXiv 2012.09841, section 3.1).
"""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm.modules.ema import LitEma
from ldm.util import get_obj_from_str, instantiate_from_config

logger = logging.getLogger(__name__)

AUTOENCODER, DISCRIMINATOR = 0, 1  # the loss's optimizer_idx


class FirstStage(pl.LightningModule):
    """An autoencoder with a loss; a subclass says how a batch becomes a loss.

    Set from outside before training: `learning_rate`; and, for a loss with a discriminator, `accumulate_grad_batches` (batches a step) and
    `gradient_clip_val` (largest norm, None for no limit), which Lightning refuses to handle where optimisation is manual.
    """

    learning_rate: float
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None

    def autoencoder_modules(self) -> Sequence[nn.Module]:
        """What the autoencoder's optimiser trains, in the order of its parameters."""
        raise NotImplementedError

    def compute_loss(self, x: Tensor, optimizer_idx: int, split: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of pictures x (B, C, H, W) and what to log of it under `split`/…; needs no gradient where optimizer_idx is DISCRIMINATOR."""
        raise NotImplementedError

    def set_up_training(
        self,
        lossconfig: Mapping[str, Any],
        *,
        scheduler_config: Mapping[str, Any] | None,
        optimizer_config: Mapping[str, Any] | None,
    ) -> None:
        """Remember how to train, and build the loss."""
        self.loss = instantiate_from_config(lossconfig)
        self.scheduler_config = scheduler_config
        self.optimizer_config = optimizer_config
        self.automatic_optimization = not self.has_discriminator

    def set_up_average(self, use_ema: bool, decay: float) -> None:
        """Start the weight average from the present weights."""
        self.use_ema = use_ema
        if use_ema:
            self.model_ema = LitEma(self, decay)

    @property
    def has_discriminator(self) -> bool:
        return hasattr(self.loss, "discriminator")

    @property
    def loss_step(self) -> int:
        """Steps of the autoencoder so far: `global_step` counts those of every optimiser."""
        return self.global_step // (2 if self.has_discriminator else 1)

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights from `path`; keys that begin with an entry of `ignore_keys` keep their present values."""
        from ldm.checkpoints import load_weights

        report = load_weights(self, path, ignore_prefixes=tuple(ignore_keys), may_miss=("loss.", "model_ema."), may_be_unexpected=("loss.", "model_ema."))
        logger.info("loaded %s: %s", path, report.summary())

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Inside, the weights are their averages; nothing happens without `use_ema`. context: a word for the log."""
        if not self.use_ema:
            yield
            return
        self.model_ema.store(self.parameters())
        self.model_ema.copy_to(self)
        logger.debug("%s: averaged weights", context)
        try:
            yield
        finally:
            self.model_ema.restore(self.parameters())
            logger.debug("%s: training weights again", context)

    def get_input(self, batch: Mapping[str, Any], k: str) -> Tensor:
        """Pictures batch[k], (B, H, W, C) or (B, H, W), as (B, C, H, W) of this module's dtype."""
        x = batch[k]
        if x.ndim == 3:
            x = x[..., None]
        return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format, dtype=self.dtype)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        x = self.get_input(batch, self.image_key)  # (B, C, H, W)
        if self.automatic_optimization:
            return self._logged_loss(x, AUTOENCODER)
        autoencoder, discriminator = self.optimizers()
        ready = (batch_idx + 1) % self.accumulate_grad_batches == 0 or self.trainer.is_last_batch
        for index, optimizer in ((AUTOENCODER, autoencoder), (DISCRIMINATOR, discriminator)):
            self.toggle_optimizer(optimizer)
            self.manual_backward(self._logged_loss(x, index) / self.accumulate_grad_batches)
            if ready:
                if self.gradient_clip_val is not None:
                    self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip_val, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
        if ready and self.scheduler_config is not None:
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return None

    def _logged_loss(self, x: Tensor, optimizer_idx: int) -> Tensor:
        loss, parts = self.compute_loss(x, optimizer_idx, "train")
        self.log("aeloss" if optimizer_idx == AUTOENCODER else "discloss", loss.detach(), prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict(parts, on_step=True, on_epoch=False)
        return loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.use_ema:
            self.model_ema(self)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs val/…, and val_ema/… with the averaged weights."""
        self._validation_step(batch, batch_idx)
        if self.use_ema:
            with self.ema_scope():
                self._validation_step(batch, batch_idx, suffix="_ema")

    def _validation_step(self, batch: Mapping[str, Any], batch_idx: int, suffix: str = "") -> None:
        x = self.get_input(batch, self.image_key)
        for index in (AUTOENCODER, DISCRIMINATOR)[: 2 if self.has_discriminator else 1]:
            _, parts = self.compute_loss(x, index, f"val{suffix}")
            self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        """The autoencoder's optimiser and, where there is one, the discriminator's; each with the configured schedule per step."""
        optimizers = [self._optimizer([p for module in self.autoencoder_modules() for p in module.parameters()], self.learning_rate)]
        if self.has_discriminator:
            optimizers.append(self._optimizer(list(self.loss.discriminator.parameters()), self.learning_rate))
        if self.scheduler_config is None:
            return optimizers
        schedule = instantiate_from_config(self.scheduler_config).schedule
        return optimizers, [{"scheduler": LambdaLR(optimizer, lr_lambda=schedule), "interval": "step", "frequency": 1} for optimizer in optimizers]

    def _optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        if self.optimizer_config is None:
            return torch.optim.Adam(parameters, lr=learning_rate, betas=(0.5, 0.9))
        config = OmegaConf.to_container(OmegaConf.create(self.optimizer_config), resolve=True)  # plain values: they are saved with the optimiser
        return get_obj_from_str(config["target"])(parameters, lr=learning_rate, **config.get("params", {}))
