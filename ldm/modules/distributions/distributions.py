"""Distributions over latents: the diagonal Gaussian of a variational autoencoder, and a single point.

Closed forms for N(mu, sigma^2) from Kingma & Welling 2013 (arXiv 1312.6114), appendix B; all logarithms are natural (nats).
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG_TWO_PI = math.log(2.0 * math.pi)


class AbstractDistribution:
    """Something that can be sampled and has a most likely value."""

    def sample(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say how to draw a sample")

    def mode(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say what its most likely value is")


class DiracDistribution(AbstractDistribution):
    """All probability on one value."""

    def __init__(self, value: Tensor):
        self.value = value

    def sample(self) -> Tensor:
        return self.value

    def mode(self) -> Tensor:
        return self.value


class DiagonalGaussianDistribution:
    """Independent Gaussians, one a latent entry.

    parameters: (B, 2C, H, W), the means and then the log-variances, which are clamped to [-30, 20].
    deterministic: no spread at all; `sample` gives the mean, `kl` and `nll` give tensor([0.]).
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False):
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)  # each (B, C, H, W)
        self.logvar = logvar.clamp(-30.0, 20.0)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std = torch.exp(0.5 * self.logvar)
            self.var = torch.exp(self.logvar)

    def sample(self) -> Tensor:
        """A draw, (B, C, H, W); its noise comes from the CPU generator, so a seed gives the same latents on every device."""
        noise = torch.randn(self.mean.shape).to(self.mean)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """KL(self || other) in nats, (B,): summed over all entries of a picture; `other` is N(0, 1) unless given."""
        if self.deterministic:
            return torch.zeros(1, device=self.mean.device)
        if other is None:
            entries = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            entries = (self.mean - other.mean).square() / other.var + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * entries.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """-log p(sample) in nats, summed over `dims`; sample: (B, C, H, W)."""
        if self.deterministic:
            return torch.zeros(1, device=self.mean.device)
        entries = LOG_TWO_PI + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * entries.sum(dim=tuple(dims))


def normal_kl(mean1: Tensor | float, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float) -> Tensor:
    """KL(N(mean1, e^logvar1) || N(mean2, e^logvar2)) in nats, entry by entry; shapes broadcast, at least one argument is a tensor.

    Raises ValueError if all four are plain numbers.
    """
    given = (mean1, logvar1, mean2, logvar2)
    like = next((value for value in given if isinstance(value, Tensor)), None)
    if like is None:
        raise ValueError("normal_kl: all four arguments are plain numbers; at least one must be a tensor, it tells device and dtype")
    mean1, logvar1, mean2, logvar2 = (value if isinstance(value, Tensor) else like.new_tensor(value) for value in given)
    spread = (logvar1 - logvar2).exp() - 1.0 - (logvar1 - logvar2)
    shift = (mean1 - mean2).square() * (-logvar2).exp()
    return 0.5 * (spread + shift)
