"""Pictures from a model: each from noise of its own, so that batch size, device and neighbours do not matter.

A picture's start noise and the noise of its steps come from one CPU generator with the picture's seed. Guidance is one network call for both
halves of a batch (`ldm.models.diffusion.sampling.predict_eps`).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.sampling import decode_latents, start_noise
from ldm.models.diffusion import ancestral
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dpm_solver import DPMSolverSampler, scheduler_class
from ldm.models.diffusion.noise_schedule import Gaussian
from ldm.models.diffusion.plms import PLMSSampler

SAMPLERS = {"DDIM": DDIMSampler, "PLMS": PLMSSampler, "DPM-Solver++": DPMSolverSampler}
PRECISIONS = ("full", "autocast")
LARGEST_SEED = 2**32 - 1
DECODED_AT_ONCE = 4  # decoding a latent of 64×64 takes gigabytes


@dataclass(frozen=True)
class Settings:
    """How latents are drawn. eta: 0 adds no noise, 1 as much as DDPM; scale 1.0: no guidance; precision autocast: fp16 on CUDA, full elsewhere.

    Raises ValueError for values that no sampler takes.
    """

    sampler: str = "DDIM"
    steps: int = 50
    eta: float = 0.0
    scale: float = 1.0
    precision: str = "full"

    def __post_init__(self):
        if self.sampler not in SAMPLERS:
            raise ValueError(f"the sampler is {self.sampler}; it must be one of {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps were asked for; it must be at least 1")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta is {self.eta:g}; it must be from 0 (no added noise) to 1 (as much as DDPM adds)")
        if self.sampler != "DDIM" and self.eta != 0.0:
            raise ValueError(f"eta is {self.eta:g}, but {self.sampler} adds no noise: leave eta at 0, or take DDIM")
        if self.sampler == "DPM-Solver++":
            scheduler_class()  # said before a model is loaded


class PictureNoise:
    """The noise of a batch, picture by picture: row i depends on seeds[i] alone. Iterating gives the noise of one step after another.

    start: (B, C, h, w) fp32 on the CPU; start_seed: one start noise for all pictures in the place of their own.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], start_seed: int | None = None):
        self.shape = shape
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        own = self.draw()
        self.start = own if start_seed is None else start_noise([start_seed] * len(seeds), shape)

    def draw(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.draw()


def seeds_from(first: int, count: int) -> list[int]:
    """The seeds of `count` pictures. Raises ValueError for seeds that are not 32-bit numbers."""
    if not 0 <= first <= LARGEST_SEED - count:
        raise ValueError(f"--seed is {first}; it must be a whole number from 0 to {LARGEST_SEED - count} ({count} seeds are counted on from it)")
    return list(range(first, first + count))


def check_steps(model: LatentDiffusion, settings: Settings) -> None:
    """Raises ValueError for more steps than the model was trained with."""
    if settings.steps > model.num_timesteps:
        raise ValueError(f"{settings.steps} steps were asked for; this model was trained with {model.num_timesteps}, so it must be 1 to {model.num_timesteps}")


def effective(precision: str, device: torch.device) -> str:
    """The precision that a device really computes in."""
    return precision if device.type == "cuda" else "full"


def precision_scope(device: torch.device, precision: str) -> AbstractContextManager:
    """16-bit arithmetic where the settings ask for it and the device is made for it."""
    return torch.autocast(device.type, dtype=torch.float16) if effective(precision, device) == "autocast" else nullcontext()


@torch.no_grad()
def draw_latents(
    model: LatentDiffusion, noise: PictureNoise, settings: Settings, *, conditioning: Any, unconditional: Any = None,
    callback: Callable[[int], Any] | None = None,
) -> Tensor:
    """Latents (B, C, h, w) by the sampler of the settings; callback(i) is called after step i. conditioning: what `apply_model` takes."""
    sampler = SAMPLERS[settings.sampler](model)
    with precision_scope(model.device, settings.precision):
        latents, _ = sampler.sample(
            S=settings.steps,
            batch_size=len(noise.generators),
            shape=noise.shape,
            conditioning=conditioning,
            x_T=noise.start.to(model.device),
            eta=settings.eta,
            verbose=False,
            callback=callback,
            normals_sequence=noise,
            unconditional_guidance_scale=settings.scale,
            unconditional_conditioning=unconditional,
        )
    return latents


@torch.no_grad()
def draw_latents_ancestrally(model: LatentDiffusion, noise: PictureNoise, *, conditioning: Any, callback: Callable[[int], Any] | None = None) -> Tensor:
    """Latents (B, C, h, w) by all T steps of the diffusion (`ancestral`)."""
    normals = iter(noise)

    def step(x: Tensor, t: Tensor, i: int) -> tuple[Tensor, None]:
        mean, variance, log_variance = model.p_mean_variance(x, conditioning, t, model.clip_denoised)
        return ancestral.draw(Gaussian(mean, variance, log_variance), t, next(normals).to(x)), None

    T = model.num_timesteps
    return ancestral.walk(noise.start.to(model.device), T, step, every=T, callback=callback)[0]


def pictures_of(model: LatentDiffusion, latents: Tensor, precision: str = "full") -> Tensor:
    """(N, 3, H, W) fp32 in [-1, 1] on the CPU. Raises ValueError for values that are no numbers."""
    with precision_scope(model.device, precision):
        pictures = decode_latents(model, latents, batch_size=DECODED_AT_ONCE)
    if not pictures.isfinite().all():
        raise ValueError(
            "the model drew values that are no numbers: "
            + ("take --precision full" if precision == "autocast" else "its weights are broken, or of another model than the config's")
        )
    return pictures
