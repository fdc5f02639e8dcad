"""Samples for comparing models: (prompt, seed) pairs, the same start noise for every model.

Each picture's noise comes from a CPU generator with its own seed, so that neither the device nor the batch size nor the other pictures matter.
DDIM with η = 0 (Song et al. 2020, arXiv 2010.02502) and classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. guidance_scale 1.0: without guidance."""

    steps: int = 50
    guidance_scale: float = 5.0
    batch_size: int = 64

    def __post_init__(self):
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"sampling needs at least one step and one picture a batch; got steps {self.steps}, batch_size {self.batch_size}")


def start_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """(len(seeds), C, h, w) fp32 on the CPU; row i depends on seeds[i] alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def latent_shape(model: LatentDiffusion) -> tuple[int, int, int]:
    """(C, h, w) of the model's latents."""
    side = model.image_size
    height, width = (side, side) if isinstance(side, int) else side
    return model.channels, height, width


@contextmanager
def counter_kept(model: LatentDiffusion) -> Iterator[None]:
    """Encoding a prompt advances the counter of progressive words; looking at a model must not change which words it uses."""
    manager = getattr(model, "embedding_manager", None)
    before = getattr(manager, "progressive_counter", None)
    try:
        yield
    finally:
        if before is not None:
            manager.progressive_counter = before


@torch.no_grad()
def encode_prompts(model: LatentDiffusion, prompts: Sequence[str]) -> Tensor:
    """(B, L, d): one row a prompt, by the model's own text encoder; each different prompt is encoded once."""
    different = list(dict.fromkeys(prompts))
    with counter_kept(model):
        encoded = {prompt: model.get_learned_conditioning([prompt]) for prompt in different}
    return torch.cat([encoded[prompt] for prompt in prompts])


@torch.no_grad()
def sample_latents(model: LatentDiffusion, pairs: Sequence[tuple[str, int]], sampling: Sampling, *, progress: str | None = "sampling") -> Tensor:
    """Latents drawn for (prompt, seed) pairs, (len(pairs), C, h, w) fp32 on the CPU.

    progress: what the progress bar is called, which counts network passes; None for no bar.
    """
    shape = latent_shape(model)
    guided = sampling.guidance_scale != 1.0
    batches = [pairs[start : start + sampling.batch_size] for start in range(0, len(pairs), sampling.batch_size)]
    drawn = []
    with tqdm(total=sampling.steps * len(batches), desc=progress, disable=progress is None, leave=False) as bar:
        for batch in batches:
            latents, _ = DDIMSampler(model).sample(
                S=sampling.steps,
                batch_size=len(batch),
                shape=shape,
                conditioning=encode_prompts(model, [prompt for prompt, _ in batch]),
                x_T=start_noise([seed for _, seed in batch], shape).to(model.device),
                eta=0.0,
                verbose=False,
                callback=lambda _step: bar.update(),
                unconditional_guidance_scale=sampling.guidance_scale,
                unconditional_conditioning=encode_prompts(model, [""] * len(batch)) if guided else None,
            )
            drawn.append(latents.float().cpu())
    return torch.cat(drawn)


@torch.no_grad()
def decode_latents(model: LatentDiffusion, latents: Tensor, *, batch_size: int = 16) -> Tensor:
    """Pictures of latents, (N, 3, H, W) fp32 in [-1, 1] on the CPU."""
    pictures = [model.decode_first_stage(chunk.to(model.device)).float().cpu().clamp(-1, 1) for chunk in latents.split(batch_size)]
    return torch.cat(pictures)


def sample_pictures(model: LatentDiffusion, pairs: Sequence[tuple[str, int]], sampling: Sampling, *, progress: str | None = "sampling") -> Tensor:
    """Pictures drawn for (prompt, seed) pairs, (len(pairs), 3, H, W) fp32 in [-1, 1] on the CPU."""
    return decode_latents(model, sample_latents(model, pairs, sampling, progress=progress))
