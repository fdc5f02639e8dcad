"""Sampling step by step through the whole diffusion."""
from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion import ancestral
from ldm.models.diffusion.noise_schedule import Gaussian
from tests.models.diffusion.tiny import CODEBOOK, latent_diffusion, randomise

SHAPE = (2, 4, 8, 8)


@pytest.fixture
def model():
    return randomise(latent_diffusion(linear_start=0.05, linear_end=0.4)).eval()


@pytest.fixture
def cond():
    return torch.randn(2, 77, 32)


def knowing(model, x0: torch.Tensor):
    """The model, its network replaced by one that knows the only picture there is."""
    model.apply_model = lambda x, t, c, return_ids=False: model._predict_eps_from_xstart(x, t, x0.expand_as(x))
    return model


def test_draws_have_the_gaussians_moments_and_none_at_step_0():
    gaussian = Gaussian(torch.full((4000, 1, 1, 1), 2.0), torch.full((4000, 1, 1, 1), 0.25), torch.full((4000, 1, 1, 1), 0.25).log())
    drawn = ancestral.draw(gaussian, torch.full((4000,), 7), torch.randn(4000, 1, 1, 1))
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.03) and drawn.std().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(ancestral.draw(gaussian, torch.zeros(4000, dtype=torch.long), torch.randn(4000, 1, 1, 1)), gaussian.mean)


def test_a_perfect_denoiser_ends_at_the_data(model, cond):
    x0 = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(knowing(model, x0).sample(cond, batch_size=2, verbose=False), x0.expand(SHAPE), atol=1e-4, rtol=1e-4)


def test_one_step_is_the_posteriors_draw(model, cond):
    x, t = torch.randn(SHAPE), torch.tensor([12, 12])
    mean, _, log_variance, x0_hat = model.p_mean_variance(x, cond, t, clip_denoised=False, return_x0=True)
    torch.testing.assert_close(mean, model.q_posterior(x0_hat, x, t).mean)
    torch.manual_seed(4)
    noise = torch.randn(SHAPE)
    for temperature in (1.0, 0.3):
        torch.manual_seed(4)
        got, shown = model.p_sample(x, cond, t, temperature=temperature, return_x0=True)
        torch.testing.assert_close(got, mean + temperature * (0.5 * log_variance).exp() * noise)
        torch.testing.assert_close(shown, x0_hat)
    clipped = model.p_mean_variance(100 * x, cond, t, clip_denoised=True, return_x0=True)[-1]
    assert clipped.abs().max() <= 1.0


def test_x0_models_answer_with_the_data(cond):
    model = randomise(latent_diffusion(parameterization="x0")).eval()
    x, t = torch.randn(SHAPE), torch.tensor([12, 3])
    shown = model.p_mean_variance(x, cond, t, clip_denoised=False, return_x0=True)[-1]
    torch.testing.assert_close(shown, model.apply_model(x, t, cond))


def test_intermediates_begin_with_the_start_noise(model, cond):
    x_T = torch.randn(SHAPE)
    x, seen = model.p_sample_loop(cond, SHAPE, return_intermediates=True, x_T=x_T, verbose=False, log_every_t=5)
    assert torch.equal(seen[0], x_T) and torch.equal(seen[-1], x)
    assert len(seen) == 1 + 1 + 4  # the start; step 19, the first taken; steps 15, 10, 5 and 0
    assert len(model.p_sample_loop(cond, SHAPE, return_intermediates=True, verbose=False)[1]) == 6
    assert torch.is_tensor(model.p_sample_loop(cond, SHAPE, verbose=False, timesteps=2))


@pytest.mark.parametrize("limits, steps", [({}, 20), ({"timesteps": 7}, 7), ({"start_T": 3}, 3), ({"timesteps": 7, "start_T": 3}, 3), ({"timesteps": 99}, 20)])
def test_fewer_steps_are_the_cleanest(model, cond, limits, steps):
    visited = []
    model.p_sample_loop(cond, SHAPE, verbose=False, callback=visited.append, **limits)
    assert visited == list(range(steps - 1, -1, -1))


def test_no_steps_are_refused(model, cond):
    with pytest.raises(ValueError, match="0 steps were asked for"):
        model.p_sample_loop(cond, SHAPE, verbose=False, timesteps=0)


def test_progressive_denoising_shows_what_the_model_takes_for_the_data(model, cond):
    x0 = torch.randn(1, 4, 8, 8)
    calls = []
    x, seen = knowing(model, x0).progressive_denoising(cond, SHAPE[1:], batch_size=2, verbose=False, img_callback=lambda x, i: calls.append(i), log_every_t=10)
    assert x.shape == SHAPE and len(seen) == 3 and len(calls) == 20  # steps 19, 10 and 0
    for shown in seen:
        torch.testing.assert_close(shown, x0.expand(SHAPE), atol=1e-3, rtol=1e-3)


