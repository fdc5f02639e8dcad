"""How noise is added, and what that says about the way back: the tables of a diffusion and the Gaussians read from them.

q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), abar_t = prod_{s <= t} (1 - beta_s)            Ho et al. 2020 (arXiv 2006.11239), eq. 4
q(x_{t-1} | x_t, x_0) = N(mu(x_t, x_0), betatilde_t I)                                             eq. 6 and 7
Legend: x_0 data · x_t its noisy version · eps the noise in it · t (B,) int64, 0 … T - 1.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.modules.diffusionmodules.util import extract_into_tensor, mean_flat
from ldm.modules.distributions.distributions import normal_kl

PARAMETERIZATIONS = ("eps", "x0")
# betatilde_0 is 0: the log of the variance is clipped where it would be -inf.
SMALLEST_VARIANCE = 1e-20


class Tables(NamedTuple):
    """What a diffusion of T steps needs to know of its betas, each (T,) float32. The names are those of the saved buffers."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean (B, C, H, W); variance and its natural logarithm (B, 1, 1, 1)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


def make_tables(betas: Sequence[float] | np.ndarray, v_posterior: float = 0.0) -> Tables:
    """The tables of `betas` (T,), computed in float64 and kept in float32.

    v_posterior: sigma_t^2 = (1 - v) betatilde_t + v beta_t, between the two extremes of section 3.2 (Ho et al.).
    Raises ValueError unless there are at least two steps with 0 < beta < 1.
    """
    beta = np.asarray(betas, dtype=np.float64)
    if beta.ndim != 1 or len(beta) < 2 or not ((beta > 0) & (beta < 1)).all():
        raise ValueError(f"a noise schedule needs at least two betas between 0 and 1, got {beta.shape} of {beta.min():g} to {beta.max():g}")
    alpha = 1.0 - beta
    abar = np.cumprod(alpha)
    abar_prev = np.concatenate([[1.0], abar[:-1]])
    variance = (1.0 - v_posterior) * beta * (1.0 - abar_prev) / (1.0 - abar) + v_posterior * beta
    columns = Tables(
        betas=beta,
        alphas_cumprod=abar,
        alphas_cumprod_prev=abar_prev,
        sqrt_alphas_cumprod=np.sqrt(abar),
        sqrt_one_minus_alphas_cumprod=np.sqrt(1.0 - abar),
        log_one_minus_alphas_cumprod=np.log(1.0 - abar),
        sqrt_recip_alphas_cumprod=np.sqrt(1.0 / abar),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1.0 / abar - 1.0),
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(np.maximum(variance, SMALLEST_VARIANCE)),
        posterior_mean_coef1=beta * np.sqrt(abar_prev) / (1.0 - abar),
        posterior_mean_coef2=(1.0 - abar_prev) * np.sqrt(alpha) / (1.0 - abar),
    )
    return Tables(*(torch.tensor(column, dtype=torch.float32) for column in columns))


def vlb_weights(tables: Tables, parameterization: str) -> Tensor:
    """What a squared error at step t counts in the variational bound, (T,): eps: beta^2 / (2 sigma^2 alpha (1 - abar)), eq. 12 of Ho et al.

    x0: sqrt(abar) / (2 (2 - abar)); no weight of the bound, but the one that published models were trained with.
    Step 0 has no variance and takes the weight of step 1. Raises ValueError for another parameterization.
    """
    if parameterization == "eps":
        alpha = tables.alphas_cumprod / tables.alphas_cumprod_prev  # 1 - beta would lose digits where beta is near 1
        weights = tables.betas**2 / (2.0 * tables.posterior_variance * alpha * (1.0 - tables.alphas_cumprod))
    elif parameterization == "x0":
        weights = 0.5 * tables.alphas_cumprod.sqrt() / (2.0 - tables.alphas_cumprod)
    else:
        raise ValueError(f"parameterization is {parameterization!r}; it must be one of {', '.join(PARAMETERIZATIONS)}")
    weights[0] = weights[1]
    return weights


def condition_steps(timesteps: int, condition_timesteps: int) -> Tensor:
    """The step to which a condition is noised for each step of the data, (timesteps,): `condition_timesteps` even ones, then always the last.

    Raises ValueError for more of them than steps.
    """
    if not 1 <= condition_timesteps <= timesteps:
        raise ValueError(f"num_timesteps_cond is {condition_timesteps}; it must be 1 to timesteps ({timesteps})")
    steps = torch.full((timesteps,), timesteps - 1, dtype=torch.long)
    steps[:condition_timesteps] = torch.linspace(0, timesteps - 1, condition_timesteps).round().long()
    return steps


def _weighted(a: Tensor, x: Tensor, b: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """a[t] x + b[t] y."""
    return extract_into_tensor(a, t, x.shape) * x + extract_into_tensor(b, t, x.shape) * y


def q_sample(tables: Tables, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; x_0, eps and the result (B, C, H, W)."""
    return _weighted(tables.sqrt_alphas_cumprod, x_0, tables.sqrt_one_minus_alphas_cumprod, eps, t)


def q_mean_variance(tables: Tables, x_0: Tensor, t: Tensor) -> Gaussian:
    """q(x_t | x_0)."""
    return Gaussian(
        extract_into_tensor(tables.sqrt_alphas_cumprod, t, x_0.shape) * x_0,
        extract_into_tensor(1.0 - tables.alphas_cumprod, t, x_0.shape),
        extract_into_tensor(tables.log_one_minus_alphas_cumprod, t, x_0.shape),
    )


def x_0_from_eps(tables: Tables, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The x_0 that makes x_t when `eps` is added."""
    return _weighted(tables.sqrt_recip_alphas_cumprod, x_t, -tables.sqrt_recipm1_alphas_cumprod, eps, t)


def eps_from_x_0(tables: Tables, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
    """The noise that makes x_t out of `x_0`."""
    difference = extract_into_tensor(tables.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t - x_0
    return difference / extract_into_tensor(tables.sqrt_recipm1_alphas_cumprod, t, x_t.shape)


def q_posterior(tables: Tables, x_0: Tensor, x_t: Tensor, t: Tensor) -> Gaussian:
    """q(x_{t-1} | x_t, x_0), with the variance that `v_posterior` chose."""
    return Gaussian(
        _weighted(tables.posterior_mean_coef1, x_0, tables.posterior_mean_coef2, x_t, t),
        extract_into_tensor(tables.posterior_variance, t, x_t.shape),
        extract_into_tensor(tables.posterior_log_variance_clipped, t, x_t.shape),
    )


def prior_bits_per_dim(tables: Tables, x_0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)) in bits per dimension, (B,): what the last step still knows of the data."""
    last = torch.full((x_0.shape[0],), len(tables.betas) - 1, dtype=torch.long, device=x_0.device)
    end = q_mean_variance(tables, x_0, last)
    return mean_flat(normal_kl(end.mean, end.log_variance, 0.0, 0.0)) / math.log(2.0)
