"""How far apart two outputs are, and how much each timestep counts.

R = E w(t) · d(f, f0). A loss takes f, f0 (B, C, h, w), the probes and the model, and returns R as a scalar; to add another, write `distances`.
A weighting takes t (B,) and the model, and returns w (B,).
"""
from typing import Callable, Optional

import torch
from torch import Tensor
from torch.nn import functional

from ldm.regularization.checks import positive
from ldm.regularization.types import Model, NoisyLatents, Part

Weighting = Callable[[Tensor, Model], Tensor]


def squared_error(f: Tensor, f0: Tensor) -> Tensor:
    """Mean over (C, h, w) of (f − f0)²: (B,), fp32 whatever the precision of f."""
    return (f.float() - f0.float()).pow(2).flatten(1).mean(dim=1)


class Loss(Part):
    """What the losses share: the mean over the samples of w(t) · d(f, f0).

    t_weights: w, from t (B,) and the model to weights (B,); every timestep weighs 1 unless given.
    """

    def __init__(self, t_weights: Optional[Weighting] = None):
        self.t_weights = t_weights

    def __call__(self, f: Tensor, f0: Tensor, probes: NoisyLatents, model: Model) -> Tensor:
        error = self.distances(f, f0)
        return error.mean() if self.t_weights is None else (self.t_weights(probes.t, model).to(error) * error).mean()

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        """d of each sample: (B,), fp32."""
        raise NotImplementedError

    def describe(self) -> str:
        weighting = f" weighted by {self.t_weights.describe()}" if isinstance(self.t_weights, Part) else ""
        return super().describe() + weighting


class NoiseMSE(Loss):
    """Squared difference of the two outputs."""

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        return squared_error(f, f0)


class NoiseHuber(Loss):
    """Squared difference Δ² up to |Δ| = delta and 2·delta·|Δ| − delta² beyond: single pixels that are far off pull no harder than at delta.

    Huber 1964, times 2, so that it is NoiseMSE where the two networks are close, and the weight of the term may stay.
    """

    def __init__(self, delta: float = 0.1, t_weights: Optional[Weighting] = None):
        super().__init__(t_weights)
        self.delta = positive(delta, "loss_config.params.delta")

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        return 2 * functional.huber_loss(f.float(), f0.float(), reduction="none", delta=self.delta).flatten(1).mean(dim=1)


class RelativeMSE(Loss):
    """Squared difference over the frozen output's own mean square, sample by sample: a share of the prediction, whatever its size.

    floor: the least mean square that is divided by.
    """

    def __init__(self, floor: float = 1.0e-6, t_weights: Optional[Weighting] = None):
        super().__init__(t_weights)
        self.floor = positive(floor, "loss_config.params.floor")

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        return squared_error(f, f0) / squared_error(f0, torch.zeros_like(f0)).clamp(min=self.floor)


class UniformWeights(Part):
    """Every timestep weighs 1."""

    def __call__(self, t: Tensor, model: Model) -> Tensor:
        return torch.ones_like(t, dtype=torch.float32)


class VLBWeights(Part):
    """The weights of the KL divergence between the two models' sampling chains: of ‖Δε‖² summed over a step's latent (Ho et al. 2020, eq. 8).

    w_t = β_t² / (2 σ_t² α_t (1 − ᾱ_t)) for t ≥ 1, σ_t² the posterior variance; w_0 = w_1. With a model that predicts x0, times ᾱ_t/(1 − ᾱ_t),
    which turns Δx0 into Δε. Far below 1 for most t (0.0065 on average for Stable Diffusion's schedule): the weight of the term grows in turn.
    """

    def __call__(self, t: Tensor, model: Model) -> Tensor:
        return (vlb_weights(model.alphas_cumprod) * eps_per_output(model)).float()[t]


class MinSNRWeights(Part):
    """Timesteps of little noise weigh no more than at SNR γ: w_t = min(SNR_t, γ)/SNR_t for ε, min(SNR_t, γ) for x0 (Hang et al. 2023, arXiv 2303.09556)."""

    def __init__(self, gamma: float = 5.0):
        self.gamma = positive(gamma, "t_weights_config.params.gamma")

    def __call__(self, t: Tensor, model: Model) -> Tensor:
        abar = model.alphas_cumprod.double()
        snr = abar / (1 - abar)
        return ((self.gamma / snr).clamp(max=1) * eps_per_output(model)).float()[t]


def vlb_weights(alphas_cumprod: Tensor) -> Tensor:
    """w_t of `VLBWeights` for a model that predicts ε, from ᾱ (T,): (T,), float64."""
    abar = alphas_cumprod.double()
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    alpha = abar / before
    beta = 1 - alpha
    variance = beta * (1 - before) / (1 - abar)
    weights = beta[1:] ** 2 / (2 * variance[1:] * alpha[1:] * (1 - abar[1:]))
    return torch.cat([weights[:1], weights])


def eps_per_output(model: Model) -> Tensor:
    """‖Δε‖² over the squared difference of the outputs, for each t: (T,), float64. 1 where the model predicts ε, ᾱ/(1 − ᾱ) where x0."""
    abar = model.alphas_cumprod.double()
    return abar / (1 - abar) if model.parameterization == "x0" else torch.ones_like(abar)
