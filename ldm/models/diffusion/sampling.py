"""What the samplers share: the steps they visit, guidance, one update towards the data, and the walk from noise to a sample.

x_prev = sqrt(a_prev) x0_hat + sqrt(1 - a_prev - sigma^2) eps + sigma noise, x0_hat = (x - sqrt(1 - a) eps) / sqrt(a)
    Song et al. 2021, DDIM (arXiv 2010.02502), eq. 12
eps = eps_u + s (eps_c - eps_u)
    classifier-free guidance, Ho & Salimans 2022 (arXiv 2207.12598), in its usual scaling
Legend: x latents (B, C, h, w) · a alpha_bar at this step, a_prev at the next one towards the data · t (B,) step of the diffusion · index: the
place of a step among the sampler's, 0 the cleanest.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion import conditioning as conditions
from ldm.modules.diffusionmodules.util import make_ddim_sampling_parameters, make_ddim_timesteps, noise_like

logger = logging.getLogger(__name__)

MODEL_TABLES = (
    "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)
Intermediates = dict[str, list[Tensor]]


class StepSizes(NamedTuple):
    """Each (S,): alpha_bar at the steps and one step nearer to the data, sqrt(1 - alpha_bar), and the noise added per step."""

    alphas: Tensor
    alphas_prev: Tensor
    sqrt_one_minus_alphas: Tensor
    sigmas: Tensor

    def at(self, index: int) -> StepSizes:
        """The four numbers of one step, each a tensor without dimensions."""
        return StepSizes(*(column[index] for column in self))


class NoiseOptions(NamedTuple):
    """How the noise of a step is drawn.

    repeat: the same for the whole batch; temperature: its factor; dropout: share of its entries set to 0;
    normals: where it is taken from instead of the global generator, one tensor (B, C, h, w) a draw.
    """

    repeat: bool = False
    temperature: float = 1.0
    dropout: float = 0.0
    normals: Iterator[Tensor] | None = None

    def draw(self, x: Tensor) -> Tensor:
        """Noise for x, its shape, device and dtype."""
        noise = noise_like(x.shape, x.device, self.repeat) if self.normals is None else next(self.normals)
        noise = noise.to(x) * self.temperature
        return F.dropout(noise, p=self.dropout) if self.dropout > 0 else noise


def update(x: Tensor, eps: Tensor, sizes: StepSizes, noise: Tensor, quantize: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """One step: (x_prev, x0_hat). sizes: of this step; noise: standard normal; quantize: applied to x0_hat before it is used."""
    x0_hat = (x - sizes.sqrt_one_minus_alphas * eps) / sizes.alphas.sqrt()
    if quantize is not None:
        x0_hat = quantize(x0_hat)
    # rounding can bring the difference just below 0 where sigma^2 = 1 - a_prev
    direction = (1.0 - sizes.alphas_prev - sizes.sigmas**2).clamp_min(0.0).sqrt() * eps
    return sizes.alphas_prev.sqrt() * x0_hat + direction + sizes.sigmas * noise, x0_hat


def quantizer(model: Any) -> Callable[[Tensor], Tensor]:
    """The model's first stage as a function that moves latents to their nearest codebook entries."""
    return lambda x0_hat: model.first_stage_model.quantize(x0_hat)[0]