def test_a_temperature_for_each_step(model, cond):
    def result(temperature):
        torch.manual_seed(6)
        return model.progressive_denoising(cond, SHAPE, verbose=False, temperature=temperature, x_T=torch.ones(SHAPE))[0]

    assert torch.equal(result(0.5), result([0.5] * 20))
    assert not torch.allclose(result(0.5), result([0.5] * 19 + [1.0]))


def test_a_mask_keeps_what_it_covers_after_each_step(model, cond):
    kept, mask = torch.randn(SHAPE), torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1.0
    x, seen = knowing(model, torch.full((1, 4, 8, 8), 3.0)).p_sample_loop(cond, SHAPE, mask=mask, x0=kept, verbose=False, return_intermediates=True)
    torch.testing.assert_close(x[..., 4:], torch.full((2, 4, 8, 4), 3.0), atol=1e-3, rtol=0.0)
    abar = model.alphas_cumprod[0]
    spread = (x[..., :4] - abar.sqrt() * kept[..., :4]) / (1 - abar).sqrt()  # kept at the noise level of step 0
    assert spread.std().item() == pytest.approx(1.0, abs=0.2)
    with pytest.raises(ValueError, match="without x0"):
        model.p_sample_loop(cond, SHAPE, mask=mask, verbose=False)
    with pytest.raises(ValueError, match="height and width must agree"):
        model.p_sample_loop(cond, SHAPE, mask=mask[:, :, :4], x0=kept, verbose=False)


def test_sample_takes_the_first_conditions(model):
    many = torch.randn(5, 77, 32)
    for wrapped in (many, [many], {"c_crossattn": [many]}):
        assert model.sample(wrapped, batch_size=2, verbose=False, timesteps=2).shape == SHAPE
    assert model.sample(many, batch_size=2, verbose=False, timesteps=2, shape=(2, 4, 4, 4)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize("ddim", [True, False])
def test_sample_log_by_either_sampler(model, cond, ddim):
    samples, seen = model.sample_log(cond, 2, ddim, 3)
    assert samples.shape == SHAPE
    states = seen["x_inter"] if ddim else seen
    assert len(states) > 1 and torch.equal(states[-1], samples)


def test_quantised_predictions_are_codebook_entries(cond):
    model = randomise(latent_diffusion(first_stage_config=CODEBOOK)).eval()
    shown = model.p_mean_variance(torch.randn(SHAPE), cond, torch.tensor([3, 3]), clip_denoised=False, quantize_denoised=True, return_x0=True)[-1]
    distance = torch.cdist(shown.permute(0, 2, 3, 1).reshape(-1, 4), model.first_stage_model.quantize.embedding.weight).amin(dim=1)
    assert distance.max() < 1e-3


def test_codebook_scores_are_handed_on(model, cond):
    """A network may answer with scores beside its prediction."""
    x, t, scores = torch.randn(SHAPE), torch.tensor([3, 3]), torch.randn(2, 16, 8, 8)
    network = model.model.forward
    model.model.forward = lambda *args, **kwargs: (network(*args, **kwargs), scores)
    assert torch.equal(model.p_mean_variance(x, cond, t, clip_denoised=False, return_codebook_ids=True)[-1], scores)
    _, ids = model.p_sample(x, cond, t, return_codebook_ids=True)
    assert torch.equal(ids, scores.argmax(dim=1))
    assert model.apply_model(x, t, cond).shape == SHAPE


class Halver:
    def modify_score(self, model, eps, x, t, c):
        return eps / 2


def test_a_score_corrector_changes_the_prediction(model, cond):
    x, t = torch.randn(SHAPE), torch.tensor([3, 3])
    shown = model.p_mean_variance(x, cond, t, clip_denoised=False, return_x0=True, score_corrector=Halver())[-1]
    torch.testing.assert_close(shown, model.predict_start_from_noise(x, t, model.apply_model(x, t, cond) / 2))
    model.parameterization = "x0"
    with pytest.raises(ValueError, match="parameterization is x0"):
        model.p_mean_variance(x, cond, t, clip_denoised=False, score_corrector=Halver())


@pytest.mark.parametrize("verbose", [True, False])
def test_a_progress_bar_unless_silenced(model, cond, verbose, capsys):
    model.sample(cond, batch_size=2, timesteps=2, verbose=verbose)
    model.progressive_denoising(cond, SHAPE, verbose=verbose, start_T=2)
    shown = capsys.readouterr().err
    assert ("Sampling: 100%" in shown, "Progressive generation: 100%" in shown) == (verbose, verbose)


def test_a_condition_can_be_noised_with_the_data(cond):
    """num_timesteps_cond > 1: the condition is noised to a coarser step than the data."""
    model = randomise(latent_diffusion(num_timesteps_cond=4)).eval()
    assert model.shorten_cond_schedule and model.cond_ids.tolist() == [0, 6, 13, 19] + [19] * 16
    torch.manual_seed(2)
    noised = model._condition_at(cond, torch.tensor([1, 9]))
    torch.manual_seed(2)
    torch.testing.assert_close(noised, model.q_sample(cond, torch.tensor([6, 19])))
    plain = latent_diffusion()
    assert plain._condition_at(cond, torch.tensor([1, 9])) is cond
