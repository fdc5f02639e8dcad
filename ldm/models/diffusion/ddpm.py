"""Latent diffusion: a batch of photos becomes latents, is noised, and the network learns to see the noise under a condition.

    training_step → shared_step → get_input (photo → latents, raw condition) → forward (t, encoded condition) → p_losses → configure_optimizers

Rombach et al. 2022 (arXiv 2112.10752); the word that stands for a concept: Gal et al. 2022, textual inversion (arXiv 2208.01618).
Hooks stand in the order in which a batch meets them. Each is a few lines that hand tensors to a function of a sibling file, and calls other
hooks through `self`: override what you need. What does not need latents or a condition is `DDPM`, in `pixels`.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ldm.checkpoints import LoadReport, load_weights
from ldm.checkpoints.construction import weights_to_come
from ldm.checkpoints.keys import NOTES
from ldm.models.autoencoder import VQModelInterface
from ldm.models.diffusion import ancestral, conditioning, frozen_base, noise_schedule, own_files, previews, tiles
from ldm.models.diffusion.conditioning import DiffusionWrapper
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.optim import ParameterPlan, Parts, disabled_train, freeze, with_schedule
from ldm.models.diffusion.pixels import DDPM, Batch
from ldm.models.diffusion.sampling import NoiseOptions
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import default, instantiate_from_config

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion", "Layout2ImgDiffusion", "disabled_train", "uniform_on_device"]

logger = logging.getLogger(__name__)


def uniform_on_device(r1: float, r2: float, shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Uniform numbers between r1 and r2."""
    return torch.empty(tuple(shape), device=device).uniform_(min(r1, r2), max(r1, r2))


