"""Stand-in for the published repository: LatentDiffusion with its hooks, as far as training with learnt words and the locality term meet them.

Written from recorded behaviour: order of random draws, who is frozen, keys, names of what is logged. What nothing here asks for is left out.
"""
import math
import os
import types
from contextlib import contextmanager

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.distributed import rank_zero_only
from torch import nn

from ldm.models.autoencoder import DiagonalGaussianDistribution
from ldm.modules.diffusionmodules.util import extract_into_tensor
from ldm.util import instantiate_from_config


def _still(module):
    """Eval mode for good, and no gradients."""
    module.eval()
    module.train = types.MethodType(lambda self, mode=True: self, module)
    for parameter in module.parameters():
        parameter.requires_grad = False


class DiffusionWrapper(pl.LightningModule):
    def __init__(self, diff_model_config, conditioning_key):
        super().__init__()
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(self, x, t, c_concat=None, c_crossattn=None):
        if self.conditioning_key == "hybrid":
            x = torch.cat([x, *c_concat], dim=1)
        return self.diffusion_model(x, t, context=torch.cat(c_crossattn, 1))


class Averages(nn.Module):
    """Exponential averages of the parameters, under their names without dots."""

    def __init__(self, model, decay=0.9999):
        super().__init__()
        self.names = {name: name.replace(".", "") for name, p in model.named_parameters() if p.requires_grad}
        self.register_buffer("decay", torch.tensor(decay))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        for name, p in model.named_parameters():
            if name in self.names:
                self.register_buffer(self.names[name], p.clone().detach())

    @torch.no_grad()
    def forward(self, model):
        self.num_updates += 1
        decay = min(float(self.decay), (1 + int(self.num_updates)) / (10 + int(self.num_updates)))
        for name, p in model.named_parameters():
            if name in self.names:
                average = getattr(self, self.names[name])
                average.add_((1 - decay) * (p - average))

    @contextmanager
    def inside(self, model):
        own = [p.clone() for p in model.parameters()]
        for name, p in model.named_parameters():
            if name in self.names:
                p.data.copy_(getattr(self, self.names[name]))
        try:
            yield
        finally:
            for p, value in zip(model.parameters(), own):
                p.data.copy_(value)


