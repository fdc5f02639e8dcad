"""Beta schedules and DDIM steps against their closed forms and the recorded numbers."""
import math

import numpy as np
import pytest
import torch

from ldm.modules.diffusionmodules.util import betas_for_alpha_bar, make_beta_schedule, make_ddim_sampling_parameters, make_ddim_timesteps
from tests.golden.case import load_case

T = 1000
# the uniform step counts that divide 1000 evenly enough to have been usable before; users' published samples were made with them
ESTABLISHED_COUNTS = (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500)


def alpha_bar_of_stable_diffusion() -> np.ndarray:
    return np.cumprod(1.0 - make_beta_schedule("linear", T, 0.00085, 0.012))


@pytest.mark.parametrize(
    ("schedule", "beta"),
    [
        ("linear", lambda u, a, b: (math.sqrt(a) + u * (math.sqrt(b) - math.sqrt(a))) ** 2),
        ("sqrt_linear", lambda u, a, b: a + u * (b - a)),
        ("sqrt", lambda u, a, b: math.sqrt(a + u * (b - a))),
    ],
)
@pytest.mark.parametrize(("start", "end"), [(1e-4, 2e-2), (0.00085, 0.012)])
def test_betas_between_two_ends_follow_their_formula(schedule, beta, start, end):
    betas = make_beta_schedule(schedule, 100, linear_start=start, linear_end=end)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, [beta(i / 99, start, end) for i in range(100)], rtol=1e-13)


def test_cosine_betas_leave_the_cosine_and_are_capped_at_the_end():
    betas = make_beta_schedule("cosine", T, cosine_s=8e-3)
    assert betas.dtype == np.float64
    assert betas[-1] == 0.999
    left = [math.cos((i / T + 8e-3) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], np.array(left[1:-1]) / left[0], rtol=1e-9)


def test_betas_of_any_falling_curve_reproduce_it():
    betas = betas_for_alpha_bar(50, lambda u: math.exp(-3 * u))
    np.testing.assert_allclose(np.cumprod(1 - betas), np.exp(-3 * np.arange(1, 51) / 50), rtol=1e-12)
    assert betas_for_alpha_bar(10, lambda u: 1 - u, max_beta=0.7).max() == 0.7


def test_an_unknown_schedule_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="quadratic.*linear, cosine, sqrt_linear, sqrt"):
        make_beta_schedule("quadratic", 10)


@pytest.mark.parametrize("name", ["cosine_eps", "linear_default_vposterior", "linear_sd_eps", "sqrt_100", "sqrt_linear_100"])
def test_betas_agree_with_the_recorded_ones(name):
    case = load_case(f"schedule_{name}")
    params = case.config.model.params
    ends = {key: params[key] for key in ("linear_start", "linear_end", "cosine_s") if key in params}
    betas = make_beta_schedule(params.get("beta_schedule", "linear"), params.get("timesteps", T), **ends)
    np.testing.assert_allclose(betas, case["buf/betas"].numpy(), rtol=2e-7)


def test_every_count_of_uniform_steps_gives_so_many_distinct_trained_steps():
    for count in range(1, T + 1):
        steps = make_ddim_timesteps("uniform", count, T, verbose=False)
        expected = [i * T // count + 1 for i in range(count)] if count < T else list(range(T))
        assert steps.dtype == np.int64
        assert steps.tolist() == expected
        assert 0 <= steps[0] and steps[-1] < T and (np.diff(steps) > 0).all()


@pytest.mark.parametrize("count", ESTABLISHED_COUNTS)
def test_counts_that_always_worked_keep_their_steps(count):
    assert make_ddim_timesteps("uniform", count, T, verbose=False).tolist() == list(range(1, T + 1, T // count))


@pytest.mark.parametrize(
    ("method", "count", "trained", "message"),
    [
        ("uniform", 0, 10, "0 sampling steps .* 1 to 10"),
        ("uniform", 11, 10, "11 sampling steps .* 1 to 10"),
        ("quad", -1, 10, "must be 1 to 10"),
        ("quad", 5, 5, "at least 6 timesteps"),
        ("cubic", 5, 10, "'cubic'; it must be uniform or quad"),
    ],
)
def test_impossible_steps_are_an_error_that_says_what_is_possible(method, count, trained, message):
    with pytest.raises(ValueError, match=message):
        make_ddim_timesteps(method, count, trained)


def test_quadratic_steps_stay_among_the_trained_ones():
    for trained in (6, 7, 50, T):
        for count in range(1, trained + 1):
            steps = make_ddim_timesteps("quad", count, trained, verbose=False)
            assert len(steps) == count and steps[0] == 1 and steps[-1] < trained and (np.diff(steps) >= 0).all()


def test_steps_are_reported_to_the_log_only_when_asked_for(caplog):
    with caplog.at_level("INFO", logger="ldm.modules.diffusionmodules.step_schedules"):
        make_ddim_timesteps("uniform", 4, 100, verbose=False)
        assert not caplog.records
        make_ddim_timesteps("uniform", 4, 100)
    assert "4 uniform sampling steps of 100: [ 1 26 51 76]" in caplog.text


RECORDED = ["ddim_S50_uniform_eta0.0", "ddim_S50_uniform_eta1.0", "ddim_S10_uniform_eta0.0", "ddim_S10_uniform_eta1.0", "ddim_S50_quad_eta0.0"]
RECORDED += ["plms_S50_uniform_eta0.0", "plms_S10_uniform_eta0.0", "plms_S50_quad_eta0.0"]


@pytest.mark.parametrize("name", RECORDED)
def test_sampling_arrays_agree_with_the_recorded_ones(name):
    recorded = load_case("ddim_arrays").under(f"out/{name}")
    sampler, method, eta = name.split("_")[1:]
    steps = make_ddim_timesteps(method, int(sampler[1:]), T, verbose=False)
    np.testing.assert_array_equal(steps, recorded["ddim_timesteps"].numpy())

    alpha_bar = torch.tensor(alpha_bar_of_stable_diffusion(), dtype=torch.float32)
    sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(alpha_bar, steps, float(eta.removeprefix("eta")), verbose=False)
    assert isinstance(alphas_prev, np.ndarray)
    torch.testing.assert_close(sigmas, recorded["ddim_sigmas"], atol=1e-6, rtol=1e-5)                # dtypes too
    torch.testing.assert_close(alphas, recorded["ddim_alphas"], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(torch.from_numpy(alphas_prev), recorded["ddim_alphas_prev"], atol=1e-7, rtol=1e-6)


def test_sigma_of_every_step_at_eta_one_is_the_posterior_deviation_of_the_full_chain():
    betas = make_beta_schedule("linear", 200)
    alpha_bar = np.cumprod(1 - betas)
    sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(alpha_bar, np.arange(200), eta=1.0, verbose=False)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    posterior_variance = betas * (1 - before) / (1 - alpha_bar)
    np.testing.assert_allclose(sigmas[1:] ** 2, posterior_variance[1:], rtol=1e-9)
    assert sigmas[0] == 0.0
    np.testing.assert_array_equal(alphas, alpha_bar)
    np.testing.assert_array_equal(alphas_prev[1:], alpha_bar[:-1])


def test_sigma_grows_in_proportion_to_eta():
    alpha_bar, steps = alpha_bar_of_stable_diffusion(), make_ddim_timesteps("uniform", 30, T, verbose=False)
    half, whole, none = (make_ddim_sampling_parameters(alpha_bar, steps, eta, verbose=False)[0] for eta in (0.5, 1.0, 0.0))
    np.testing.assert_allclose(2 * half, whole, rtol=1e-14)
    assert whole.min() > 0 and not none.any()
