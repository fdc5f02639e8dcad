"""Distributions over latents against torch.distributions and their limits."""
from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.modules.distributions.distributions import AbstractDistribution, DiagonalGaussianDistribution, DiracDistribution, normal_kl


def moments(seed: int) -> torch.Tensor:
    return torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(seed))


def reference(p: DiagonalGaussianDistribution) -> Normal:
    return Normal(p.mean, (0.5 * p.logvar).exp())


def test_kl_and_likelihood_are_those_of_torch():
    p, q = DiagonalGaussianDistribution(moments(0)), DiagonalGaussianDistribution(moments(1))
    standard = Normal(torch.zeros_like(p.mean), 1.0)
    torch.testing.assert_close(p.kl(), kl_divergence(reference(p), standard).sum((1, 2, 3)))
    torch.testing.assert_close(p.kl(q), kl_divergence(reference(p), reference(q)).sum((1, 2, 3)))
    x = torch.randn(2, 3, 3, 4)
    torch.testing.assert_close(p.nll(x), -reference(p).log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(p.nll(x, dims=[2, 3]), -reference(p).log_prob(x).sum((2, 3)))


def test_normal_kl_is_that_of_torch_and_broadcasts_numbers():
    mean, logvar = torch.randn(4), torch.randn(4)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.5, 2.0))
    torch.testing.assert_close(normal_kl(mean, logvar, 0.5, 2 * torch.tensor(2.0).log().item()), expected)
    with pytest.raises(ValueError, match="at least one"):
        normal_kl(0.0, 0.0, 1.0, 0.0)


def test_log_variance_is_clamped():
    p = DiagonalGaussianDistribution(torch.cat([torch.zeros(1, 2, 1, 1), torch.tensor([-1e3, 1e3]).view(1, 2, 1, 1)], 1))
    assert p.logvar.flatten().tolist() == [-30.0, 20.0]
    torch.testing.assert_close(p.var, p.std.square())


def test_sample_takes_its_noise_from_the_cpu_generator():
    p = DiagonalGaussianDistribution(moments(2).double())
    torch.manual_seed(5)
    sample = p.sample()
    torch.manual_seed(5)
    noise = torch.randn(2, 3, 3, 4)
    assert sample.dtype == torch.float64
    torch.testing.assert_close(sample, p.mean + p.std * noise)


def test_sample_has_the_said_mean_and_spread():
    p = DiagonalGaussianDistribution(torch.cat([torch.full((20_000, 1, 1, 1), 2.0), torch.full((20_000, 1, 1, 1), -1.0)], 1))
    x = p.sample()
    assert abs(x.mean() - 2.0) < 0.02
    assert abs(x.var() - torch.tensor(-1.0).exp()) < 0.02
    assert torch.equal(p.mode(), p.mean)


def test_deterministic_has_no_spread():
    p = DiagonalGaussianDistribution(moments(3), deterministic=True)
    assert torch.equal(p.sample(), p.mean)
    assert not p.std.any() and not p.var.any()
    assert p.kl().tolist() == [0.0]
    assert p.nll(p.mean).tolist() == [0.0]


def test_dirac_is_its_value_and_the_base_says_what_is_missing():
    value = torch.randn(3)
    assert DiracDistribution(value).sample() is value
    assert DiracDistribution(value).mode() is value
    for method in (AbstractDistribution().sample, AbstractDistribution().mode):
        with pytest.raises(NotImplementedError, match="AbstractDistribution"):
            method()
