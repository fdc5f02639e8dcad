"""How a first stage is trained: optimisers, schedule, weight average, validation, pictures for the log.

A loss without a discriminator is trained by Lightning's automatic optimisation, so accumulation, clipping and `global_step` are the trainer's.
One with a discriminator needs two optimisers, hence manual optimisation: each batch moves the autoencoder, then the discriminator
(Esser et al. 2020, arXiv 2012.09841, section 3.1).
"""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm.checkpoints import load_tensors, read_state_dict
from ldm.checkpoints.construction import weights_at_hand
from ldm.modules.ema import LitEma
from ldm.modules.losses.adversarial import AUTOENCODER, DISCRIMINATOR
from ldm.modules.losses.contperceptual import DummyLoss
from ldm.util import get_obj_from_str, instantiate_from_config

logger = logging.getLogger(__name__)

# The class of this name in taming downloads weights when it is built; ours has its numbers and keys.
OWN_LOSSES = {"taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
# Averages and the loss's networks come with a training checkpoint and are of no use to who only encodes and decodes.
OF_TRAINING_ONLY = ("loss.", "model_ema.")
AS_A_PART = "first_stage_model."


class FirstStage(pl.LightningModule):
    """An autoencoder with a loss; a subclass says how pictures become reconstructions and these a loss.

    Set from outside before training: `learning_rate`; and, for a loss with a discriminator, `accumulate_grad_batches` (batches a step) and
    `gradient_clip_val` (largest norm, None for no limit), which Lightning refuses where optimisation is manual: `take_over` moves them here.
    """

    learning_rate: float
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    generator_lr_factor: float = 1.0

    def autoencoder_modules(self) -> Sequence[nn.Module]:
        """What the autoencoder's optimiser trains, in the order of its parameters (saved optimisers depend on it)."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Any]:
        """Pictures (B, C, H, W) -> their reconstructions, and what else `compute_loss` needs of the encoder."""
        raise NotImplementedError

    def compute_loss(self, x: Tensor, reconstructions: Tensor, encoded: Any, optimizer_idx: int, split: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the autoencoder (0) or the discriminator (1), and what to log of it as `split`/…."""
        raise NotImplementedError

    def set_up_loss(
        self,
        lossconfig: Mapping[str, Any],
        *,
        scheduler_config: Mapping[str, Any] | None,
        optimizer_config: Mapping[str, Any] | None,
        perceptual_ckpt: str | Sequence[str],
    ) -> None:
        """Build the loss, and remember how to train on it. Raises ValueError for `perceptual_ckpt` with a loss that does not use LPIPS."""
        config = dict(lossconfig)
        if config.get("target") in OWN_LOSSES:
            config["target"] = OWN_LOSSES[config["target"]]
        with weights_at_hand():  # a checkpoint need not have the loss's networks
            self.loss = instantiate_from_config(config)
        paths = [perceptual_ckpt] if isinstance(perceptual_ckpt, str) else perceptual_ckpt
        if paths and not hasattr(self.loss, "perceptual_loss"):
            raise ValueError(f"perceptual_ckpt is given but {type(self.loss).__name__} (lossconfig) does not use LPIPS; leave it out")
        for path in paths:
            self.loss.perceptual_loss.adopt(read_state_dict(path))
        self.scheduler_config = scheduler_config
        self.optimizer_config = optimizer_config
        self.automatic_optimization = not self.has_discriminator

    def set_up_weights(self, ckpt_path: str | None, ignore_keys: Sequence[str], *, use_ema: bool, ema_decay: float) -> None:
        """Start the weight average, then load weights; the last thing that a constructor does."""
        self.use_ema, self.ema_decay = use_ema, ema_decay
        if use_ema:
            self.model_ema = LitEma(self, ema_decay)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)

    @property
    def has_discriminator(self) -> bool:
        return hasattr(self.loss, "discriminator")

    @property
    def autoencoder_step(self) -> int:
        """Steps of the autoencoder's optimiser so far; `global_step` counts those of both."""
        return self.global_step // (2 if self.has_discriminator else 1)

    def file_has_all_weights(self, ckpt_path: str | None, ignore_keys: Sequence[str]) -> bool:
        """Whether parameters need no values before `init_from_ckpt`; an override of that may load less than all, or need them."""
        return ckpt_path is not None and not ignore_keys and type(self).init_from_ckpt is FirstStage.init_from_ckpt

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights; keys of the file that begin with an entry of `ignore_keys` are left out.

        The file may be a first stage's own, or hold one below `first_stage_model.`, as a diffusion model's does. A file without averages starts
        them at its weights. Raises what `load_tensors` raises.
        """
        tensors = read_state_dict(path)
        below = AS_A_PART if any(key.startswith(AS_A_PART) for key in tensors) else None
        report = load_tensors(self, tensors, source=str(path), ignore_prefixes=tuple(ignore_keys), may_miss=(*OF_TRAINING_ONLY, *ignore_keys),
                              may_be_unexpected=OF_TRAINING_ONLY, only_prefix=below)
        if self.use_ema and any(key.startswith("model_ema.") for key in report.missed):
            self.model_ema = LitEma(self, self.ema_decay)

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Inside, the weights are their averages; without `use_ema` nothing happens. context: what for, for the log."""
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
        """Pictures batch[k], (B, H, W, C) or (B, H, W), as float32 (B, C, H, W)."""
        x = batch[k]
        if x.ndim == 3:
            x = x[..., None]
        return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()

    def take_over(self, trainer: pl.Trainer) -> None:
        """Call before `trainer.fit`: with two optimisers, accumulation and clipping become this module's, and `max_steps` counts steps of the autoencoder.

        With one optimiser nothing changes.
        """
        if self.automatic_optimization:
            return
        self.accumulate_grad_batches, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, 1
        self.gradient_clip_val, trainer.gradient_clip_val = trainer.gradient_clip_val, None
        if trainer.max_steps > 0:
            trainer.fit_loop.epoch_loop.max_steps = 2 * trainer.max_steps

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        x = self.get_input(batch, self.image_key)                                             # (B, C, H, W)
        if self.automatic_optimization:
            return self._training_loss(x, AUTOENCODER)
        step_is_due = (batch_idx + 1) % self.accumulate_grad_batches == 0 or self.trainer.is_last_batch
        for index, optimizer in zip((AUTOENCODER, DISCRIMINATOR), self.optimizers(), strict=True):
            self.toggle_optimizer(optimizer)
            self.manual_backward(self._training_loss(x, index) / self.accumulate_grad_batches)
            if step_is_due:
                self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip_val, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
        if step_is_due and self.scheduler_config is not None:
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return None

    def _training_loss(self, x: Tensor, optimizer_idx: int) -> Tensor:
        # The discriminator judges what the autoencoder makes after its step, and teaches it nothing.
        with nullcontext() if optimizer_idx == AUTOENCODER else torch.no_grad():
            reconstructions, encoded = self.reconstruct(x)
        loss, parts = self.compute_loss(x, reconstructions, encoded, optimizer_idx, "train")
        self.log("aeloss" if optimizer_idx == AUTOENCODER else "discloss", loss.detach(), prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict(parts, prog_bar=False, on_step=True, on_epoch=False)
        return loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.use_ema:
            self.model_ema(self)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs val/… and, with averaged weights, val_ema/…."""
        self._validation_step(batch, batch_idx)
        if self.use_ema:
            with self.ema_scope():
                self._validation_step(batch, batch_idx, suffix="_ema")

    def _validation_step(self, batch: Mapping[str, Any], batch_idx: int, suffix: str = "") -> None:
        x = self.get_input(batch, self.image_key)
        reconstructions, encoded = self.reconstruct(x)
        for index in (AUTOENCODER, DISCRIMINATOR) if self.has_discriminator else (AUTOENCODER,):
            _, parts = self.compute_loss(x, reconstructions, encoded, index, f"val{suffix}")
            self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        """The autoencoder's optimiser and, where there is one, the discriminator's; each with the configured schedule per step."""
        if isinstance(self.loss, (nn.Identity, DummyLoss)):
            raise ValueError(f"lossconfig names {type(self.loss).__name__}, which cannot be trained on; name a class of ldm.modules.losses")
        optimizers = [self._optimizer(self.autoencoder_modules(), self.generator_lr_factor * self.learning_rate)]
        if self.has_discriminator:
            optimizers.append(self._optimizer([self.loss.discriminator], self.learning_rate))
        if self.scheduler_config is None:
            return optimizers
        schedule = instantiate_from_config(self.scheduler_config).schedule
        return optimizers, [{"scheduler": LambdaLR(optimizer, lr_lambda=schedule), "interval": "step", "frequency": 1} for optimizer in optimizers]

    def _optimizer(self, modules: Sequence[nn.Module], learning_rate: float) -> Optimizer:
        parameters = [weight for module in modules for weight in module.parameters()]
        if self.optimizer_config is None:
            return torch.optim.Adam(parameters, lr=learning_rate, betas=(0.5, 0.9))
        config = OmegaConf.to_container(OmegaConf.create(self.optimizer_config), resolve=True)  # plain values, since they are saved with the optimiser
        return get_obj_from_str(config["target"])(parameters, lr=learning_rate, **config.get("params", {}))

    def set_up_colours(self, colorize_nlabels: int | None) -> None:
        """With a number of labels, fix a random colour for each."""
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))

    def to_rgb(self, x: Tensor) -> Tensor:
        """Label maps (B, labels, H, W) as pictures (B, 3, H, W) in [-1, 1]: each label in its colour.

        Raises ValueError without `colorize_nlabels`, or with another number of labels.
        """
        labels = self.colorize.shape[1] if hasattr(self, "colorize") else None
        if labels != x.shape[1]:
            raise ValueError(f"pictures have {x.shape[1]} channels and colorize_nlabels is {labels}; set it to the number of channels to see them")
        x = F.conv2d(x, self.colorize)
        return 2.0 * (x - x.min()) / (x.max() - x.min()) - 1.0

    def for_the_eye(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`rows` with label maps (more than 3 channels) as colours."""
        return {name: self.to_rgb(row) if row.shape[1] > 3 else row for name, row in rows.items()}
