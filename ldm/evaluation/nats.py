"""Drift in nats between two models, prompt by prompt: what `ldm.regularization.drift` defines, asked of whole models."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.evaluation.metrics import noise_of
from ldm.evaluation.sampling import encode_prompts, latent_shape, start_noise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.regularization.drift import DriftInNats, FrozenChain, drift_in_nats, frozen_chain

NATS_SEED = 21_000_000  # far from the seeds of samples and of the other drift's draws


Chains = dict[str, FrozenChain]


def chains_by_prompt(
    frozen: LatentDiffusion, prompts: Sequence[str], *, trajectories: int = 32, draws: int = 32, blurred_outputs: bool = False, seed: int = NATS_SEED,
    batch_size: int = 64, progress: str | None = None,
) -> Chains:  # fmt: skip
    """Prompt → the frozen model's trajectories, as far as they are needed to measure any tuned model.

    trajectories: a prompt, all T steps long; draws: timesteps at which each is looked at. progress: words beside a progress bar.
    """
    chains = {}
    for prompt in prompts:
        z_T = start_noise(range(seed, seed + trajectories), latent_shape(frozen)).to(frozen.device)
        chains[prompt] = frozen_chain(
            _denoiser(frozen, prompt, batch_size), frozen.alphas_cumprod, z_T, draws=draws, generator=torch.Generator().manual_seed(seed + trajectories),
            blurred_outputs=blurred_outputs, progress=None if progress is None else f"{progress}: {prompt}",
        )  # fmt: skip
    return chains


def nats_by_prompt(tuned: LatentDiffusion, chains: Chains, *, batch_size: int = 64) -> dict[str, DriftInNats]:
    """Prompt → the divergence of the tuned model's sampling chain from the frozen one's, as far as these trajectories tell it."""
    return {prompt: drift_in_nats(_denoiser(tuned, prompt, batch_size), chain) for prompt, chain in chains.items()}


def _denoiser(model: LatentDiffusion, prompt: str, batch_size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """ε_θ(z_t, t, τ_θ(prompt)), the prompt encoded once."""
    c = encode_prompts(model, [prompt])

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        answers = []
        for z, step in zip(z_t.to(model.device).split(batch_size), t.to(model.device).split(batch_size), strict=True):
            answers.append(noise_of(model, model.apply_model(z, step, c.expand(len(z), -1, -1)), z, step))
        return torch.cat(answers)

    return denoise
