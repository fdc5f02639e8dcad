"""The tables of a diffusion: the recorded ones, and the algebra of Gaussians."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from ldm.models.diffusion import noise_schedule
from ldm.models.diffusion.noise_schedule import Tables, make_tables
from ldm.modules.diffusionmodules.util import make_beta_schedule
from ldm.util import instantiate_from_config
from tests.golden.case import assert_close_to_golden, load_case, oracle_file

SCHEDULES = ["cosine_eps", "cosine_x0", "linear_default_vposterior", "linear_sd_eps", "linear_sd_x0", "sqrt_100", "sqrt_linear_100"]
TABLES = make_tables(make_beta_schedule("linear", 1000, 0.00085, 0.012))


@pytest.mark.parametrize("name", SCHEDULES)
def test_buffers_are_the_recorded_ones(name):
    case = load_case(f"schedule_{name}")
    model = instantiate_from_config(case.config.model)
    recorded = case.under("buf")
    for table, values in recorded.items():
        torch.testing.assert_close(getattr(model, table), values, rtol=2e-6, atol=1e-12, msg=lambda text, table=table: f"{table}: {text}")
    assert_close_to_golden(model.logvar, case["out/logvar"])
    persistent = [key for key in model.state_dict() if not key.startswith("model.")]
    assert sorted(persistent) == sorted(case.notes["persistent"])
    assert set(recorded) == {*persistent, "lvlb_weights"}
    assert model.num_timesteps == case.notes["num_timesteps"]


@pytest.mark.parametrize("manifest", ["sd_v1", "sd_v1_frozen", "sd_v1_inference", "txt2img_1p4B"])
def test_twelve_tables_have_the_keys_of_published_checkpoints(manifest):
    content = json.loads(oracle_file(f"manifest_{manifest}.json").read_text())
    stored = {key: entry for key, entry in content["keys"].items() if "." not in key}
    assert set(stored) == set(Tables._fields)
    assert len(stored) == 12


def test_given_betas_decide_the_number_of_steps():
    assert len(make_tables([0.1, 0.2, 0.3]).alphas_cumprod) == 3
    torch.testing.assert_close(make_tables([0.1, 0.2, 0.3]).alphas_cumprod, torch.tensor([0.9, 0.72, 0.504]))


@pytest.mark.parametrize("betas", [[0.1], [0.1, 1.0], [0.0, 0.1], [[0.1, 0.2]]])
def test_betas_outside_the_open_interval_are_refused(betas):
    with pytest.raises(ValueError, match="betas between 0 and 1"):
        make_tables(betas)


def test_posterior_is_the_product_of_two_gaussians():
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0), worked out from precisions."""
    x_0, x_t = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    t = torch.tensor([1, 200, 613, 999])
    posterior = noise_schedule.q_posterior(TABLES, x_0.float(), x_t.float(), t)
    beta, abar_prev = TABLES.betas[t].double(), TABLES.alphas_cumprod_prev[t].double()
    alpha = 1 - beta
    precision = alpha / beta + 1 / (1 - abar_prev)
    weighted = (alpha.sqrt() / beta).view(-1, 1, 1, 1) * x_t + (abar_prev.sqrt() / (1 - abar_prev)).view(-1, 1, 1, 1) * x_0
    torch.testing.assert_close(posterior.mean.double(), weighted / precision.view(-1, 1, 1, 1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(posterior.variance.flatten().double(), 1 / precision, rtol=1e-3, atol=0.0)
    torch.testing.assert_close(posterior.log_variance, posterior.variance.log())


@pytest.mark.parametrize("v", [0.0, 0.4, 1.0])
def test_v_posterior_lies_between_the_two_variances(v):
    tables = make_tables([0.1, 0.2, 0.3], v_posterior=v)
    beta = np.array([0.1, 0.2, 0.3])
    abar = np.cumprod(1 - beta)
    tilde = beta * (1 - np.array([1, *abar[:-1]])) / (1 - abar)
    np.testing.assert_allclose(tables.posterior_variance, (1 - v) * tilde + v * beta, rtol=1e-6, atol=1e-9)


def test_the_posterior_of_step_0_is_the_data():
    x_0, x_t = torch.randn(2, 3, 1, 2, 2)
    posterior = noise_schedule.q_posterior(TABLES, x_0, x_t, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(posterior.mean, x_0)
    assert not posterior.variance.any()


def test_noise_and_data_are_found_again_in_x_t():
    x_0, eps = torch.randn(2, 3, 4, 5, 5)
    t = torch.tensor([0, 500, 999])
    x_t = noise_schedule.q_sample(TABLES, x_0, t, eps)
    torch.testing.assert_close(noise_schedule.x_0_from_eps(TABLES, x_t, t, eps), x_0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noise_schedule.eps_from_x_0(TABLES, x_t, t, x_0), eps, atol=1e-4, rtol=1e-4)


def test_q_sample_has_the_mean_and_variance_it_says():
    x_0 = torch.full((20000, 1, 1, 1), 0.7)
    t = torch.full((20000,), 300)
    drawn = noise_schedule.q_sample(TABLES, x_0, t, torch.randn_like(x_0))
    said = noise_schedule.q_mean_variance(TABLES, x_0, t)
    assert abs(drawn.mean() - said.mean[0].item()) < 0.02
    assert abs(drawn.var() / said.variance[0].item() - 1) < 0.05


def test_vlb_weight_is_the_kl_divergence_of_two_posteriors():
    """w_t |eps - eps'|^2 = KL between the Gaussians of x_{t-1} that two predictions of the noise give (Ho et al., eq. 12)."""
    x_t, eps, other = torch.randn(3, 1, 2, 3, 3)
    t = torch.tensor([400])
    mean, other_mean = (noise_schedule.q_posterior(TABLES, noise_schedule.x_0_from_eps(TABLES, x_t, t, e), x_t, t).mean for e in (eps, other))
    kl = (mean - other_mean).square().sum() / (2 * TABLES.posterior_variance[400])
    weight = noise_schedule.vlb_weights(TABLES, "eps")[400]
    torch.testing.assert_close(weight * (eps - other).square().sum(), kl, rtol=1e-3, atol=0.0)


def test_vlb_weights_of_stable_diffusion():
    weights = noise_schedule.vlb_weights(TABLES, "eps")
    assert weights[0] == weights[1]
    assert weights[0].item() == pytest.approx(0.503, abs=5e-4)
    assert weights.sum().item() == pytest.approx(7.03, abs=5e-3)
    assert (weights[:100].sum() / weights.sum()).item() == pytest.approx(0.46, abs=5e-3)


def test_unknown_parameterization_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'v'.*eps, x0"):
        noise_schedule.vlb_weights(TABLES, "v")


def test_prior_bits_vanish_as_the_last_step_forgets():
    forgetful = make_tables(np.full(1000, 0.02))
    assert noise_schedule.prior_bits_per_dim(forgetful, torch.randn(2, 4, 8, 8)).abs().max() < 1e-6
    remembering = make_tables([0.1, 0.1])  # abar_T = 0.81
    bits = noise_schedule.prior_bits_per_dim(remembering, torch.ones(1, 1, 2, 2))
    assert bits.item() == pytest.approx(0.5 * (0.19 + 0.81 - 1 - math.log(0.19)) / math.log(2), rel=1e-5)


def test_condition_steps_are_even_then_the_last():
    assert noise_schedule.condition_steps(10, 4).tolist() == [0, 3, 6, 9, 9, 9, 9, 9, 9, 9]
    with pytest.raises(ValueError, match="num_timesteps_cond is 11"):
        noise_schedule.condition_steps(10, 11)
