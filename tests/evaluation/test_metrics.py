"""The numbers: identities, closed forms, and equal draws for all models."""
from __future__ import annotations

import copy

import pytest
import torch

from ldm.data.characters import VALUES
from ldm.evaluation.metrics import (
    Draws,
    attribute_frequencies,
    background_rate,
    denoising_loss,
    drift,
    drift_by_prompt,
    hat_rate,
    noised_draws,
    picture_draws,
    predicted_noise,
    prior_draws,
    trait_rate,
)
from ldm.evaluation.sampling import Sampling

FEW = Sampling(steps=2, guidance_scale=1.0, batch_size=4)
TRAITS = {"eyes": "star", "colour": "pink"}


@pytest.fixture(scope="module")
def draws(model):
    return prior_draws(model, ["a character", "a house"], 3, FEW, seed=5)


def answering(model, answer):
    """The model with another output: answer(the model's output, z_t, t)."""
    double = copy.copy(model)
    double.apply_model = lambda x, t, c, **options: answer(model.apply_model(x, t, c, **options), x, t)
    return double


def test_a_model_does_not_drift_from_itself(model, draws):
    assert drift(model, draws, predicted_noise(model, draws)) == 0.0


def test_drift_of_a_constant_shift_is_its_square(model, draws):
    shifted = answering(model, lambda output, x, t: output + 0.25)
    assert drift(shifted, draws, predicted_noise(model, draws)) == pytest.approx(0.0625, rel=1e-5)


def test_drift_of_a_model_of_x0_is_told_in_noise(model, draws):
    """Δε = −√(ᾱ/(1−ᾱ)) Δx0, so a shift d of x0 is a drift of mean ᾱ/(1−ᾱ) d²."""
    of_x0 = copy.copy(model)
    of_x0.parameterization = "x0"
    shifted = answering(of_x0, lambda output, x, t: output + 0.1)
    alpha = model.alphas_cumprod[draws.t].double()
    expected = (alpha / (1 - alpha) * 0.01).mean().item()
    assert drift(shifted, draws, predicted_noise(of_x0, draws)) == pytest.approx(expected, rel=1e-4)


def test_a_tuned_text_encoder_alone_is_drift(model, draws):
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.cond_stage_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert drift(tuned, draws, predicted_noise(model, draws)) > 1e-8


def test_denoising_loss_of_a_network_that_says_nothing_is_the_energy_of_the_noise(model, draws):
    silent = answering(model, lambda output, x, t: torch.zeros_like(output))
    assert denoising_loss(silent, draws) == pytest.approx(draws.noise.double().square().mean().item(), rel=1e-6)


def test_denoising_loss_of_a_network_that_knows_the_noise_is_nought(model):
    z_0 = torch.randn(2, 4, 8, 8)
    draws = noised_draws(["a *"] * 2, z_0, timesteps=model.num_timesteps, seed=1)
    knowing = answering(model, lambda output, x, t: model._predict_eps_from_xstart(x, t, z_0))
    assert denoising_loss(knowing, draws, batch_size=2) < 1e-6


def test_draws_are_the_same_for_the_same_seed_and_for_no_other(model, draws):
    torch.manual_seed(77)
    again = prior_draws(model, ["a character", "a house"], 3, FEW, seed=5)
    for name in ("z_0", "t", "noise"):
        torch.testing.assert_close(getattr(again, name), getattr(draws, name), rtol=0, atol=0)
    assert again.prompts == draws.prompts == ("a character",) * 3 + ("a house",) * 3
    assert not torch.equal(prior_draws(model, ["a character", "a house"], 3, FEW, seed=6).noise, draws.noise)


def test_every_draw_has_a_latent_of_its_own(draws):
    assert len({tuple(z.flatten().tolist()) for z in draws.z_0}) == len(draws.z_0)


def test_timesteps_are_uniform():
    draws = noised_draws(["x"] * 20_000, torch.zeros(20_000, 1, 1, 1), timesteps=20, seed=0)
    counts = torch.bincount(draws.t, minlength=20)
    assert counts.min() > 1000 - 5 * 31 and counts.max() < 1000 + 5 * 31  # five standard deviations of a binomial count


def test_pictures_and_captions_are_taken_in_turn(model):
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    draws = picture_draws(model, pictures, ["a *", "the *", "my *"], 5, seed=0)
    assert draws.prompts == ("a *", "the *", "my *", "a *", "the *")
    encoded = model.scale_factor * model.encode_first_stage(pictures).mode()
    torch.testing.assert_close(draws.z_0, encoded[[0, 1, 0, 1, 0]], atol=1e-5, rtol=1e-5)


def test_pictures_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match="the model's are"):
        picture_draws(model, torch.zeros(1, 3, 32, 32), ["a *"], 1, seed=0)


def reading(**values):
    return {**dict.fromkeys(VALUES), "kind": "character", **values}


def test_trait_rate_is_the_mean_share_over_the_traits():
    seen = [reading(eyes="star", colour="pink"), reading(eyes="star", colour="red"), reading(eyes="button", colour="red"), reading(eyes="ring", colour="blue")]
    assert trait_rate(seen, TRAITS) == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_a_pink_house_has_no_trait_of_a_character():
    assert trait_rate([reading(kind="house", colour="pink"), reading(eyes="star", colour="pink")], TRAITS) == 0.5


def test_a_red_hat_is_a_hat_and_red():
    seen = [reading(headwear="hat", hat_colour="red"), reading(headwear="hat", hat_colour="blue"), reading(headwear="crown"), reading(kind="house")]
    assert hat_rate(seen) == 0.25
    assert background_rate([reading(background="forest"), reading(kind="house", background="forest")]) == 0.5


def test_frequencies_are_shares_of_all_samples():
    table = attribute_frequencies([reading(mouth="smile"), reading(mouth="flat"), reading(mouth="smile"), reading(kind="house")])
    assert table["mouth"] == {"smile": 0.5, "open": 0.0, "flat": 0.25, "teeth": 0.0}
    assert table["kind"]["house"] == 0.25
    assert list(table) == list(VALUES)


def test_a_rate_without_samples_is_refused():
    with pytest.raises(ValueError, match="0 samples"):
        trait_rate([], TRAITS)


def test_drift_by_prompt_is_each_prompts_share_of_the_drift(model, draws):
    frozen = predicted_noise(model, draws)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter.mul_(1.05)
    by_prompt = drift_by_prompt(moved, draws, frozen, batch_size=4)
    assert list(by_prompt) == ["a character", "a house"] and all(value > 0 for value in by_prompt.values())
    assert sum(by_prompt.values()) / 2 == pytest.approx(drift(moved, draws, frozen), rel=1e-5)
    alone = Draws(*(part[3:] for part in draws))
    assert by_prompt["a house"] == pytest.approx(drift(moved, alone, frozen[3:]), rel=1e-5)
