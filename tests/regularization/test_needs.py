"""What the parts say that they will hold and run, against what they then hold and run."""
import pytest

from ldm.regularization import (
    AdapterOff,
    CachedTeacher,
    ClassPrompts,
    FrozenCopy,
    MixedLatents,
    NoiseLatents,
    PriorSamples,
    Teacher,
    TrainingLatents,
    Trajectories,
)
from tests.regularization.doubles import WORDS, ToyModel, start_of


class Counting(ToyModel):
    """Remembers how many samples each pass of the network had, guidance's second half included."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def denoise(self, probes, theta=None):
        self.passes.append(len(probes.t))
        return super().denoise(probes, theta)

    def draw_prior(self, prompts, x_T, ddim_steps, guidance_scale):
        self.passes.append(len(prompts) * (1 if guidance_scale == 1.0 else 2))
        return super().draw_prior(prompts, x_T, ddim_steps, guidance_scale)

    def draw_trajectories(self, prompts, x_T, ddim_steps, guidance_scale):
        self.passes.append(len(prompts) * (1 if guidance_scale == 1.0 else 2))
        return super().draw_trajectories(prompts, x_T, ddim_steps, guidance_scale)


def prior(at, batch_size=4, **settings):
    return PriorSamples(samples=9, ddim_steps=2, sampling_batch_size=batch_size, cache_dir=at, **settings)


def trajectories(at):
    return Trajectories(samples=9, ddim_steps=2, sampling_batch_size=3, cache_dir=at)


SOURCES = {
    "training": (lambda at: TrainingLatents(), 0),
    "noise": (lambda at: NoiseLatents(samples=3), 0),
    "prior": (prior, 4),
    "guided": (lambda at: prior(at, guidance_scale=3.0), 8),
    "trajectories": (trajectories, 3),
    "mixed": (lambda at: MixedLatents([trajectories(at), prior(at, 5)]), 5),
}


@pytest.fixture
def class_prompts():
    conditioning = ClassPrompts()
    conditioning.bind(WORDS)
    return conditioning


@pytest.mark.parametrize("name", SOURCES)
def test_sources_say_how_large_the_passes_are_in_which_they_draw(tmp_path, class_prompts, name):
    made, largest = SOURCES[name]
    latents, model = made(str(tmp_path)), Counting()
    assert latents.largest_pass() == largest
    latents.prepare(start_of(model), class_prompts)
    assert max(model.passes, default=0) == largest


@pytest.mark.parametrize("name", ["noise", "prior", "mixed"])
def test_a_cached_teacher_says_what_it_stores_and_in_which_passes(tmp_path, class_prompts, name):
    latents, model = SOURCES[name][0](str(tmp_path)), Counting()
    teacher = CachedTeacher(noisings=5, batch_size=6, cache_dir=str(tmp_path))
    latents.prepare(start_of(model), class_prompts)
    model.passes.clear()
    source = teacher.prepare(start_of(model), class_prompts, latents)
    assert max(model.passes) == 6 == teacher.largest_pass()
    assert len(source._entries.t) == teacher.stored(latents) == 5 * latents.samples
    assert not teacher.second_network


@pytest.mark.parametrize(("teacher", "second"), [(FrozenCopy(), True), (AdapterOff(), False), (Teacher(), False)], ids=lambda value: type(value).__name__)
def test_teachers_that_are_asked_in_each_step_store_nothing_and_one_holds_a_second_network(class_prompts, teacher, second):
    assert teacher.stored(NoiseLatents(samples=3)) == teacher.largest_pass() == 0 and teacher.second_network is second
    if second:
        teacher.prepare(start_of(ToyModel()), class_prompts, NoiseLatents())
        held = sum(parameter.numel() for module in teacher._theta.values() for parameter in module.parameters())
        assert held == sum(parameter.numel() for parameter in ToyModel().parameters())
