"""Drift in nats between two models, prompt by prompt: what `ldm.regularization.drift` defines, asked of whole models."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.evaluation.metrics import noise_of
from ldm.evaluation.sampling import encode_prompts, latent_shape, start_noise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.regularization.drift import DriftInNats, drift_in_nats

NATS_SEED = 21_000_000  # far from the seeds of samples and of the other drift's draws


def nats_by_prompt(
    frozen: LatentDiffusion, tuned: LatentDiffusion, prompts: Sequence[str], *, trajectories: int = 32, draws: int = 32, blurred_outputs: bool = False,
    seed: int = NATS_SEED, progress: str | None = None,
) -> dict[str, DriftInNats]:  # fmt: skip
    """Prompt → the divergence of the tuned model's sampling chain from the frozen one's, as far as these trajectories tell it.

    trajectories: of the frozen model, a prompt, all T steps long; draws: timesteps on each at which the tuned model is asked. The same seed gives
    every tuned model the same trajectories. progress: words beside a progress bar. Raises ValueError where the two models' schedules differ.
    """
    if not torch.equal(frozen.alphas_cumprod.cpu(), tuned.alphas_cumprod.cpu()):
        raise ValueError("drift in nats compares two models on one noise schedule; these have different alphas_cumprod (linear_start, linear_end, timesteps)")
    nats = {}
    for prompt in prompts:
        z_T = start_noise(range(seed, seed + trajectories), latent_shape(frozen)).to(frozen.device)
        words = None if progress is None else f"{progress}: {prompt}"
        nats[prompt] = drift_in_nats(
            _denoiser(frozen, prompt), _denoiser(tuned, prompt), frozen.alphas_cumprod, z_T, draws=draws,
            generator=torch.Generator().manual_seed(seed + trajectories), blurred_outputs=blurred_outputs, progress=words,
        )  # fmt: skip
    return nats


def _denoiser(model: LatentDiffusion, prompt: str) -> Callable[[Tensor, Tensor], Tensor]:
    """ε_θ(z_t, t, τ_θ(prompt)), the prompt encoded once."""
    c = encode_prompts(model, [prompt])

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        z_t, t = z_t.to(model.device), t.to(model.device)
        return noise_of(model, model.apply_model(z_t, t, c.expand(len(z_t), -1, -1)), z_t, t)

    return denoise
