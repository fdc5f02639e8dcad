"""Which noise levels there are and which of them a sampler visits: beta schedules and DDIM steps, as float64 arrays.

Sources: linear and quadratic steps, sigma(eta): Song et al. 2021, DDIM (arXiv 2010.02502), sections 4 and D.2;
cosine schedule: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BETA_SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")


def betas_for_alpha_bar(num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999) -> np.ndarray:
    """The betas (T,) float64 whose cumulative product of (1 - beta) follows `alpha_bar`.

    alpha_bar: what is left of the signal's variance after a fraction u in [0, 1] of the steps; falls with u.
    max_beta caps the last steps, where alpha_bar runs into zero.
    """
    left = np.array([alpha_bar(step / num_diffusion_timesteps) for step in range(num_diffusion_timesteps + 1)], dtype=np.float64)
    return np.clip(1.0 - left[1:] / left[:-1], 0.0, max_beta)


def make_beta_schedule(
    schedule: str, n_timestep: int, linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3
) -> np.ndarray:
    """The betas (n_timestep,) float64 of a named schedule.

    schedule: "linear" (linear in the square root of beta), "cosine" (offset `cosine_s`), "sqrt_linear" (linear in beta)
        or "sqrt" (the square root of the latter).
    Raises ValueError for another name.
    """
    if schedule == "cosine":
        return betas_for_alpha_bar(n_timestep, lambda u: np.cos((u + cosine_s) / (1.0 + cosine_s) * np.pi / 2) ** 2)
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep, dtype=np.float64) ** 2
    if schedule in ("sqrt_linear", "sqrt"):
        betas = np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64)
        return np.sqrt(betas) if schedule == "sqrt" else betas
    raise ValueError(f"beta_schedule is {schedule!r}; it must be one of {', '.join(BETA_SCHEDULES)}")


def make_ddim_timesteps(ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = True) -> np.ndarray:
    """The S = `num_ddim_timesteps` steps (S,) int64, ascending, that a sampler visits of the T = `num_ddpm_timesteps` trained ones.

    ddim_discr_method: "uniform": floor(i T / S) + 1 for i in 0 … S - 1, or every step if S = T;
        "quad": the squares of S even steps up to sqrt(0.8 T), truncated, + 1.
    Raises ValueError for another method, for S outside 1 … T, and where the quadratic rule leaves the trained steps (T < 6).
    """
    S, T = num_ddim_timesteps, num_ddpm_timesteps
    if not 1 <= S <= T:
        raise ValueError(f"{S} sampling steps were asked for; the model was trained with {T}, so it must be 1 to {T}")
    if ddim_discr_method == "uniform":
        # + 1: the last update then ends on alpha_bar_0, which make_ddim_sampling_parameters puts in front
        steps = np.arange(S, dtype=np.int64) * T // S + (1 if S < T else 0)
    elif ddim_discr_method == "quad":
        steps = (np.linspace(0.0, np.sqrt(0.8 * T), S) ** 2).astype(np.int64) + 1
        if steps[-1] >= T:
            raise ValueError(f"quad steps need a model with at least 6 timesteps, this one has {T}: use uniform steps")
    else:
        raise ValueError(f"ddim_discretize is {ddim_discr_method!r}; it must be uniform or quad")
    if verbose:
        logger.info("%d %s sampling steps of %d: %s", S, ddim_discr_method, T, steps)
    return steps


def make_ddim_sampling_parameters(
    alphacums: Tensor | np.ndarray, ddim_timesteps: Sequence[int] | np.ndarray, eta: float, verbose: bool = True
) -> tuple[Tensor | np.ndarray, Tensor | np.ndarray, np.ndarray]:
    """(sigmas, alphas, alphas_prev), each (S,), of a DDIM chain over the steps `ddim_timesteps`.

    alphacums: alpha_bar (T,). alphas are its values at the steps, in its own type; alphas_prev those one step nearer to
    the data, beginning with alpha_bar_0, float64 array; sigmas, eq. 16 of the DDIM paper, are float64 and of the type of alphacums:
    sigma = eta sqrt((1 - a_prev) / (1 - a)) sqrt(1 - a / a_prev).
    """
    steps = np.asarray(ddim_timesteps, dtype=np.int64)
    before = np.concatenate([[0], steps[:-1]])
    is_tensor = isinstance(alphacums, Tensor)
    alpha_bar = np.asarray(alphacums.detach().cpu() if is_tensor else alphacums, dtype=np.float64)
    a, a_prev = alpha_bar[steps], alpha_bar[before]
    sigmas = eta * np.sqrt((1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev))
    if verbose:
        logger.info("alpha_bar at the sampling steps: %s; before them: %s; sigma for eta = %s: %s", a, a_prev, eta, sigmas)
    if is_tensor:
        return torch.from_numpy(sigmas).to(alphacums.device), alphacums[torch.from_numpy(steps).to(alphacums.device)], a_prev
    return sigmas, alphacums[steps], a_prev
