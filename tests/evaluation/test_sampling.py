"""Samples that can be compared: each picture depends on its prompt, its seed and the model, and on nothing else."""
from __future__ import annotations

import copy

import pytest
import torch

from ldm.evaluation.sampling import Sampling, counter_kept, encode_prompts, sample_latents, sample_pictures, start_noise
from ldm.models.diffusion.ddim import DDIMSampler
from tests.evaluation.small_characters import WORD, random_model
from tests.models.diffusion.tiny import with_params

PAIRS = [("a photo of a *", 0), ("a house", 0), ("a house", 1), ("", 5)]
FEW = Sampling(steps=2, guidance_scale=3.0, batch_size=4)


def test_start_noise_depends_on_its_own_seed_alone():
    torch.manual_seed(99)
    alone = start_noise([7], (4, 8, 8))
    torch.manual_seed(1)
    torch.testing.assert_close(start_noise([3, 7], (4, 8, 8))[1:], alone, rtol=0, atol=0)
    assert not torch.equal(start_noise([3], (4, 8, 8)), alone)


def test_batch_size_and_neighbours_do_not_change_a_sample(model):
    together = sample_latents(model, PAIRS, FEW)
    for k, pair in enumerate(PAIRS):
        torch.testing.assert_close(sample_latents(model, [pair], Sampling(2, 3.0, 1))[0], together[k], atol=1e-5, rtol=1e-5)


def test_the_state_of_chance_does_not_change_a_sample(model):
    first = sample_latents(model, PAIRS[:2], FEW)
    torch.manual_seed(12345)
    torch.testing.assert_close(sample_latents(model, PAIRS[:2], FEW), first, rtol=0, atol=0)


def test_samples_are_those_of_the_sampler_asked_in_the_plain_way(model):
    (prompt, seed), x_T = PAIRS[1], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))[None]
    assert seed == 0
    c, u = model.get_learned_conditioning([prompt]), model.get_learned_conditioning([""])
    expected, _ = DDIMSampler(model).sample(2, 1, (4, 8, 8), c, eta=0.0, x_T=x_T, verbose=False, unconditional_guidance_scale=3.0, unconditional_conditioning=u)
    torch.testing.assert_close(sample_latents(model, [(prompt, seed)], FEW), expected, atol=1e-6, rtol=1e-6)


def test_guidance_of_one_asks_the_network_once_a_step(model):
    asked, counted = [], copy.copy(model)
    counted.apply_model = lambda x, t, c, **options: asked.append(len(x)) or model.apply_model(x, t, c, **options)
    sample_latents(counted, PAIRS[:1], Sampling(3, 1.0, 1))
    sample_latents(counted, PAIRS[:1], Sampling(3, 2.0, 1))
    assert asked == [1, 1, 1, 2, 2, 2]


def test_pictures_are_whole_and_in_range(model):
    pictures = sample_pictures(model, PAIRS, Sampling(1, 1.0, 3))
    assert pictures.shape == (4, 3, 64, 64) and pictures.dtype == torch.float32
    assert pictures.min() >= -1 and pictures.max() <= 1


def test_looking_does_not_advance_progressive_words():
    model = random_model(personalization_config=with_params(WORD, num_vectors_per_token=2, progressive_words=True))
    model.embedding_manager.progressive_counter = 1990
    encoded = encode_prompts(model, ["a *", "a house", "a *"])
    assert model.embedding_manager.progressive_counter == 1990
    torch.testing.assert_close(encoded[0], encoded[2], rtol=0, atol=0)
    with pytest.raises(RuntimeError), counter_kept(model):
        model.embedding_manager.progressive_counter = 5
        raise RuntimeError
    assert model.embedding_manager.progressive_counter == 1990


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least one step"):
        Sampling(steps=0)
