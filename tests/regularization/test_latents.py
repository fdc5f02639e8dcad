"""From where (z_t, t) come, and that a bank is drawn once."""
from collections import Counter

import pytest
import torch

from ldm.regularization import (
    ClassPrompts,
    EmptyPrompt,
    MixedLatents,
    Mixture,
    NoiseLatents,
    PriorSamples,
    TrainingLatents,
    TrainingPictures,
    Trajectories,
)
from ldm.regularization.chance import Chance
from tests.regularization.doubles import WORDS, ToyModel, batch_of, start_of


@pytest.fixture
def conditioning():
    conditioning = ClassPrompts()
    conditioning.bind(WORDS)
    return conditioning


@pytest.fixture
def prior(tmp_path):
    return lambda **settings: PriorSamples(**{"samples": 6, "ddim_steps": 2, "cache_dir": str(tmp_path), **settings})


def test_training_latents_are_the_batchs_own(conditioning):
    batch = batch_of(3, captions=("a photo of a *",) * 3)
    probes = TrainingLatents().draw(ToyModel(), batch, 1, conditioning, Chance(0))
    assert probes.z_t is batch.z_t and probes.t is batch.t and probes.choice.texts == ("a photo of a cat",) * 3


def test_training_latents_bring_the_other_condition_of_a_hybrid_network(conditioning):
    mask = torch.ones(2, 1, 4, 4)
    probes = TrainingLatents().draw(ToyModel(), batch_of(2)._replace(c_concat=[mask]), 1, conditioning, Chance(0))
    assert probes.c_concat == [mask]


def test_noise_is_standard_normal_at_the_last_timestep(conditioning):
    probes = NoiseLatents().draw(ToyModel(), batch_of(1), 400, conditioning, Chance(0))
    assert probes.z_t.shape == (400, 2, 4, 4) and set(probes.t.tolist()) == {19}
    assert abs(probes.z_t.mean()) < 0.03 and abs(probes.z_t.std() - 1) < 0.03
    anywhere = NoiseLatents(any_t=True).draw(ToyModel(), batch_of(1), 400, conditioning, Chance(0))
    assert set(anywhere.t.tolist()) == set(range(20))


def test_probes_take_device_and_dtype_of_the_batch(conditioning, prior):
    batch = batch_of(1)._replace(z_t=torch.zeros(1, 2, 4, 4, dtype=torch.float64), t=torch.zeros(1, dtype=torch.int32))
    latents = prior()
    latents.prepare(start_of(ToyModel()), conditioning)
    for source in (NoiseLatents(), latents):
        probes = source.draw(ToyModel(), batch, 2, conditioning, Chance(0))
        assert probes.z_t.dtype == torch.float64 and probes.t.dtype == torch.int32


def test_prior_samples_are_noised_by_the_models_own_schedule(conditioning, prior):
    class AlwaysThree(ToyModel):
        def draw_prior(self, prompts, x_T, ddim_steps, guidance_scale):
            return torch.full_like(x_T, 3.0)

    model, latents = AlwaysThree(), prior(samples=1)
    latents.prepare(start_of(model), conditioning)
    probes = latents.draw(model, batch_of(1), 4000, conditioning, Chance(0))
    assert set(probes.t.tolist()) == set(range(20))
    for t in (0, 10, 19):
        abar, z_t = model.alphas_cumprod[t], probes.z_t[probes.t == t]
        torch.testing.assert_close(z_t.mean(), 3 * abar.sqrt(), atol=0.05, rtol=0)
        torch.testing.assert_close(z_t.var(), 1 - abar, atol=0.05, rtol=0)


def test_every_entry_keeps_the_prompt_it_was_drawn_for(conditioning, prior):
    class LengthOfPrompt(ToyModel):
        def draw_prior(self, prompts, x_T, ddim_steps, guidance_scale):
            return torch.tensor([float(len(prompt)) for prompt in prompts]).view(-1, 1, 1, 1).expand_as(x_T)

    model, latents = LengthOfPrompt(), prior()
    model.alphas_cumprod.fill_(1.0)  # no noise: z_t is z_0
    latents.prepare(start_of(model), conditioning)
    for probes in (latents.draw(model, batch_of(1), 9, conditioning, Chance(0)), latents.population(start_of(model), conditioning, 2)):
        assert probes.z_t.mean(dim=(1, 2, 3)).tolist() == [len(prompt) for prompt in probes.choice.texts]