class LatentDiffusion(DDPM):
    """Diffusion of latents (B, channels, image_size, image_size) under a condition, with words that can be learnt.

    first_stage_config: pictures ↔ latents, always frozen; cond_stage_config: the condition's encoder, or `__is_first_stage__`, or
    `__is_unconditional__`; cond_stage_key: the condition in a batch; cond_stage_trainable: it is encoded with gradients, within `forward`;
    cond_stage_forward: the encoder's method, if not `encode`; conditioning_key: its way into the network (`conditioning`), None for concat or,
    without concat_mode, crossattn. personalization_config: the manager of learnt words; with it the networks train only under unfreeze_model
    (at model_lr), and the words unless train_embeddings is false; without it the network trains, and the encoder if it may.
    adapter_config: low-rank adapters (`ldm.models.adapters`) that train in the place of the networks' weights, which then stand still.
    z = scale_factor · latent; scale_by_std: 1 / std of the first batch instead. num_timesteps_cond > 1 noises the condition too.
    All else is DDPM's. Raises ValueError for arguments that contradict each other.
    """

    def __init__(
        self, first_stage_config: Any, cond_stage_config: Any, personalization_config: Any = None, num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image", cond_stage_trainable: bool = False, concat_mode: bool = True, cond_stage_forward: str | None = None,
        conditioning_key: str | None = None, scale_factor: float = 1.0, scale_by_std: bool = False, *args: Any, train_embeddings: bool = True,
        adapter_config: Any = None, **kwargs: Any,
    ):
        self.num_timesteps_cond = default(num_timesteps_cond, 1)
        if conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        if cond_stage_config == "__is_unconditional__":
            conditioning_key = None
        ckpt_path, ignore_keys = kwargs.pop("ckpt_path", None), kwargs.pop("ignore_keys", ())
        with weights_to_come(self._file_has_all_weights(ckpt_path, ignore_keys)):
            super().__init__(*args, conditioning_key=conditioning_key, **kwargs)
        if scale_by_std and scale_factor != 1.0:
            raise ValueError(f"scale_by_std works out scale_factor from the first batch, but scale_factor is {scale_factor}: leave one of them out")
        if self.use_positional_encodings:
            raise ValueError("use_positional_encodings: no network of this project takes positional encodings; leave it false")
        if self.embedding_reg_weight > 0 and personalization_config is None:
            raise ValueError(f"embedding_reg_weight is {self.embedding_reg_weight}, but without personalization_config there are no learnt words to hold")
        self.adapters = None if adapter_config is None else self._adapters(adapter_config, cond_stage_trainable)
        self.concat_mode, self.cond_stage_trainable, self.train_embeddings = concat_mode, cond_stage_trainable, train_embeddings
        self.cond_stage_key, self.cond_stage_forward = cond_stage_key, cond_stage_forward
        self.clip_denoised, self.bbox_tokenizer = False, None
        self.num_downs = conditioning.halvings(first_stage_config)
        self.scale_by_std = scale_by_std
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        else:
            self.scale_factor = scale_factor
        if self._file_has_all_weights(ckpt_path, ()):
            first_stage_config = own_files.without_unneeded(first_stage_config, ckpt_path, ignore_keys=ignore_keys, trust_pickle=self.trust_pickle)
        parts = {own_files.FIRST_STAGE: first_stage_config, "cond_stage_model.": cond_stage_config}
        self.parts_with_weights = tuple(part for part, config in parts.items() if own_files.weights(config))
        with weights_to_come(self._file_has_all_weights(ckpt_path, ignore_keys)):
            self.instantiate_first_stage(first_stage_config)
            self.instantiate_cond_stage(cond_stage_config)
        self.base_checkpoint, self.restarted_from_ckpt, self._hash_of_base = ckpt_path, ckpt_path is not None, None
        report = self.init_from_ckpt(ckpt_path, ignore_keys) if ckpt_path is not None else None
        self.embedding_manager = None
        if personalization_config is not None:
            self.embedding_manager = self.instantiate_embedding_manager(personalization_config, self.cond_stage_model)
            if report is not None and not own_files.words(personalization_config):
                self._load_words(report)
        if self.adapters is not None:  # last, so that everything before meets the base under its own names
            self.adapters.attach({"model": self.model, "cond_stage_model": self.cond_stage_model})
        self.parameter_plan(embeddings=train_embeddings, model=self.tunes_networks).apply()

    # -- parts ---------------------------------------------------------------------------------------------------------------------

    def instantiate_first_stage(self, config: Any) -> None:
        self.first_stage_model = own_files.built(config)
        freeze(self.first_stage_model)
        width = getattr(self.first_stage_model, "embed_dim", self.channels)
        if width != self.channels:
            raise ValueError(f"model.params.channels is {self.channels}, but the first stage's latents have {width} (first_stage_config.params.embed_dim)")

    def instantiate_cond_stage(self, config: Any) -> None:
        marked = isinstance(config, str)
        if marked and self.cond_stage_trainable:
            raise ValueError(f"cond_stage_config {config} has nothing of its own to train: set cond_stage_trainable to false")
        self.cond_stage_model = self.first_stage_model if config == "__is_first_stage__" else own_files.built(config)
        if not marked and not self.cond_stage_trainable:
            freeze(self.cond_stage_model)

    def instantiate_embedding_manager(self, config: Any, embedder: Any) -> Any:
        manager = instantiate_from_config(config, embedder=embedder)
        if own_files.words(config):
            manager.load(own_files.words(config), strict_counts=True)
        return manager

    def _adapters(self, config: Any, encoder_has_gradients: bool) -> Any:
        if self.unfreeze_model:
            raise ValueError("model.params.unfreeze_model is true, but adapter_config tunes adapters in the place of the weights: leave one of them out")
        if self.use_ema:
            raise ValueError("model.params.use_ema is true, but averages are of the network's own weights, which adapter_config holds still: set it to false")
        adapters = instantiate_from_config(config)
        if adapters.of_text and not encoder_has_gradients:
            raise ValueError("adapter_config.params.text_rank tunes the text encoder, but cond_stage_trainable is false: it is run without gradients")
        return adapters

    def _load_words(self, report: LoadReport) -> None:
        """Words that the checkpoint brings, which could not be loaded before their start vectors were read from its text encoder."""
        words = ("embedding_manager.",)
        if any(key.startswith(words) for key in report.unexpected):
            load_weights(self, self.base_checkpoint, only_prefix=words[0], may_miss=words, may_be_unexpected=words, trust_pickle=self.trust_pickle)

    def register_schedule(self, given_betas: Sequence[float] | None = None, beta_schedule: str = "linear", timesteps: int = 1000,
                          linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3) -> None:
        super().register_schedule(given_betas, beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self.shorten_cond_schedule = self.num_timesteps_cond > 1
        if self.shorten_cond_schedule:
            self.make_cond_schedule()

    def make_cond_schedule(self) -> None:
        """The step to which the condition is noised, for each step of the data: `num_timesteps_cond` of them, then always the last."""
        self.cond_ids = noise_schedule.condition_steps(self.num_timesteps, self.num_timesteps_cond)

    # -- photo → latents, condition ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def on_train_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before the first step: do the pictures fit the first stage and image_size? And, with scale_by_std, what is the scale of z?"""
        if batch_idx != 0 or self.current_epoch != 0:
            return
        conditioning.check_picture_size(tuple(batch[self.first_stage_key].shape[1:3]), self.num_downs, self.image_size)
        if self.scale_by_std and self.global_step == 0 and not self.restarted_from_ckpt:
            x = super().get_input(batch, self.first_stage_key).to(self.device)
            z = self.get_first_stage_encoding(self.encode_first_stage(x))
            self.scale_factor.copy_(self.trainer.strategy.broadcast(1.0 / z.std()))  # one scale for all processes
            logger.info("scale_factor is %.5g, from the first batch", self.scale_factor)

    def shared_step(self, batch: Batch, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, c = self.get_input(batch, self.first_stage_key)
        return self(x, c, **kwargs)

    @torch.no_grad()
    def get_input(self, batch: Batch, k: str, return_first_stage_outputs: bool = False, force_c_encode: bool = False, cond_key: str | None = None,
                  return_original_cond: bool = False, bs: int | None = None) -> list[Any]:
        """[z, c], then x and its reconstruction, then the condition before it was encoded, where asked for.

        c is encoded here unless the encoder trains; all but the original condition are cut to the first `bs` samples.
        """
        x = super().get_input(batch, k)[:bs].to(self.device)  # (B, C, H, W)
        z = self.get_first_stage_encoding(self.encode_first_stage(x)).detach()  # (B, channels, h, w)
        c = raw = None
        if self.model.conditioning_key is not None:
            raw = self._raw_condition(batch, x, k, cond_key or self.cond_stage_key)
            c = conditioning.first(raw, bs) if bs is not None else raw
            if force_c_encode or not self.cond_stage_trainable:
                c = self.get_learned_conditioning(c)
        shown = [x, self.decode_first_stage(z)] if return_first_stage_outputs else []
        return [z, c, *shown, *([raw] if return_original_cond else [])]

    def _raw_condition(self, batch: Batch, x: Tensor, k: str, cond_key: str) -> Any:
        if cond_key == k:
            return x
        return conditioning.moved(conditioning.raw_condition(batch, cond_key, lambda key: DDPM.get_input(self, batch, key)), self.device)

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Any:
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, encoder_posterior: Any) -> Tensor:
        """scale_factor · a sample of the posterior, or · the latents themselves."""
        return self.scale_factor * (encoder_posterior.sample() if isinstance(encoder_posterior, DiagonalGaussianDistribution) else encoder_posterior)

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, predict_cids: bool = False, force_not_quantize: bool = False) -> Tensor:
        return self.differentiable_decode_first_stage(z, predict_cids, force_not_quantize)

    def differentiable_decode_first_stage(self, z: Tensor, predict_cids: bool = False, force_not_quantize: bool = False) -> Tensor:
        """Pictures of latents z; predict_cids: z are codebook entries, numbers or scores over channels."""
        if predict_cids:
            ids = z.argmax(dim=1) if z.ndim == 4 else z  # (B, h, w)
            z = self.first_stage_model.quantize.get_codebook_entry(ids.long(), shape=None).permute(0, 3, 1, 2).contiguous()
        z = z / self.scale_factor
        if isinstance(self.first_stage_model, VQModelInterface):
            return self.first_stage_model.decode(z, force_not_quantize=predict_cids or force_not_quantize)
        return self.first_stage_model.decode(z)

    def get_learned_conditioning(self, c: Any) -> Any:
        """The condition as the network takes it; learnt words are put in where the encoder lets them."""
        named = self.cond_stage_forward or ("encode" if callable(getattr(self.cond_stage_model, "encode", None)) else None)
        if named is None:
            return self.cond_stage_model(c)
        encode = getattr(self.cond_stage_model, named)
        words = {"embedding_manager": self.embedding_manager} if self.embedding_manager is not None and conditioning.takes_manager(encode) else {}
        encoding = encode(c, **words)
        return encoding.mode() if isinstance(encoding, DiagonalGaussianDistribution) else encoding

    # -- latents → loss ------------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, c: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        t = self.draw_t(x)  # (B,)
        if self.model.conditioning_key is not None:
            if c is None:
                raise ValueError(f"conditioning_key is {self.model.conditioning_key!r}, but the batch came without a condition")
            if self.cond_stage_trainable:
                c = self.get_learned_conditioning(c)
            c = self._condition_at(c, t)
        return self.p_losses(x, c, t, *args, **kwargs)

    def _condition_at(self, c: Any, t: Tensor) -> Any:
        return self.q_sample(c, self.cond_ids.to(t.device)[t]) if self.shorten_cond_schedule else c

    def p_losses(self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of latents x_start noised to t (B,) under `cond`, and its parts to log; noise is drawn first if not given."""
        noise = default(noise, lambda: torch.randn_like(x_start))
        output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)  # (B, channels, h, w)
        distance = self.embedding_manager.embedding_to_coarse_loss() if self.embedding_reg_weight > 0 else None
        if self.logvar.device != t.device:  # where it is not learnt, nobody moves it with the model
            self.logvar = self.logvar.to(t.device)
        loss, logs = self._loss(output, x_start, noise, t, logvar_t=self.logvar[t], embedding_distance=distance)
        if self.learn_logvar:
            logs["logvar"] = self.logvar.mean()
        return loss, logs

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any, return_ids: bool = False) -> Any:
        """The network's answer to x_noisy (B, channels, h, w) at t; cond: a tensor, a list, or a dict of lists (`conditioning`)."""
        answer = self.model(x_noisy, t, **conditioning.as_keywords(cond, self.model.conditioning_key))
        return answer[0] if isinstance(answer, tuple) and not return_ids else answer

    def _predict_eps_from_xstart(self, x_t: Tensor, t: Tensor, pred_xstart: Tensor) -> Tensor:
        return noise_schedule.eps_from_x_0(self.tables, x_t, t, pred_xstart)

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        return noise_schedule.prior_bits_per_dim(self.tables, x_start)

    # -- who trains ----------------------------------------------------------------------------------------------------------------

    @property
    def tunes_networks(self) -> bool:
        """Whether the networks are tuned beside the words, by their weights or by adapters."""
        return self.unfreeze_model or self.adapters is not None

    def parameter_plan(self, *, embeddings: bool, model: bool) -> ParameterPlan:
        """Who trains when the words (embeddings) or the networks (model) do; a model without words trains its networks in any case."""
        parts = Parts(self.model, self.cond_stage_model, self.cond_stage_trainable, self.first_stage_model, self.embedding_manager, self._learnt_logvar())
        if self.adapters is not None:
            parts = parts._replace(encoder_trains=self.adapters.of_text, tunable=self.adapters.parameters_of)
        return parts.plan(words=embeddings, networks=model, learning_rate=self.learning_rate, model_lr=self.model_lr)

    def configure_optimizers(self) -> Any:
        return with_schedule(self._optimizer(embeddings=self.train_embeddings, model=self.tunes_networks), self.scheduler_config)

    def configure_opt_embedding(self) -> torch.optim.Optimizer:
        """First phase of pivotal tuning: only the words learn from here on."""
        if self.embedding_manager is None:
            raise ValueError("a phase in which only words learn needs personalization_config")
        return self._optimizer(embeddings=True, model=False, switch=True)

    def configure_opt_model(self) -> torch.optim.Optimizer:
        """Second phase: the networks learn from here on, and the words unless `train_embeddings` is false."""
        return self._optimizer(embeddings=self.train_embeddings, model=True, switch=True)

    def _optimizer(self, *, embeddings: bool, model: bool, switch: bool = False) -> torch.optim.Optimizer:
        if embeddings and self.embedding_manager is not None and not self.cond_stage_trainable:
            raise ValueError(
                "cond_stage_trainable is false: conditions are encoded without gradients, so words cannot learn. Set it to true, or train_embeddings to false"
            )
        if model and self.embedding_manager is not None and self.model_lr == 0:
            logger.warning("the networks are to be trained, but model_lr is 0: they will stay as they are")
        plan = self.parameter_plan(embeddings=embeddings, model=model)
        if switch:
            plan.apply()
        return plan.optimizer(self.optimizer_config)

    # -- checkpoints ---------------------------------------------------------------------------------------------------------------

    def _stands_on_base(self) -> bool:
        """Whether the networks are, and stay, what `base_checkpoint` holds."""
        if self.adapters is not None:
            return self.base_checkpoint is not None
        moving = any(p.requires_grad for name in ("model", "cond_stage_model") if getattr(self, name) is not None for p in getattr(self, name).parameters())
        return self.base_checkpoint is not None and self.embedding_manager is not None and not self.unfreeze_model and not moving

    def _base_hash(self) -> str:
        if self._hash_of_base is None:  # seconds for a large model, and the weights stand still
            self._hash_of_base = frozen_base.base_hash(self.state_dict())
        return self._hash_of_base

    def state_at_step(self) -> dict[str, Any]:
        """What moves with every batch beside the state dict, under its keys in a checkpoint: one made between two steps has it as it was at the last."""
        return {NOTES: {} if self.embedding_manager is None else {"progressive_counter": int(self.embedding_manager.progressive_counter)}}

    @rank_zero_only
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen networks out, and note what they and the words need to go on. Edits the dictionary, writes no file."""
        checkpoint.update(self.state_at_step())
        if self._stands_on_base():
            checkpoint["state_dict"] = frozen_base.without_base(checkpoint["state_dict"])
            checkpoint[NOTES] |= {"base_path": str(self.base_checkpoint), "base_sha256": self._base_hash()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo on_save_checkpoint. Raises ValueError where the networks loaded now are not those that the checkpoint stands on."""
        notes = checkpoint.get(NOTES, {})
        if self.embedding_manager is not None and "progressive_counter" in notes:
            self.embedding_manager.progressive_counter = notes["progressive_counter"]
        if "base_sha256" in notes:
            checkpoint["state_dict"] = frozen_base.with_base(checkpoint["state_dict"], self.state_dict(), notes, self._base_hash())

    # -- sampling ------------------------------------------------------------------------------------------------------------------

    def p_mean_variance(self, x: Tensor, c: Any, t: Tensor, clip_denoised: bool, return_codebook_ids: bool = False, quantize_denoised: bool = False,
                        return_x0: bool = False, score_corrector: Any = None, corrector_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, ...]:
        """Mean, variance and log-variance of x_{t-1}, then the codebook scores or x0_hat where asked for."""
        output = self.apply_model(x, t, c, return_ids=return_codebook_ids)
        output, scores = output if return_codebook_ids else (output, None)
        if score_corrector is not None:
            if self.parameterization != "eps":
                raise ValueError(f"score_corrector changes predicted noise, but this model's parameterization is {self.parameterization}")
            output = score_corrector.modify_score(self, output, x, t, c, **(corrector_kwargs or {}))
        x0_hat = self._x0_hat(x, t, output)
        x0_hat = x0_hat.clamp(-1.0, 1.0) if clip_denoised else x0_hat
        x0_hat = self.first_stage_model.quantize(x0_hat)[0] if quantize_denoised else x0_hat
        return (*self.q_posterior(x0_hat, x, t), *([scores] if return_codebook_ids else [x0_hat] if return_x0 else []))

    @torch.no_grad()
    def p_sample(self, x: Tensor, c: Any, t: Tensor, clip_denoised: bool = False, repeat_noise: bool = False, return_codebook_ids: bool = False,
                 quantize_denoised: bool = False, return_x0: bool = False, temperature: float = 1.0, noise_dropout: float = 0.0,
                 score_corrector: Any = None, corrector_kwargs: dict[str, Any] | None = None) -> Any:
        """x_{t-1}; beside it the codebook entries or x0_hat where asked for."""
        mean, variance, log_variance, *extra = self.p_mean_variance(x, c, t, clip_denoised, return_codebook_ids, quantize_denoised, return_x0,
                                                                    score_corrector, corrector_kwargs)
        noise = NoiseOptions(repeat_noise, temperature, noise_dropout).draw(x)
        x_prev = ancestral.draw(noise_schedule.Gaussian(mean, variance, log_variance), t, noise)
        return (x_prev, extra[0].argmax(dim=1) if return_codebook_ids else extra[0]) if extra else x_prev

    @torch.no_grad()
    def progressive_denoising(self, cond: Any, shape: Sequence[int], verbose: bool = True, callback: Callable[[int], Any] | None = None,
                              quantize_denoised: bool = False, img_callback: Callable[[Tensor, int], Any] | None = None, mask: Tensor | None = None,
                              x0: Tensor | None = None, temperature: float | Sequence[float] = 1.0, noise_dropout: float = 0.0, score_corrector: Any = None,
                              corrector_kwargs: dict[str, Any] | None = None, batch_size: int | None = None, x_T: Tensor | None = None,
                              start_T: int | None = None, log_every_t: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """An ancestral sample, and what the model took for it (x0_hat) every `log_every_t` steps.

        shape: (C, h, w) with a batch_size, else (B, C, h, w). temperature: of the noise, one for all steps or one a step.
        """
        shape = tuple(shape) if batch_size is None else (batch_size, *shape)
        steps = ancestral.steps_to_take(self.num_timesteps, start_T)
        temperatures = [temperature] * steps if isinstance(temperature, (int, float)) else temperature

        def step(x: Tensor, t: Tensor, i: int) -> tuple[Tensor, Tensor]:
            return self.p_sample(x, self._condition_at(cond, t), t, self.clip_denoised, quantize_denoised=quantize_denoised, return_x0=True,
                                 temperature=temperatures[i], noise_dropout=noise_dropout, score_corrector=score_corrector, corrector_kwargs=corrector_kwargs)

        cond = conditioning.first(cond, shape[0])
        return ancestral.walk(self._start_noise(shape, x_T), steps, step, every=log_every_t or self.log_every_t, callback=callback, img_callback=img_callback,
                              known=ancestral.known_part(mask, x0, self.q_sample), progress="Progressive generation" if verbose else None)

    @torch.no_grad()
    def p_sample_loop(self, cond: Any, shape: Sequence[int], return_intermediates: bool = False, x_T: Tensor | None = None, verbose: bool = True,
                      callback: Callable[[int], Any] | None = None, timesteps: int | None = None, quantize_denoised: bool = False, mask: Tensor | None = None,
                      x0: Tensor | None = None, img_callback: Callable[[Tensor, int], Any] | None = None, start_T: int | None = None,
                      log_every_t: int | None = None) -> Any:
        """An ancestral sample of `shape` (B, C, h, w); with the start noise and every `log_every_t`-th state where asked for.

        timesteps, start_T: only so many of the cleanest steps. mask (B, 1, h, w) and x0: where the mask is 1 the sample keeps x0.
        """
        x_T = self._start_noise(shape, x_T)
        x, seen = ancestral.walk(
            x_T,
            ancestral.steps_to_take(self.num_timesteps, timesteps, start_T),
            lambda x, t, i: (self.p_sample(x, self._condition_at(cond, t), t, self.clip_denoised, quantize_denoised=quantize_denoised), None),
            every=log_every_t or self.log_every_t, callback=callback, img_callback=img_callback,
            known=ancestral.known_part(mask, x0, self.q_sample), progress="Sampling" if verbose else None,
        )
        return (x, [x_T, *seen]) if return_intermediates else x

    def _start_noise(self, shape: Sequence[int], x_T: Tensor | None) -> Tensor:
        return torch.randn(tuple(shape), device=self.betas.device, dtype=self.betas.dtype) if x_T is None else x_T

    @torch.no_grad()
    def sample(self, cond: Any, batch_size: int = 16, return_intermediates: bool = False, x_T: Tensor | None = None, verbose: bool = True,
               timesteps: int | None = None, quantize_denoised: bool = False, mask: Tensor | None = None, x0: Tensor | None = None,
               shape: Sequence[int] | None = None, **kwargs: Any) -> Any:
        """Ancestral samples (batch_size, channels, image_size, image_size), or of `shape`, under the first conditions of `cond`."""
        return self.p_sample_loop(conditioning.first(cond, batch_size), shape or (batch_size, self.channels, self.image_size, self.image_size),
                                  return_intermediates=return_intermediates, x_T=x_T, verbose=verbose, timesteps=timesteps,
                                  quantize_denoised=quantize_denoised, mask=mask, x0=x0)

    @torch.no_grad()
    def sample_log(self, cond: Any, batch_size: int, ddim: bool, ddim_steps: int | None, **kwargs: Any) -> tuple[Tensor, Any]:
        """(samples, what was seen on the way) by DDIM in `ddim_steps`, or ancestrally; kwargs: the sampler's."""
        if not ddim:
            return self.sample(cond, batch_size, return_intermediates=True, **kwargs)
        quantize = {"quantize_x0": kwargs.pop("quantize_denoised")} if "quantize_denoised" in kwargs else {}
        shape = (self.channels, self.image_size, self.image_size)
        return DDIMSampler(self).sample(ddim_steps, batch_size, shape, cond, **{"verbose": False, **quantize, **kwargs})

    # -- pictures ------------------------------------------------------------------------------------------------------------------

    def _get_denoise_row_from_list(self, samples: Sequence[Tensor], desc: str = "", force_no_decoder_quantization: bool = False) -> Tensor:
        """A grid with a row of decoded stages for each sample; desc: words beside a progress bar."""
        stages = previews.shown_with_progress(samples, desc)
        decoded = [self.decode_first_stage(z.to(self.device), force_not_quantize=force_no_decoder_quantization) for z in stages]
        return self._get_rows_from_list([previews.as_picture(x) for x in decoded])

    @torch.no_grad()
    def log_images(self, batch: Batch, N: int = 8, n_row: int = 4, sample: bool = True, ddim_steps: int | None = 200, ddim_eta: float = 1.0,
                   return_keys: Sequence[str] | None = None, quantize_denoised: bool = True, inpaint: bool = False, plot_denoise_rows: bool = False,
                   plot_progressive_rows: bool = False, plot_diffusion_rows: bool = False, *, unconditional_guidance_scale: float = 5.0,
                   **kwargs: Any) -> dict[str, Tensor]:
        """Pictures for the log, at most N of a kind; ddim_steps None: ancestral samples. `samples_scaled` (guided against "") needs a text condition."""
        z, c, x, reconstruction, raw = self.get_input(batch, self.first_stage_key, return_first_stage_outputs=True, force_c_encode=True,
                                                      return_original_cond=True, bs=N)
        N, n_row, ddim = len(x), min(len(x), n_row), ddim_steps is not None
        log = {"inputs": x, "reconstruction": reconstruction}
        if self.model.conditioning_key is not None:
            decoded = self.cond_stage_model.decode(c) if hasattr(self.cond_stage_model, "decode") else None
            log |= previews.condition_pictures(x, raw, decoded, batch.get("human_label"), self.to_rgb)
        options = {"eta": ddim_eta} if ddim else {}

        def drawn(**more: Any) -> tuple[Tensor, Any]:
            with self.ema_scope("log_images"):
                samples, seen = self.sample_log(cond=c, batch_size=N, ddim=ddim, ddim_steps=ddim_steps, **options, **more)
            return self.decode_first_stage(samples), seen["x_inter"] if ddim else seen

        if plot_diffusion_rows:
            log["diffusion_row"] = self._get_denoise_row_from_list(previews.noising_stages(z[:n_row], self.num_timesteps, self.log_every_t, self.q_sample))
        if sample:
            log["samples"], seen = drawn()
            if plot_denoise_rows:
                log["denoise_row"] = self._get_denoise_row_from_list([stage[:n_row] for stage in seen])
            if ddim and conditioning.is_text(raw):
                empty = self.get_learned_conditioning(N * [""])
                log["samples_scaled"], _ = drawn(unconditional_guidance_scale=unconditional_guidance_scale, unconditional_conditioning=empty)
            if quantize_denoised and isinstance(self.first_stage_model, VQModelInterface):
                log["samples_x0_quantized"], _ = drawn(quantize_denoised=True)
            if inpaint:
                log["mask"] = previews.centre_mask(z)
                log["samples_inpainting"], _ = drawn(x0=z, mask=log["mask"])
                log["samples_outpainting"], _ = drawn(x0=z, mask=1.0 - log["mask"])
        if plot_progressive_rows:
            with self.ema_scope("log_images"):
                _, seen = self.progressive_denoising(c, (self.channels, self.image_size, self.image_size), batch_size=N, verbose=False)
            log["progressive_row"] = self._get_denoise_row_from_list(seen)
        return previews.selected({key: previews.as_picture(rows) if rows.ndim == 4 else rows for key, rows in log.items()}, return_keys)

    to_rgb = staticmethod(previews.in_colour)

    # -- pictures larger than the network was made for -------------------------------------------------------------------------------

    meshgrid = staticmethod(tiles.meshgrid)
    delta_border = staticmethod(tiles.distance_to_border)
    get_weighting = staticmethod(tiles.weights)
    get_fold_unfold = staticmethod(tiles.tiling)
    _rescale_annotations = staticmethod(conditioning.rescaled_boxes)


class Layout2ImgDiffusion(LatentDiffusion):
    """Pictures from a layout of labelled boxes. Raises ValueError unless cond_stage_key is coordinates_bbox."""

    def __init__(self, cond_stage_key: str, *args: Any, **kwargs: Any):
        if cond_stage_key != "coordinates_bbox":
            raise ValueError(f"cond_stage_key is {cond_stage_key!r}; a layout is read from coordinates_bbox")
        super().__init__(*args, cond_stage_key=cond_stage_key, **kwargs)

    def log_images(self, batch: Batch, N: int = 8, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As above, and `bbox_image`: the boxes drawn by the data set, which has `conditional_builders[key].plot(box, label of, size)`."""
        logs = super().log_images(batch, N, *args, **kwargs)
        data = self.trainer.datamodule.datasets["train" if self.training else "validation"]
        plot, label = data.conditional_builders[self.cond_stage_key].plot, data.get_textual_label
        boxes = batch[self.cond_stage_key][:N].cpu()
        return {**logs, "bbox_image": torch.stack([plot(box, lambda number: label(data.get_category_id(number)), (256, 256)) for box in boxes])}