class DDPM(pl.LightningModule):
    def __init__(
        self, unet_config, timesteps=1000, beta_schedule="linear", loss_type="l2", ckpt_path=None, ignore_keys=(), load_only_unet=False,
        monitor="val/loss", use_ema=True, first_stage_key="image", image_size=256, channels=3, log_every_t=100, clip_denoised=True,
        linear_start=1e-4, linear_end=2e-2, cosine_s=8e-3, given_betas=None, original_elbo_weight=0.0, embedding_reg_weight=0.0,
        unfreeze_model=False, model_lr=0.0, v_posterior=0.0, l_simple_weight=1.0, conditioning_key=None, parameterization="eps",
        scheduler_config=None, use_positional_encodings=False, learn_logvar=False, logvar_init=0.0,
    ):  # fmt: skip
        super().__init__()
        assert beta_schedule == "linear" and given_betas is None and not v_posterior
        self.parameterization, self.loss_type, self.cond_stage_model = parameterization, loss_type, None
        self.first_stage_key, self.image_size, self.channels, self.log_every_t = first_stage_key, image_size, channels, log_every_t
        self.original_elbo_weight, self.l_simple_weight, self.embedding_reg_weight = original_elbo_weight, l_simple_weight, embedding_reg_weight
        self.unfreeze_model, self.model_lr, self.clip_denoised = unfreeze_model, model_lr, clip_denoised
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.use_ema = use_ema
        if use_ema:
            self.model_ema = Averages(self.model)
        if monitor is not None:
            self.monitor = monitor
        self.register_schedule(timesteps=timesteps, linear_start=linear_start, linear_end=linear_end)
        self.learn_logvar = learn_logvar
        self.logvar = torch.full((self.num_timesteps,), float(logvar_init))
        if learn_logvar:
            self.logvar = nn.Parameter(self.logvar, requires_grad=True)

    def register_schedule(self, given_betas=None, beta_schedule="linear", timesteps=1000, linear_start=1e-4, linear_end=2e-2, cosine_s=8e-3):
        beta = np.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=np.float64) ** 2
        abar = np.cumprod(1.0 - beta)
        before = np.append(1.0, abar[:-1])
        variance = beta * (1.0 - before) / (1.0 - abar)
        self.num_timesteps = int(timesteps)
        tables = {
            "betas": beta, "alphas_cumprod": abar, "alphas_cumprod_prev": before, "sqrt_alphas_cumprod": abar**0.5,
            "sqrt_one_minus_alphas_cumprod": (1.0 - abar) ** 0.5, "log_one_minus_alphas_cumprod": np.log(1.0 - abar),
            "sqrt_recip_alphas_cumprod": (1.0 / abar) ** 0.5, "sqrt_recipm1_alphas_cumprod": (1.0 / abar - 1.0) ** 0.5,
            "posterior_variance": variance, "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": beta * before**0.5 / (1.0 - abar), "posterior_mean_coef2": (1.0 - before) * (1.0 - beta) ** 0.5 / (1.0 - abar),
        }  # fmt: skip
        for name, values in tables.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        if self.parameterization == "eps":
            alphas = torch.tensor(1.0 - beta, dtype=torch.float32)
            weights = self.betas**2 / (2 * self.posterior_variance * alphas * (1 - self.alphas_cumprod))
        else:
            weights = 0.5 * self.sqrt_alphas_cumprod / (2.0 - self.alphas_cumprod)
        weights[0] = weights[1]
        self.register_buffer("lvlb_weights", weights, persistent=False)

    def init_from_ckpt(self, path, ignore_keys=(), only_model=False):
        saved = torch.load(path, map_location="cpu")
        self.load_state_dict(saved.get("state_dict", saved), strict=False)

    def q_sample(self, x_start, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        signal, spread = (extract_into_tensor(table, t, x_start.shape) for table in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))
        return signal * x_start + spread * noise

    def q_mean_variance(self, x_start, t):
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start,
            extract_into_tensor(1.0 - self.alphas_cumprod, t, x_start.shape),
            extract_into_tensor(self.log_one_minus_alphas_cumprod, t, x_start.shape),
        )

    def predict_start_from_noise(self, x_t, t, noise):
        whole, part = (extract_into_tensor(table, t, x_t.shape) for table in (self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod))
        return whole * x_t - part * noise

    def q_posterior(self, x_start, x_t, t):
        towards, staying = (extract_into_tensor(table, t, x_t.shape) for table in (self.posterior_mean_coef1, self.posterior_mean_coef2))
        variances = (extract_into_tensor(table, t, x_t.shape) for table in (self.posterior_variance, self.posterior_log_variance_clipped))
        return (towards * x_start + staying * x_t, *variances)

    @contextmanager
    def ema_scope(self, context=None):
        if not self.use_ema:
            yield None
            return
        with self.model_ema.inside(self.model):
            yield None

    def get_loss(self, pred, target, mean=True):
        error = (target - pred).abs() if self.loss_type == "l1" else (target - pred) ** 2
        return error.mean() if mean else error

    def get_input(self, batch, k):
        x = batch[k] if batch[k].ndim == 4 else batch[k][..., None]
        return x.permute(0, 3, 1, 2).contiguous().float()

    def training_step(self, batch, batch_idx):
        loss, logs = self.shared_step(batch)
        self.log_dict(logs, prog_bar=True, logger=True, on_step=True, on_epoch=True)
        self.log("global_step", float(self.global_step), prog_bar=True, logger=True, on_step=True, on_epoch=False)
        return loss

    @torch.no_grad()
    def validation_step(self, batch, batch_idx):
        _, logs = self.shared_step(batch)
        with self.ema_scope():
            _, averaged = self.shared_step(batch)
        self.log_dict(logs, prog_bar=False, logger=True, on_step=False, on_epoch=True)
        self.log_dict({f"{key}_ema": value for key, value in averaged.items()}, prog_bar=False, logger=True, on_step=False, on_epoch=True)

    def on_train_batch_end(self, *args, **kwargs):
        if self.use_ema:
            self.model_ema(self.model)