def test_every_sample_is_dealt_once_a_round(conditioning, prior):
    latents, model = prior(), ToyModel()
    model.alphas_cumprod.fill_(1.0)  # no noise: z_t tells which sample it was
    latents.prepare(start_of(model), conditioning)
    probes = latents.draw(model, batch_of(1), 6, conditioning, Chance(0))
    assert len({tuple(z.flatten().tolist()) for z in probes.z_t}) == 6


def test_the_bank_is_made_once_and_a_warm_cache_gives_the_same_draws(conditioning, prior):
    model = ToyModel()
    cold, warm = prior(), prior()
    cold.prepare(start_of(model), conditioning)
    assert model.priors == 6
    warm.prepare(start_of(model), conditioning)
    assert model.priors == 6
    first, second = (latents.draw(model, batch_of(1), 5, conditioning, Chance(3)) for latents in (cold, warm))
    assert torch.equal(first.z_t, second.z_t) and torch.equal(first.t, second.t) and first.choice.texts == second.choice.texts


@pytest.mark.parametrize("change", [{"samples": 7}, {"ddim_steps": 3}, {"guidance_scale": 2.0}], ids=str)
def test_any_setting_that_decides_the_samples_makes_a_new_bank(conditioning, prior, change):
    model = ToyModel()
    prior().prepare(start_of(model), conditioning)
    made = model.priors
    prior(**change).prepare(start_of(model), conditioning)
    assert model.priors > made


@pytest.mark.parametrize("change", [{"theta_hash": "another"}, {"seed": 2}, {"facts": {"heads": 8}}], ids=str)
def test_so_does_another_frozen_model_or_seed(conditioning, prior, change):
    model = ToyModel()
    prior().prepare(start_of(model), conditioning)
    prior().prepare(start_of(model, **change), conditioning)
    assert model.priors == 12


def test_so_do_other_prompts_but_not_the_size_of_a_sampling_batch(prior, conditioning):
    model = ToyModel()
    prior().prepare(start_of(model), conditioning)
    prior(sampling_batch_size=4).prepare(start_of(model), conditioning)
    assert model.priors == 6
    prior().prepare(start_of(model), EmptyPrompt())
    assert model.priors == 12


def test_the_bank_of_a_mixture_has_entries_in_the_ratio_of_its_weights(prior):
    mixture = Mixture([EmptyPrompt(), ClassPrompts()], [1, 2])
    mixture.bind(WORDS)
    latents = prior(samples=9)
    latents.prepare(start_of(ToyModel()), mixture)
    choice = latents.draw(ToyModel(), batch_of(1), 9, mixture, Chance(0)).choice
    empty = choice.encode(lambda prompts: torch.tensor([[[float(prompt == "")]] for prompt in prompts]))
    assert empty.shape == (9, 1, 1) and empty.sum() == 3


def test_the_population_covers_all_timesteps_evenly(conditioning, prior):
    latents = prior(samples=50)
    latents.prepare(start_of(ToyModel()), conditioning)
    t = latents.population(start_of(ToyModel()), conditioning, 4).t.view(50, 4)
    assert all(((t >= 5 * stretch) & (t < 5 * (stretch + 1)))[:, stretch].all() for stretch in range(4))
    assert len(set(t.flatten().tolist())) == 20


@pytest.fixture
def trajectories(tmp_path):
    return lambda **settings: Trajectories(**{"samples": 6, "ddim_steps": 5, "cache_dir": str(tmp_path), **settings})


