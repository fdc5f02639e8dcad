"""Diffusion of pictures themselves, and what every diffusion model of this project is: noise tables, loss, averages, training and sampling.

Hooks stand in the order in which a batch meets them. Each is a few lines that hand tensors to a function of a sibling file, and calls other
hooks through `self`: override what you need.
"""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.checkpoints import LoadReport, load_weights
from ldm.checkpoints.construction import weights_at_hand, weights_to_come
from ldm.checkpoints.keys import starts_with
from ldm.models.diffusion import ancestral, noise_schedule, objective, previews
from ldm.models.diffusion.compiled import compile_network
from ldm.models.diffusion.conditioning import DiffusionWrapper
from ldm.models.diffusion.optim import Group, ParameterPlan, with_schedule
from ldm.modules.diffusionmodules.util import make_beta_schedule, noise_like
from ldm.modules.ema import LitEma
from ldm.util import count_params, default

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
# Weights that a checkpoint need not have, or may have beyond the model's own: averages, learnt words, what is computed anew.
OPTIONAL_WEIGHTS = ("model_ema.", "embedding_manager.", "logvar", "scale_factor", "lvlb_weights", *noise_schedule.Tables._fields)


class DDPM(pl.LightningModule):
    """Denoising diffusion of pictures (B, channels, image_size, image_size) in [-1, 1] (Ho et al. 2020, arXiv 2006.11239).

    unet_config: the network; timesteps, beta_schedule, linear_*, cosine_s, given_betas: the noise; parameterization: eps or x0, what it predicts;
    v_posterior: variance of ancestral steps; loss_type, l_simple_weight, original_elbo_weight, learn_logvar: the loss (`objective`);
    scheduler_config: factor of the learning rate by step; optimizer_config: `target` and `params`, AdamW with weight decay 0.01 if None;
    compile: the network by `torch.compile`, true or its arguments (`compiled`);
    ckpt_path: weights to start from, but for keys that begin with an entry of ignore_keys; trust_pickle: also where reading that file may run code.
    `learning_rate` is set by whoever starts the training.
    """

    learning_rate: float | None = None
    parts_with_weights: tuple[str, ...] = ()  # prefixes of parts that their configs name weights for, so that a checkpoint may lack them

    def __init__(
        self, unet_config: Mapping[str, Any], timesteps: int = 1000, beta_schedule: str = "linear", loss_type: str = "l2", ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (), load_only_unet: bool = False, monitor: str | None = "val/loss", use_ema: bool = True,
        first_stage_key: str = "image", image_size: int = 256, channels: int = 3, log_every_t: int = 100, clip_denoised: bool = True,
        linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3, given_betas: Sequence[float] | None = None,
        original_elbo_weight: float = 0.0, embedding_reg_weight: float = 0.0, unfreeze_model: bool = False, model_lr: float = 0.0,
        v_posterior: float = 0.0, l_simple_weight: float = 1.0, conditioning_key: str | None = None, parameterization: str = "eps",
        scheduler_config: Mapping[str, Any] | None = None, use_positional_encodings: bool = False, learn_logvar: bool = False, logvar_init: float = 0.0,
        *, ema_decay: float = 0.9999, optimizer_config: Mapping[str, Any] | None = None, trust_pickle: bool = False,
        compile: bool | Mapping[str, Any] = False,
    ):
        super().__init__()
        self.parameterization, self.loss_type = parameterization, loss_type
        self.l_simple_weight, self.original_elbo_weight, self.embedding_reg_weight = l_simple_weight, original_elbo_weight, embedding_reg_weight
        self.unfreeze_model, self.model_lr = unfreeze_model, model_lr
        self.scheduler_config, self.use_scheduler, self.optimizer_config = scheduler_config, scheduler_config is not None, optimizer_config
        self.first_stage_key, self.image_size, self.channels = first_stage_key, image_size, channels
        self.log_every_t, self.clip_denoised, self.v_posterior = log_every_t, clip_denoised, v_posterior
        self.use_positional_encodings, self.cond_stage_model, self.trust_pickle = use_positional_encodings, None, trust_pickle
        self.use_ema, self.ema_decay = use_ema, ema_decay
        with weights_to_come(self._file_has_all_weights(ckpt_path, ignore_keys)):
            self.model = DiffusionWrapper(unet_config, conditioning_key)
            if use_ema:
                self.model_ema = LitEma(self.model, decay=ema_decay)
        compile_network(self.model.diffusion_model, compile)
        count_params(self.model, verbose=True)
        if monitor is not None:
            self.monitor = monitor
        self.register_schedule(given_betas, beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self.learn_logvar = learn_logvar
        self.logvar = torch.full((self.num_timesteps,), float(logvar_init))
        if learn_logvar:
            with weights_at_hand():
                self.logvar = nn.Parameter(self.logvar)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys, only_model=load_only_unet)

    # -- noise ---------------------------------------------------------------------------------------------------------------------

    def register_schedule(self, given_betas: Sequence[float] | None = None, beta_schedule: str = "linear", timesteps: int = 1000,
                          linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3) -> None:
        """Compute the tables and keep them as buffers; `given_betas`, where given, decides about the steps alone."""
        betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s) if given_betas is None else given_betas
        tables = noise_schedule.make_tables(betas, self.v_posterior)
        self.num_timesteps, self.linear_start, self.linear_end = len(tables.betas), linear_start, linear_end
        for name, table in tables._asdict().items():
            self.register_buffer(name, table)
        self.register_buffer("lvlb_weights", noise_schedule.vlb_weights(tables, self.parameterization), persistent=False)

    @property
    def tables(self) -> noise_schedule.Tables:
        """The noise tables, where the model lies."""
        return noise_schedule.Tables(*(getattr(self, name) for name in noise_schedule.Tables._fields))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t of x_start (B, C, H, W) at t (B,); noise is drawn if not given."""
        return noise_schedule.q_sample(self.tables, x_start, t, default(noise, lambda: torch.randn_like(x_start)))

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> noise_schedule.Gaussian:
        return noise_schedule.q_mean_variance(self.tables, x_start, t)

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> noise_schedule.Gaussian:
        return noise_schedule.q_posterior(self.tables, x_start, x_t, t)

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return noise_schedule.x_0_from_eps(self.tables, x_t, t, noise)

    # -- weights -------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Inside, the network's weights are their averages; nothing happens without `use_ema`. context: a word for the log."""
        if not self.use_ema:
            yield
            return
        self.model_ema.store(self.model.parameters())
        self.model_ema.copy_to(self.model)
        logger.debug("%s: averaged weights", context)
        try:
            yield
        finally:
            self.model_ema.restore(self.model.parameters())
            logger.debug("%s: training weights again", context)

    def _file_has_all_weights(self, ckpt_path: str | None, ignore_keys: Sequence[str]) -> bool:
        # An override may load less than all, or copy into parameters that must have data.
        return ckpt_path is not None and not ignore_keys and type(self).init_from_ckpt is DDPM.init_from_ckpt

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False) -> LoadReport:
        """Load weights, all or (only_model) the network's; averages that the file lacks begin at the weights loaded.

        Of a part that has weights of its own and is in the file too, the file's count; unless ignore_keys names the part.
        """
        ignored = tuple(ignore_keys)
        report = load_weights(self, path, ignore_prefixes=ignored, may_miss=(*OPTIONAL_WEIGHTS, *ignored),
                              may_be_unexpected=OPTIONAL_WEIGHTS, only_prefix="model." if only_model else None,
                              optional_parts=self.parts_with_weights, computed=noise_schedule.Tables._fields, trust_pickle=self.trust_pickle)
        for part in self.parts_with_weights:
            if not only_model and not starts_with(part, ignored) and not any(key.startswith(part) for key in report.missed):
                logger.info("%s: taken from %s, in the place of the weights that its own config names. To keep those: ignore_keys: [%s]", part, path, part)
        if self.use_ema and any(key.startswith("model_ema.") for key in report.missed):
            self.model_ema = LitEma(self.model, decay=self.ema_decay)
        return report

    # -- training ------------------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, logs = self.shared_step(batch)
        size = len(batch[self.first_stage_key])
        self.log_dict(logs, prog_bar=True, on_step=True, on_epoch=True, batch_size=size, sync_dist=True)  # the mean over processes
        self.log("global_step", float(self.global_step), prog_bar=True, on_step=True, on_epoch=False, batch_size=size)
        if self.use_scheduler:
            self.log("lr_abs", self.optimizers().param_groups[0]["lr"], prog_bar=True, on_step=True, on_epoch=False, batch_size=size)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss's parts, and the same under `…_ema` for the averaged weights."""
        _, logs = self.shared_step(batch)
        with self.ema_scope():
            _, logs_ema = self.shared_step(batch)
        logs.update({f"{key}_ema": value for key, value in logs_ema.items()})
        self.log_dict(logs, on_step=False, on_epoch=True, batch_size=len(batch[self.first_stage_key]), sync_dist=True)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.use_ema:
            self.model_ema(self.model)

    def shared_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self(self.get_input(batch, self.first_stage_key))

    def get_input(self, batch: Batch, k: str) -> Tensor:
        """batch[k] (B, H, W) or (B, H, W, C) -> (B, C, H, W) float."""
        x = batch[k] if batch[k].ndim == 4 else batch[k][..., None]
        return x.permute(0, 3, 1, 2).contiguous().float()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.p_losses(x, self.draw_t(x), *args, **kwargs)

    def draw_t(self, x: Tensor) -> Tensor:
        """A step for each sample, (B,), uniform on 0 … T - 1."""
        return torch.randint(0, self.num_timesteps, (x.shape[0],), device=x.device)

    def p_losses(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of x_start (B, C, H, W) noised to t (B,), and its parts to log."""
        noise = default(noise, lambda: torch.randn_like(x_start))
        output = self.model(self.q_sample(x_start, t, noise), t)  # (B, C, H, W)
        return self._loss(output, x_start, noise, t)

    def _loss(self, output: Tensor, x_start: Tensor, noise: Tensor, t: Tensor, **extra: Any) -> tuple[Tensor, dict[str, Tensor]]:
        target = objective.target_of(self.parameterization, x_start, noise)
        per_sample = self.get_loss(output, target, mean=False).mean(dim=(1, 2, 3))  # (B,)
        weights = objective.Weights(self.l_simple_weight, self.original_elbo_weight, self.embedding_reg_weight)
        loss, parts = objective.total(per_sample, self.lvlb_weights[t], weights, **extra)
        if not self.learn_logvar:
            parts.pop("loss_gamma", None)
        return loss, {f"{'train' if self.training else 'val'}/{name}": value for name, value in parts.items()}

    def get_loss(self, pred: Tensor, target: Tensor, mean: bool = True) -> Tensor:
        return objective.error(pred, target, self.loss_type, mean)

    def configure_optimizers(self) -> Any:
        plan = ParameterPlan([Group("model", [self.model], [*self.model.parameters(), *self._learnt_logvar()], self.learning_rate)], frozen=[])
        return with_schedule(plan.optimizer(self.optimizer_config), self.scheduler_config)

    def _learnt_logvar(self) -> list[nn.Parameter]:
        return [self.logvar] if self.learn_logvar else []

    # -- sampling ------------------------------------------------------------------------------------------------------------------

    def p_mean_variance(self, x: Tensor, t: Tensor, clip_denoised: bool) -> noise_schedule.Gaussian:
        """The Gaussian of x_{t-1} that the network sees from x at t."""
        x0_hat = self._x0_hat(x, t, self.model(x, t))
        return self.q_posterior(x0_hat.clamp(-1.0, 1.0) if clip_denoised else x0_hat, x, t)

    def _x0_hat(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        return self.predict_start_from_noise(x, t, output) if self.parameterization == "eps" else output

    @torch.no_grad()
    def p_sample(self, x: Tensor, t: Tensor, clip_denoised: bool = True, repeat_noise: bool = False) -> Tensor:
        return ancestral.draw(self.p_mean_variance(x, t, clip_denoised), t, noise_like(x.shape, x.device, repeat_noise).to(x))

    @torch.no_grad()
    def p_sample_loop(self, shape: Sequence[int], return_intermediates: bool = False) -> Any:
        """A sample of `shape`; with the start noise and every `log_every_t`-th state where asked for."""
        x_T = torch.randn(tuple(shape), device=self.betas.device)
        x, seen = ancestral.walk(x_T, self.num_timesteps, lambda x, t, i: (self.p_sample(x, t, self.clip_denoised), None),
                                 every=self.log_every_t, progress="Sampling")
        return (x, [x_T, *seen]) if return_intermediates else x

    @torch.no_grad()
    def sample(self, batch_size: int = 16, return_intermediates: bool = False) -> Any:
        return self.p_sample_loop((batch_size, self.channels, self.image_size, self.image_size), return_intermediates)

    # -- pictures ------------------------------------------------------------------------------------------------------------------

    _get_rows_from_list = staticmethod(previews.rows)

    @torch.no_grad()
    def log_images(
        self, batch: Batch, N: int = 8, n_row: int = 2, sample: bool = True, return_keys: Sequence[str] | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Pictures for the log: inputs, diffusion_row and, with `sample`, samples and denoise_row."""
        x = self.get_input(batch, self.first_stage_key)[:N].to(self.device)
        stages = previews.noising_stages(x[:n_row], self.num_timesteps, self.log_every_t, self.q_sample)
        log = {"inputs": x, "diffusion_row": self._get_rows_from_list(stages)}
        if sample:
            with self.ema_scope("log_images"):
                log["samples"], seen = self.sample(batch_size=len(x), return_intermediates=True)
            log["denoise_row"] = self._get_rows_from_list(seen)
        return previews.selected(log, return_keys)