def predict_eps(
    model: Any,
    x: Tensor,
    t: Tensor,
    c: Any,
    *,
    scale: float = 1.0,
    unconditional: Any = None,
    score_corrector: Any = None,
    corrector_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """The noise that the model sees in x, guided away from `unconditional` where there is one and `scale` is not 1.

    Both predictions come from one batch, the unconditional ones first. score_corrector: an object with
    `modify_score(model, eps, x, t, c, **corrector_kwargs)`. Raises ValueError for a corrector on a model that predicts x0.
    """
    if unconditional is None or scale == 1.0:
        answer = model.apply_model(x, t, c)
    else:
        both = model.apply_model(torch.cat([x, x]), torch.cat([t, t]), conditions.stacked(unconditional, c))
        without, with_c = both.chunk(2)
        answer = without + scale * (with_c - without)
    is_x0 = getattr(model, "parameterization", "eps") == "x0"
    if score_corrector is not None:
        if is_x0:
            raise ValueError("score_corrector changes predicted noise, but this model's parameterization is x0")
        answer = score_corrector.modify_score(model, answer, x, t, c, **(corrector_kwargs or {}))
    return model._predict_eps_from_xstart(x, t, answer) if is_x0 else answer


class LatentSampler:
    """A sampler with few steps; a subclass says what a step is.

    model: with `apply_model`, `q_sample`, `num_timesteps` and the tables of `noise_schedule`; device and dtype are those of its tables.
    schedule: kept for callers that read it.
    """

    name = "sampler"

    def __init__(self, model: Any, schedule: str = "linear", **kwargs: Any):
        self.model = model
        self.ddpm_num_timesteps = model.num_timesteps
        self.schedule = schedule
        _warn_of(kwargs, type(self).__name__)

    def register_buffer(self, name: str, attr: Any) -> None:
        """Keep `attr` as the attribute `name`; a tensor is moved to the model's device."""
        setattr(self, name, attr.to(self.model.alphas_cumprod.device) if isinstance(attr, Tensor) else attr)

    def make_schedule(self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = True) -> None:
        """Choose the steps and their sizes. ddim_num_steps: exactly so many, 1 to T; ddim_eta: 0 adds no noise, 1 as much as DDPM.

        ddim_discretize: "uniform", or "quad": closer together near the data. Raises ValueError for anything else.
        """
        self.ddim_timesteps = make_ddim_timesteps(ddim_discretize, ddim_num_steps, self.ddpm_num_timesteps, verbose=verbose)
        alphas_cumprod = self.model.alphas_cumprod.detach().float()
        self.register_buffer("betas", self.model.betas.detach().float())
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        for name in MODEL_TABLES:
            self.register_buffer(name, getattr(self.model, name).detach().float())
        sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(alphas_cumprod.cpu(), self.ddim_timesteps, ddim_eta, verbose=verbose)
        self.register_buffer("ddim_sigmas", sigmas.float())
        self.register_buffer("ddim_alphas", alphas)
        self.register_buffer("ddim_alphas_prev", torch.as_tensor(alphas_prev, dtype=torch.float32))
        self.register_buffer("ddim_sqrt_one_minus_alphas", (1.0 - alphas).sqrt())
        before = self.alphas_cumprod_prev
        spread = (1.0 - before) / (1.0 - alphas_cumprod) * (1.0 - alphas_cumprod / before)
        self.register_buffer("ddim_sigmas_for_original_num_steps", ddim_eta * spread.sqrt())

    def step_sizes(self, use_original_steps: bool = False) -> StepSizes:
        """Those of the chosen steps, or of all T steps of the diffusion."""
        if use_original_steps:
            return StepSizes(
                self.alphas_cumprod, self.alphas_cumprod_prev, self.sqrt_one_minus_alphas_cumprod, self.ddim_sigmas_for_original_num_steps
            )
        return StepSizes(self.ddim_alphas, self.ddim_alphas_prev, self.ddim_sqrt_one_minus_alphas, self.ddim_sigmas)

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        callback: Callable[[int], Any] | None = None,
        normals_sequence: Sequence[Tensor] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        quantize_x0: bool = False,
        eta: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        verbose: bool = True,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Intermediates]:
        """Samples (batch_size, C, h, w) in S steps, and what was seen on the way: lists `x_inter` and `pred_x0`, from the start noise on.

        shape: (C, h, w). mask (B, 1, h, w) and x0: where the mask is 1 the sample keeps x0. x_T: the start noise. normals_sequence: the noise of
        the steps, one tensor a draw. log_every_t: distance of the kept states, in steps. verbose: progress bar and log of the schedule.
        callback(i) and img_callback(x0_hat, i) are called after step i. Raises ValueError for a conditioning of another batch size.
        """
        _warn_of(kwargs, f"{type(self).__name__}.sample")
        given = conditions.size(conditioning)
        if given is not None and given != batch_size:
            raise ValueError(f"conditioning is for {given} samples, but batch_size is {batch_size}")
        self.make_schedule(ddim_num_steps=S, ddim_eta=eta, verbose=verbose)
        return self._sampling(
            conditioning,
            (batch_size, *shape),
            x_T=x_T,
            callback=callback,
            quantize_denoised=quantize_x0,
            mask=mask,
            x0=x0,
            img_callback=img_callback,
            log_every_t=log_every_t,
            temperature=temperature,
            noise_dropout=noise_dropout,
            score_corrector=score_corrector,
            corrector_kwargs=corrector_kwargs,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            normals_sequence=normals_sequence,
            verbose=verbose,
        )

    def _sampling(self, cond: Any, shape: Sequence[int], **options: Any) -> tuple[Tensor, Intermediates]:
        """The subclass's walk over the chosen steps."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it walks")

    def _steps(self, use_original_steps: bool, timesteps: int | None) -> np.ndarray:
        """The steps to visit, ascending: all of them, or the first `timesteps`."""
        steps = np.arange(self.ddpm_num_timesteps) if use_original_steps else self.ddim_timesteps
        if timesteps is not None and not 0 <= timesteps <= len(steps):
            raise ValueError(f"{timesteps} steps were asked for, but there are {len(steps)}")
        return steps[:timesteps]

    def _walk(
        self,
        step: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
        shape: Sequence[int],
        steps: np.ndarray,
        *,
        x_T: Tensor | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        callback: Callable[[int], Any] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        log_every_t: int = 100,
        verbose: bool = True,
    ) -> tuple[Tensor, Intermediates]:
        """Go through `steps` from the noisiest to the cleanest with `step(x, t, index) -> (x_prev, x0_hat)`."""
        if mask is not None and x0 is None:
            raise ValueError("a mask was given without x0, which it says to keep")
        table = self.model.alphas_cumprod
        x = torch.randn(tuple(shape), device=table.device, dtype=table.dtype) if x_T is None else x_T
        seen: Intermediates = {"x_inter": [x], "pred_x0": [x]}
        for i, timestep in enumerate(tqdm(steps[::-1], desc=self.name, disable=not verbose)):
            index = len(steps) - 1 - i
            t = torch.full((shape[0],), int(timestep), device=x.device, dtype=torch.long)
            if mask is not None:
                x = mask * self.model.q_sample(x0, t) + (1.0 - mask) * x
            x, x0_hat = step(x, t, index)
            if callback:
                callback(i)
            if img_callback:
                img_callback(x0_hat, i)
            if index % log_every_t == 0 or i == 0:
                seen["x_inter"].append(x)
                seen["pred_x0"].append(x0_hat)
        return x, seen


def _warn_of(unknown: dict[str, Any], where: str) -> None:
    if unknown:
        logger.warning("%s ignores %s", where, ", ".join(sorted(unknown)))
