"""Drift in nats against the KL divergence of joint Gaussians, computed without the weights under test."""
import math

import pytest
import torch

from ldm.regularization.drift import drift_in_nats, frozen_chain, student_t_quantile
from ldm.regularization.losses import vlb_weights

T, SHAPE = 24, (1, 2, 2)
BETAS = torch.linspace(0.01, 0.3, T, dtype=torch.float64)
ABAR = torch.cumprod(1 - BETAS, 0)


def gaussian_denoiser(variance, mean):
    """The best ε for data N(mean, variance): linear in z."""

    def eps(z, t):
        abar = ABAR[t].to(z).view(-1, 1, 1, 1)
        return (1 - abar).sqrt() * (z - abar.sqrt() * mean) / (abar * variance + 1 - abar)

    return eps


FROZEN, TUNED = gaussian_denoiser(0.5, 0.3), gaussian_denoiser(0.8, -0.1)


def joint(eps, down_to):
    """(z_{T−1}, …, z_{down_to}) of one entry of the chain that `eps` drives, built step by step from the affine maps of its draws."""
    at = lambda z, t: eps(torch.tensor([[[[z]]]], dtype=torch.float64), torch.tensor([t])).item()  # noqa: E731
    mean, covariance = torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for t in range(T - 1, down_to, -1):
        abar, before = ABAR[t].item(), ABAR[t - 1].item()
        beta = BETAS[t].item()
        offset, slope = at(0.0, t), at(1.0, t) - at(0.0, t)
        # z_{t−1} = (z − β/√(1−ᾱ)·ε)/√α + σ·noise: the other way of writing the same posterior mean (Ho et al. 2020, algorithm 2)
        a = (1 - beta / math.sqrt(1 - abar) * slope) / math.sqrt(1 - beta)
        b = -beta / math.sqrt(1 - abar) * offset / math.sqrt(1 - beta)
        variance = beta * (1 - before) / (1 - abar)
        across = a * covariance[-1:]
        covariance = torch.cat([torch.cat([covariance, across.T], 1), torch.cat([across, a * a * covariance[-1:, -1:] + variance], 1)])
        mean = torch.cat([mean, a * mean[-1:] + b])
    return torch.distributions.MultivariateNormal(mean, covariance)


def kl(down_to):
    per_entry = torch.distributions.kl_divergence(joint(FROZEN, down_to), joint(TUNED, down_to)).item()
    return math.prod(SHAPE) * per_entry


def estimate(seed, n=24, **options):
    generator = torch.Generator().manual_seed(seed)
    z_T = torch.randn(n, *SHAPE, generator=generator)
    return drift_in_nats(TUNED, frozen_chain(FROZEN, ABAR, z_T, draws=8, generator=generator, **options))


def test_the_joint_gaussians_divergence_is_met_within_the_standard_error():
    """And the upper bound covers it about as often as it says: 95 of 100, give or take what 200 seeds allow."""
    truth, found = kl(down_to=0), [estimate(seed) for seed in range(200)]
    assert sum(abs(one.mean - truth) <= 3 * one.standard_error for one in found[:100]) >= 97
    scatter = math.sqrt(sum(one.standard_error**2 for one in found)) / len(found)
    assert abs(sum(one.mean for one in found) / len(found) - truth) <= 3 * scatter
    assert 0.90 <= sum(one.upper_bound >= truth for one in found) / len(found) <= 0.99


def test_with_blurred_outputs_the_term_of_t_0_is_added():
    """vlb_0 := vlb_1 is a convention: the closed form is the chain's down to t = 0 and that term, from exact moments."""
    found = [estimate(seed, blurred_outputs=True) for seed in range(400)]
    states = joint(FROZEN, down_to=0)
    mean, variance = states.mean[-1], states.covariance_matrix[-1, -1]
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    at_0, at_1 = (TUNED(z, torch.tensor([0, 0])) - FROZEN(z, torch.tensor([0, 0]))).flatten()
    offset, slope = at_0, at_1 - at_0
    energy = math.prod(SHAPE) * ((offset + slope * mean) ** 2 + slope**2 * variance)
    truth = kl(down_to=0) + (vlb_weights(ABAR)[1] * energy).item()
    scatter = math.sqrt(sum(one.standard_error**2 for one in found)) / len(found)
    assert abs(sum(one.mean for one in found) / len(found) - truth) <= 3 * scatter
    assert abs(kl(down_to=0) - truth) > 4 * scatter


def test_two_equal_networks_are_no_nats_apart():
    generator = torch.Generator().manual_seed(0)
    chain = frozen_chain(FROZEN, ABAR, torch.randn(4, *SHAPE, generator=generator), draws=3, generator=generator)
    same = drift_in_nats(FROZEN, chain)
    assert same[:3] == (0.0, 0.0, 0.0) and same.mean_squared_difference == 0.0


def test_the_plain_mean_square_is_that_of_uniform_timesteps():
    """Two networks that differ by a constant: its square, whatever the weights."""
    generator = torch.Generator().manual_seed(1)
    off = lambda z, t: FROZEN(z, t) + 0.25  # noqa: E731
    found = drift_in_nats(off, frozen_chain(FROZEN, ABAR, torch.randn(400, *SHAPE, generator=generator), draws=8, generator=generator))
    assert found.mean_squared_difference == pytest.approx(0.0625, rel=0.1)
    assert found.mean == pytest.approx(math.prod(SHAPE) * 0.0625 * vlb_weights(ABAR)[1:].sum().item(), rel=1e-5)


def test_sigma_zero_and_the_weights_sum_of_stable_diffusions_schedule():
    """0.029 in units of z and 42 % of the weight below t = 100, as the specification of the measure says."""
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    weights = vlb_weights(abar)
    assert math.sqrt(1 - abar[0].item()) == pytest.approx(0.029, abs=5e-4)
    assert (weights[1:100].sum() / weights[1:].sum()).item() == pytest.approx(0.42, abs=0.01)


@pytest.mark.parametrize("freedom, quantile", [(3, 2.3534), (4, 2.1318), (7, 1.8946), (15, 1.7531), (30, 1.6973), (120, 1.6577)])
def test_student_t_quantiles_are_those_of_the_tables(freedom, quantile):
    assert student_t_quantile(0.95, freedom) == pytest.approx(quantile, rel=1e-3)


@pytest.mark.parametrize("n, draws", [(3, 4), (4, 0)])
def test_too_few_are_an_error(n, draws):
    with pytest.raises(ValueError, match="at least 4 trajectories"):
        frozen_chain(FROZEN, ABAR, torch.zeros(n, *SHAPE), draws=draws, generator=torch.Generator())
