"""Drift in nats: the KL divergence between the sampling chains of the frozen and the tuned network, estimated for one prompt.

T-step ancestral sampling, unguided and unclipped, with the schedule's posterior variances σ_t², is a Markov chain from z_{T−1} ~ N(0, I) for both
networks. For the chains down to the state at t = 0 (Ho et al. 2020, arXiv 2006.11239, equation 8, with both networks in place of posterior and network)

    KL(chain_θ₀ ‖ chain_θ) = Σ_{t=1}^{T−1} vlb_t · E_{z_t ~ chain_θ₀} ‖ε_θ − ε_θ₀‖²,    vlb_t = β_t² / (2 σ_t² α_t (1 − ᾱ_t)),    ‖·‖² summed over (C, h, w).

By the data-processing inequality it bounds the divergence between the two models' states at t = 0 for that prompt. The last step adds no noise, so
pictures themselves have no finite bound; with vlb_0 := vlb_1 the sum bounds pictures blurred by σ₀ = √β_0. Guidance and samplers of few steps are
other chains.
"""
import math
from statistics import NormalDist
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.regularization.losses import vlb_weights

FEWEST_TRAJECTORIES = 4  # below, Student's quantile is not met by the expansion

Denoiser = Callable[[Tensor, Tensor], Tensor]  # z_t (B, C, h, w), t (B,) → ε (B, C, h, w), for the one prompt


class FrozenChain(NamedTuple):
    """Where trajectories of the frozen network are looked at, and what it says there: on the CPU, one row a draw, a trajectory's rows together."""

    z_t: Tensor  # (n·draws, C, h, w)
    t: Tensor  # (n·draws,), drawn ∝ vlb_t
    frozen: Tensor  # ε_θ₀ (n·draws, C, h, w)
    vlb: Tensor  # (T,), float64; 0 for a timestep that is not in the sum
    draws: int  # a trajectory


class DriftInNats(NamedTuple):
    """An estimate, whose independent unit is the trajectory."""

    mean: float  # nats
    standard_error: float  # nats, over trajectories
    upper_bound: float  # nats, one-sided 95 % by Student's t
    trajectories: int
    mean_squared_difference: float  # mean ‖Δε‖² a latent entry at t uniform on the sum's timesteps, from the same draws


@torch.no_grad()
def frozen_chain(
    frozen: Denoiser, alphas_cumprod: Tensor, z_T: Tensor, *, draws: int, generator: torch.Generator, blurred_outputs: bool = False,
    progress: Optional[str] = None,
) -> FrozenChain:  # fmt: skip
    """Trajectories of `frozen` from z_T (n, C, h, w), n ≥ 4 standard normal draws, for one prompt: made once, for every network that is compared.

    draws: timesteps at which each trajectory is looked at, drawn ∝ vlb_t by `generator` (on the CPU), which also draws the chain's noise.
    blurred_outputs: with the term of t = 0. progress: words beside a progress bar, None for no bar. Takes n·T evaluations of `frozen`. Raises
    ValueError as `check_counts` does.
    """
    n, T = len(z_T), len(alphas_cumprod)
    check_counts(n, draws)
    vlb = vlb_weights(alphas_cumprod.cpu())
    if not blurred_outputs:
        vlb[0] = 0
    drawn = torch.multinomial(vlb.expand(n, -1), draws, replacement=True, generator=generator)  # (n, draws)
    states = torch.empty(n, draws, *z_T.shape[1:])
    answers = torch.empty_like(states)
    z, abar = z_T, alphas_cumprod.cpu().double().tolist()
    for t in tqdm(range(T - 1, -1 if blurred_outputs else 0, -1), desc=progress, disable=progress is None, leave=False):
        eps = frozen(z, torch.full((n,), t, device=z.device))
        of, place = (drawn == t).nonzero(as_tuple=True)
        if len(of):
            rows = of.to(z.device)
            states[of, place], answers[of, place] = z[rows].float().cpu(), eps[rows].float().cpu()
        if t > 0:
            z = _step_back(z, eps, abar[t], abar[t - 1], torch.randn(z.shape, generator=generator).to(z))
    return FrozenChain(states.flatten(0, 1), drawn.flatten(), answers.flatten(0, 1), vlb, draws)


@torch.no_grad()
def drift_in_nats(tuned: Denoiser, chain: FrozenChain) -> DriftInNats:
    """The sum above for one prompt, from the states of the frozen network's chain. Takes n·draws evaluations of `tuned`, in one call."""
    difference = tuned(chain.z_t, chain.t).cpu().double() - chain.frozen.double()
    energy = difference.pow(2).flatten(1).sum(1).view(-1, chain.draws)  # (n, draws)
    total, n = chain.vlb.sum(), len(energy)
    of_trajectory = total * energy.mean(1)
    mean, error = of_trajectory.mean().item(), of_trajectory.std().item() / math.sqrt(n)
    # one over the chance with which a timestep was drawn makes the mean one over uniform timesteps
    uniform = total * (energy / chain.vlb[chain.t].view_as(energy)).mean() / (chain.vlb > 0).sum()
    return DriftInNats(mean, error, mean + student_t_quantile(0.95, n - 1) * error, n, uniform.item() / chain.z_t[0].numel())


def check_counts(trajectories: int, draws: int) -> None:
    """Raises ValueError for fewer than 4 trajectories or 1 draw on each."""
    if trajectories < FEWEST_TRAJECTORIES or draws < 1:
        raise ValueError(
            f"drift in nats from {trajectories} trajectories with {draws} draws each; expected at least {FEWEST_TRAJECTORIES} trajectories (for an error) "
            "and 1 draw"
        )


def _step_back(z: Tensor, eps: Tensor, abar: float, before: float, noise: Tensor) -> Tensor:
    """A draw of z_{t−1} from the posterior q(z_{t−1} | z_t, x̂₀), x̂₀ from eps (Ho et al. 2020, equations 6, 7 and 15)."""
    alpha = abar / before
    beta = 1 - alpha
    x_0 = (z - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
    mean = (math.sqrt(before) * beta * x_0 + math.sqrt(alpha) * (1 - before) * z) / (1 - abar)
    return mean + math.sqrt(beta * (1 - before) / (1 - abar)) * noise


def student_t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """By Cornish and Fisher's expansion (Abramowitz & Stegun 1964, 26.7.5): within 0.1 % at 0.95 from 3 degrees of freedom on, 5 % too low at 1."""
    z, v = NormalDist().inv_cdf(probability), degrees_of_freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (power + 1) for power, term in enumerate(terms))
