"""Each term against its formula, worked out apart from the model's hooks."""
from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.prompts import imagenet_templates_small
from ldm.rivals.output_preservation import with_word
from tests.regularization.tiny_runs import batch_of, equal, fit, plain_model, tensors_of
from tests.rivals.tiny_rivals import BASE, OUTPUT, PRIOR, answer, held, moved, started

PROMPTS = [template.format("sculpture") for template in imagenet_templates_small[:3]]  # the init word


def noised(model, x, t, noise):
    alphas = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    return alphas.sqrt() * x + (1 - alphas).sqrt() * noise


def test_the_class_pictures_are_ddim_samples_of_the_base(base):
    model = started(held(PRIOR, base, 1.0, seed=4))
    x_T = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    theta_0 = plain_model(base).eval()
    expected, _ = DDIMSampler(theta_0).sample(2, 3, (4, 8, 8), theta_0.cond_stage_model.encode(PROMPTS).detach(), x_T=x_T, verbose=False)
    torch.testing.assert_close(model._z_0, expected)


@pytest.mark.parametrize("parameterization", ["eps", "x0"])
def test_prior_preservation_is_the_true_noise_loss_on_class_pictures(base, parameterization):
    model = moved(started(held(PRIOR, base, 1.0, seed=4, parameterization=parameterization)))
    chance = torch.Generator().manual_seed(5)  # the seed's successor
    rows, t = torch.randint(3, (2,), generator=chance), torch.randint(20, (2,), generator=chance)
    z_0, eps = model._z_0[rows], torch.randn(2, 4, 8, 8, generator=chance)
    target = eps if parameterization == "eps" else z_0
    expected = (answer(model, noised(model, z_0, t, eps), t, [PROMPTS[row] for row in rows]) - target).square().mean()
    x = torch.randn(5, 4, 8, 8)
    torch.testing.assert_close(model.term(x, torch.zeros(5).long(), x), expected)


def test_a_run_with_class_pictures_answers_them_better_than_one_without(base, tmp_path):
    """By the true-noise loss, not by the distance to the base: a base whose own loss is not at its least moves under it too."""
    losses = []
    for weight in (0.0, 1.0):
        model, judge = held(PRIOR, base, weight), started(held(PRIOR, base, 1.0, batch_size=64))
        fit(model, tmp_path, steps=8)
        judge.load_state_dict(model.state_dict())
        with torch.no_grad():
            losses.append(float(judge.term(torch.zeros(1, 4, 8, 8), torch.zeros(1).long(), torch.zeros(1))))
    assert losses[0] > 1.02 * losses[1]


def test_base_weights_is_the_squared_distance_to_the_base(base):
    model = started(held(BASE, base, 1.0))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    assert model.term(x, t, x) == 0
    with torch.no_grad():
        next(model.model.parameters()).view(-1)[0] += 0.5
        next(model.cond_stage_model.parameters()).view(-1)[:2] -= 2.0
        next(model.embedding_manager.parameters()).add_(1.0)
    torch.testing.assert_close(model.term(x, t, x), torch.tensor(0.25 + 2 * 4.0))


def test_output_preservation_is_the_distance_to_the_bases_answers_to_the_class(base):
    model = started(held(OUTPUT, base, 1.0))
    x, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([3, 15])
    model.shared_step(batch_of(2))
    assert model.term(x, t, noise) == 0
    moved(model)
    z_t = noised(model, x, t, noise)
    expected = (answer(model, z_t, t, PROMPTS[:2]) - answer(plain_model(base), z_t, t, PROMPTS[:2])).square().mean()
    torch.testing.assert_close(model.term(x, t, noise), expected)


def test_the_frozen_copy_does_not_move_with_the_model(base, tmp_path):
    model = held(OUTPUT, base, 1.0)
    fit(model, tmp_path, steps=2)
    theta_0 = plain_model(base)
    assert equal(tensors_of(model._frozen["model"]), tensors_of(theta_0.model))
    assert equal(tensors_of(model._frozen["cond_stage_model"]), tensors_of(theta_0.cond_stage_model))
    assert not any(parameter.requires_grad for copy in model._frozen.values() for parameter in copy.parameters())


def test_the_class_word_takes_the_place_of_placeholders_alone():
    assert with_word("a photo of *, a *", ["*"], "cat") == "a photo of cat, a cat"
    assert with_word("sks and asks", ["sks"], r"\1") == r"\1 and asks"


@pytest.mark.parametrize("key", ["batch_size", "samples", "ddim_steps"])
def test_a_number_of_class_pictures_below_1_is_refused(base, key):
    with pytest.raises(ValueError, match=f"model.params.{key} is 0; expected a whole number of at least 1"):
        held(PRIOR, base, 1.0, **{key: 0})