class LatentDiffusion(DDPM):
    def __init__(
        self, first_stage_config, cond_stage_config, personalization_config, num_timesteps_cond=None, cond_stage_key="image", cond_stage_trainable=False,
        concat_mode=True, cond_stage_forward=None, conditioning_key=None, scale_factor=1.0, scale_by_std=False, *args, **kwargs
    ):  # fmt: skip
        assert not scale_by_std
        ckpt_path = kwargs.pop("ckpt_path", None)
        super().__init__(*args, conditioning_key=conditioning_key or ("concat" if concat_mode else "crossattn"), **kwargs)
        self.cond_stage_key, self.cond_stage_trainable, self.cond_stage_forward = cond_stage_key, cond_stage_trainable, cond_stage_forward
        self.scale_factor = scale_factor
        self.instantiate_first_stage(first_stage_config)
        self.instantiate_cond_stage(cond_stage_config)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path)
        if not self.unfreeze_model:
            _still(self.cond_stage_model)
            _still(self.model)
        self.embedding_manager = self.instantiate_embedding_manager(personalization_config, self.cond_stage_model)
        for parameter in self.embedding_manager.embedding_parameters():
            parameter.requires_grad = True

    def instantiate_first_stage(self, config):
        self.first_stage_model = instantiate_from_config(config)
        _still(self.first_stage_model)

    def instantiate_cond_stage(self, config):
        self.cond_stage_model = instantiate_from_config(config)
        if not self.cond_stage_trainable:
            _still(self.cond_stage_model)

    def instantiate_embedding_manager(self, config, embedder):
        manager = instantiate_from_config(config, embedder=embedder)
        if config["params"].get("embedding_manager_ckpt"):
            manager.load(config["params"]["embedding_manager_ckpt"])
        return manager

    def get_first_stage_encoding(self, encoder_posterior):
        drawn = isinstance(encoder_posterior, DiagonalGaussianDistribution)
        return self.scale_factor * (encoder_posterior.sample() if drawn else encoder_posterior)

    @torch.no_grad()
    def encode_first_stage(self, x):
        return self.first_stage_model.encode(x)

    def differentiable_decode_first_stage(self, z, predict_cids=False, force_not_quantize=False):
        return self.first_stage_model.decode(z / self.scale_factor)

    decode_first_stage = torch.no_grad()(differentiable_decode_first_stage)

    def get_learned_conditioning(self, c):
        return self.cond_stage_model.encode(c, embedding_manager=self.embedding_manager)

    @torch.no_grad()
    def get_input(
        self, batch, k, return_first_stage_outputs=False, force_c_encode=False, cond_key=None, return_original_cond=False, bs=None
    ):
        x = super().get_input(batch, k)[:bs].to(self.device)
        z = self.get_first_stage_encoding(self.encode_first_stage(x)).detach()
        raw = batch[cond_key or self.cond_stage_key]
        c = raw if self.cond_stage_trainable and not force_c_encode else self.get_learned_conditioning(raw)
        out = [z, c[:bs]]
        if return_first_stage_outputs:
            out += [x, self.decode_first_stage(z)]
        return out + [raw] if return_original_cond else out

    def shared_step(self, batch, **kwargs):
        x, c = self.get_input(batch, self.first_stage_key)
        return self(x, c)

    def forward(self, x, c, *args, **kwargs):
        t = torch.randint(0, self.num_timesteps, (x.shape[0],), device=self.device).long()
        if self.cond_stage_trainable:
            c = self.get_learned_conditioning(c)
        return self.p_losses(x, c, t, *args, **kwargs)

    def apply_model(self, x_noisy, t, cond, return_ids=False):
        if not isinstance(cond, dict):
            key = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
            cond = {key: cond if isinstance(cond, list) else [cond]}
        return self.model(x_noisy, t, **cond)

    def _prior_bpd(self, x_start):
        mean, _, logvar = self.q_mean_variance(x_start, torch.full((len(x_start),), self.num_timesteps - 1, device=x_start.device))
        kl = 0.5 * (-1.0 - logvar + logvar.exp() + mean**2)
        return kl.flatten(1).mean(1) / math.log(2.0)

    def p_mean_variance(self, x, c, t, clip_denoised, return_x0=False):
        x0_hat = self.apply_model(x, t, c)
        x0_hat = self.predict_start_from_noise(x, t, x0_hat) if self.parameterization == "eps" else x0_hat
        gaussian = self.q_posterior(x0_hat.clamp(-1.0, 1.0) if clip_denoised else x0_hat, x, t)
        return (*gaussian, x0_hat) if return_x0 else gaussian

    def p_losses(self, x_start, cond, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        each = self.get_loss(output, noise if self.parameterization == "eps" else x_start, mean=False).mean(dim=(1, 2, 3))
        split = "train" if self.training else "val"
        logs = {f"{split}/loss_simple": each.mean()}
        logvar_t = self.logvar.to(t.device)[t]
        gamma = each / logvar_t.exp() + logvar_t
        if self.learn_logvar:
            logs.update({f"{split}/loss_gamma": gamma.mean(), "logvar": self.logvar.data.mean()})
        vlb = (self.lvlb_weights[t] * each).mean()
        logs[f"{split}/loss_vlb"] = vlb
        loss = self.l_simple_weight * gamma.mean() + self.original_elbo_weight * vlb
        logs[f"{split}/loss"] = loss
        if self.embedding_reg_weight > 0:
            coarse = self.embedding_manager.embedding_to_coarse_loss().mean()
            logs[f"{split}/loss_emb_reg"] = coarse
            loss = loss + self.embedding_reg_weight * coarse
            logs[f"{split}/loss"] = loss
        return loss, logs

    def configure_optimizers(self):
        groups = [{"params": list(self.embedding_manager.embedding_parameters()), "lr": self.learning_rate}]
        if self.unfreeze_model:
            groups.append({"params": [*self.cond_stage_model.parameters(), *self.model.parameters()], "lr": self.model_lr})
        return torch.optim.AdamW(groups, lr=self.learning_rate)

    def configure_opt_embedding(self):
        """The first phase of pivotal tuning: the word alone."""
        return self._phase(networks=False)

    def configure_opt_model(self):
        """The second: everything."""
        return self._phase(networks=True)

    def _phase(self, networks):
        for parameter in [*self.cond_stage_model.parameters(), *self.model.parameters()]:
            parameter.requires_grad = networks

    @rank_zero_only
    def on_save_checkpoint(self, checkpoint):
        if not self.unfreeze_model:
            checkpoint.clear()
        folder = getattr(getattr(self.trainer, "checkpoint_callback", None), "dirpath", None)
        if folder and os.path.isdir(folder):
            self.embedding_manager.save(os.path.join(folder, "embeddings.pt"))
            self.embedding_manager.save(os.path.join(folder, f"embeddings_gs-{self.global_step}.pt"))