def start_noise_of(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """From the states of ToyModel's trajectories back to where they began: t falls from 17 in steps of 4."""
    return z_t / 0.9 ** ((17 - t) / 4).view(-1, 1, 1, 1)


def test_trajectories_are_states_of_the_way_with_the_timesteps_of_the_sampler(conditioning, trajectories):
    latents, model = trajectories(), ToyModel()
    latents.prepare(start_of(model), conditioning)
    probes = latents.draw(model, batch_of(1), 300, conditioning, Chance(0))
    assert Counter(probes.t.tolist()).keys() == {1, 5, 9, 13, 17} and min(Counter(probes.t.tolist()).values()) > 35
    starts = start_noise_of(probes.z_t, probes.t)
    assert len({tuple(start.flatten().mul(1e4).round().tolist()) for start in starts}) == 6, "each state goes back to one of six initial noises"
    assert abs(float(starts.std()) - 1) < 0.15


def test_a_state_keeps_the_prompt_of_its_trajectory(trajectories):
    class LengthOfPrompt(ToyModel):
        def draw_trajectories(self, prompts, x_T, ddim_steps, guidance_scale):
            lengths = torch.tensor([float(len(prompt)) for prompt in prompts]).view(-1, 1, 1, 1, 1)
            return lengths.expand(-1, ddim_steps, *x_T.shape[1:]), torch.arange(ddim_steps)

    conditioning = Mixture([EmptyPrompt(), ClassPrompts()])
    conditioning.bind(WORDS)
    latents = trajectories()
    latents.prepare(start_of(LengthOfPrompt()), conditioning)
    for probes in (latents.draw(ToyModel(), batch_of(1), 9, conditioning, Chance(0)), latents.population(start_of(ToyModel()), conditioning, 2)):
        lengths = probes.choice.encode(lambda prompts: torch.tensor([float(len(prompt)) for prompt in prompts]).view(-1, 1, 1))
        assert probes.z_t.mean(dim=(1, 2, 3)).tolist() == lengths.flatten().tolist()


def test_the_population_of_trajectories_has_a_state_in_each_stretch(conditioning, trajectories):
    latents = trajectories(samples=40, ddim_steps=10)
    latents.prepare(start_of(ToyModel()), conditioning)
    t = latents.population(start_of(ToyModel()), conditioning, 5).t.view(40, 5)
    assert (t[:, :-1] > t[:, 1:]).all() and len(set(t.flatten().tolist())) == 10


def test_trajectories_are_drawn_once_and_kept_apart_from_prior_samples(conditioning, trajectories, prior, tmp_path):
    model = ToyModel()
    for _ in range(2):
        latents = trajectories()
        latents.prepare(start_of(model), conditioning)
    assert model.priors == 6
    prior(ddim_steps=5).prepare(start_of(model), conditioning)
    assert model.priors == 12 and len(list(tmp_path.iterdir())) == 2
    trajectories(ddim_steps=4).prepare(start_of(model), conditioning)
    assert model.priors == 18


def test_the_keys_of_existing_banks_hold(conditioning, prior, tmp_path):
    """Drawn anew, banks of earlier runs would cost minutes each: the name of the file is the key's beginning."""
    prior().prepare(start_of(ToyModel()), conditioning)
    assert [path.name for path in tmp_path.iterdir()] == ["prior-samples-7dd26009c00f8302.pt"]


@pytest.mark.parametrize("make", [lambda: PriorSamples(samples=0), lambda: PriorSamples(ddim_steps=1.5), lambda: NoiseLatents(samples=-1)])
def test_counts_below_one_are_refused(make):
    with pytest.raises(ValueError, match="latents_config.params"):
        make()


class Album(ToyModel):
    """Whose training picture number n is n + 1 everywhere."""

    def encode_training_pictures(self, n, seed):
        return torch.arange(1.0, n + 1).view(n, 1, 1, 1).expand(n, 2, 4, 4)


def test_training_pictures_are_noised_by_the_models_own_schedule_from_t_min_on(conditioning):
    model, latents = Album(), TrainingPictures(samples=1, t_min=8)
    latents.prepare(start_of(model), conditioning)
    assert latents.first_t(model) == 8
    for probes in (latents.draw(model, batch_of(1), 4000, conditioning, Chance(0)), latents.population(start_of(model), conditioning, 4000)):
        assert set(probes.t.tolist()) == set(range(8, 20))
        for t in (8, 19):
            abar, z_t = model.alphas_cumprod[t], probes.z_t[probes.t == t]
            torch.testing.assert_close(z_t.mean(), abar.sqrt(), atol=0.05, rtol=0)
            torch.testing.assert_close(z_t.var(), 1 - abar, atol=0.05, rtol=0)


def test_training_pictures_are_met_with_the_class_and_never_with_the_concept(conditioning):
    latents = TrainingPictures(samples=6, t_min=0)
    latents.prepare(start_of(Album()), conditioning)
    batch = batch_of(2, captions=("a photo of a *",) * 2)
    for probes in (latents.draw(Album(), batch, 6, conditioning, Chance(0)), latents.population(start_of(Album()), conditioning, 3)):
        assert set(probes.choice.texts) == set(conditioning.known_prompts()) and not any("*" in text for text in probes.choice.texts)


def test_a_least_timestep_that_the_model_does_not_have_is_refused(conditioning):
    with pytest.raises(ValueError, match="t_min is 20.*20 timesteps.*0 to 19"):
        TrainingPictures(t_min=20).prepare(start_of(Album()), conditioning)
    with pytest.raises(ValueError, match="t_min is -1"):
        TrainingPictures(t_min=-1)


@pytest.fixture
def mixed(conditioning, prior):
    """Six prior samples, all 0, and three training pictures, at timesteps from 10 on; without noise, so that z_t tells the source."""

    class Model(Album):
        def draw_prior(self, prompts, x_T, ddim_steps, guidance_scale):
            return torch.zeros_like(x_T)

    model = Model()
    model.alphas_cumprod.fill_(1.0)
    latents = MixedLatents([prior(samples=6), TrainingPictures(samples=3, t_min=10)])
    latents.prepare(start_of(model), conditioning)
    return model, latents


def test_of_several_sources_each_has_the_share_of_its_samples(conditioning, mixed):
    model, latents = mixed
    assert latents.samples == 9 and latents.first_t(model) == 10
    chance = Chance(0)
    rounds = [latents.draw(model, batch_of(1), 9, conditioning, chance) for _ in range(50)]
    for probes in rounds:
        assert Counter(probes.z_t.mean(dim=(1, 2, 3)).tolist()) == {0.0: 6, 1.0: 1, 2.0: 1, 3.0: 1}
    listed = latents.population(start_of(model), conditioning, 50)
    assert Counter(listed.z_t.mean(dim=(1, 2, 3)).tolist()) == {0.0: 300, 1.0: 50, 2.0: 50, 3.0: 50}
    for probes in (*rounds, listed):
        assert len(probes.choice) == len(probes.t) == len(probes.z_t)
        of_pictures = probes.t[probes.z_t.mean(dim=(1, 2, 3)) > 0]
        assert of_pictures.min() >= 10
    assert torch.cat([probes.t for probes in rounds]).min() == listed.t.min() == 0


def test_of_several_sources_each_sample_keeps_its_prompt(mixed):
    model, latents = mixed
    mixture = Mixture([EmptyPrompt(), ClassPrompts()])
    mixture.bind(WORDS)
    latents.prepare(start_of(model), mixture)
    prompts = [slot.prompt for slot in latents.parts[1]._slots]
    for probes in (latents.draw(model, batch_of(1), 40, mixture, Chance(0)), latents.population(start_of(model), mixture, 3)):
        lengths = probes.choice.encode(lambda texts: torch.tensor([float(len(text)) for text in texts]).view(-1, 1, 1)).flatten().tolist()
        for number, length in zip(probes.z_t.mean(dim=(1, 2, 3)).tolist(), lengths):
            assert not number or length == len(prompts[int(number) - 1])


def test_several_sources_may_fall_on_one_alone_in_a_small_draw(conditioning, mixed):
    model, latents = mixed
    chance = Chance(0)
    assert {len(latents.draw(model, batch_of(1), 1, conditioning, chance).t) for _ in range(20)} == {1}


def test_only_sources_that_keep_samples_can_be_joined():
    for part in (TrainingLatents(), NoiseLatents()):
        with pytest.raises(ValueError, match=f"{type(part).__name__} in .*parts keeps no samples.*PriorSamples, Trajectories, TrainingPictures"):
            MixedLatents([PriorSamples(), part])
    with pytest.raises(ValueError, match="parts is an empty list"):
        MixedLatents([])
