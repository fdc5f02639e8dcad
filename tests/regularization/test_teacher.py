"""The frozen model's output: right, independent of the student, and without a graph."""
import copy

import pytest
import torch

from ldm.regularization import CachedTeacher, ClassPrompts, Conditioning, EmptyPrompt, FrozenCopy, Mixture, NoiseLatents, PriorSamples, TrainingLatents
from ldm.regularization.chance import Chance
from ldm.regularization.choices import Prompts
from ldm.regularization.latents import BesideEmpty
from ldm.regularization.teacher import frozen_copy
from ldm.regularization.types import NoisyLatents
from tests.regularization.doubles import WORDS, ToyModel, batch_of, regularizer_of, start_of


@pytest.fixture
def conditioning():
    conditioning = ClassPrompts()
    conditioning.bind(WORDS)
    return conditioning


def probes_of(n: int = 3) -> NoisyLatents:
    batch = batch_of(n)
    return NoisyLatents(batch.z_t, batch.t, Prompts(["one cat", "a photo of a cat", ""][:n]))


def prepared_copy(model, conditioning, **settings) -> FrozenCopy:
    teacher = FrozenCopy(**settings)
    assert teacher.prepare(start_of(model), conditioning, latents := NoiseLatents()) is latents
    return teacher


def prepared_cache(model, conditioning, tmp_path, latents=None, **settings):
    teacher = CachedTeacher(**{"noisings": 3, "cache_dir": str(tmp_path), **settings})
    latents = latents or NoiseLatents(any_t=True, samples=5)
    latents.prepare(start_of(model), conditioning)
    return teacher, teacher.prepare(start_of(model), conditioning, latents)


def test_copy_says_exactly_what_the_model_said_and_goes_on_saying_it(conditioning):
    model, probes = ToyModel(), probes_of()
    teacher = prepared_copy(model, conditioning)
    before = model.denoise(probes).detach()
    assert torch.equal(teacher(model, probes), before)
    model.take_a_step()
    assert not torch.equal(model.denoise(probes), before)
    assert torch.equal(teacher(model, probes), before), "network and text encoder are both the frozen ones"


def test_copy_has_no_graph_and_the_model_is_itself_again_afterwards(conditioning):
    model = ToyModel()
    own = model.model, model.cond_stage_model
    teacher = prepared_copy(model, conditioning)
    assert not teacher(model, probes_of()).requires_grad
    assert (model.model, model.cond_stage_model) == own and model.denoise(probes_of()).requires_grad


def test_copy_shares_a_text_encoder_that_is_not_tuned(conditioning):
    class OnlyNetworkTuned(ToyModel):
        def tuned_modules(self):
            return {"model": self.model}

    model = OnlyNetworkTuned()
    teacher = prepared_copy(model, conditioning)
    assert list(teacher._theta) == ["model"]
    with torch.no_grad():
        model.cond_stage_model.table.weight.zero_()
    assert torch.equal(teacher(model, probes_of()), model.denoise(probes_of()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_copy_in_half_precision_rounds_and_answers_in_the_students_dtype(conditioning, dtype):
    model, probes = ToyModel(), probes_of()
    teacher = prepared_copy(model, conditioning, dtype=dtype)
    exact, rounded = model.denoise(probes), teacher(model, probes)
    assert rounded.dtype == torch.float32
    error = (exact - rounded).pow(2).mean() / exact.pow(2).mean()
    assert 0 < error < 1e-3
    weights = teacher._theta["model"].conv.weight, teacher._theta["cond_stage_model"].table.weight
    assert [weight.dtype for weight in weights] == [getattr(torch, dtype), torch.float32], "tables and norms stay"


def test_copy_in_fp32_is_exact_where_the_student_runs_in_half_precision(conditioning):
    model, probes = ToyModel(), probes_of()
    exact = model.denoise(probes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prepared_copy(model, conditioning, dtype="float32")(model, probes), exact)
        assert not torch.equal(prepared_copy(model, conditioning)(model, probes), exact)


def test_copy_moves_where_it_is_told_with_what_its_encoder_knows_of_devices():
    model = ToyModel()
    moved = frozen_copy(model.cond_stage_model, torch.device("meta"))
    assert moved.device == "meta" and moved.table.weight.is_meta and not moved.table.weight.requires_grad and not moved.training
    assert model.cond_stage_model.device == "cpu" and model.training


def test_copy_leaves_the_trainer_outside():
    class Trainer:
        def __deepcopy__(self, memo):
            raise AssertionError("a trainer was copied")

    model = ToyModel()
    model.model._trainer = Trainer()
    assert frozen_copy(model.model, torch.device("cpu"))._trainer is model.model._trainer


def test_cache_answers_without_any_frozen_pass(conditioning, tmp_path):
    model = ToyModel()
    teacher, source = prepared_cache(model, conditioning, tmp_path)
    reference, made = copy.deepcopy(model), model.evaluations
    model.take_a_step()
    probes = source.draw(model, batch_of(1), 15, conditioning, Chance(0))
    cached = teacher(model, probes)
    assert model.evaluations == made and not cached.requires_grad
    torch.testing.assert_close(cached, reference.denoise(probes).detach(), atol=1e-6, rtol=0)
    assert len({tuple(z.flatten().tolist()) for z in probes.z_t}) == 15, "one round deals all entries"


def test_cache_keeps_the_unconditional_output_beside_the_other_where_it_is_asked_for(conditioning, tmp_path):
    model, latents = ToyModel(), NoiseLatents(any_t=True, samples=5)
    plain, _ = prepared_cache(model, conditioning, tmp_path, latents)
    teacher, source = prepared_cache(model, conditioning, tmp_path, BesideEmpty(latents))
    probes = source.draw(model, batch_of(1), 6, conditioning, Chance(0))
    assert probes.unconditional and teacher(model, probes).shape == (6, 2, 2, 4, 4)
    torch.testing.assert_close(teacher(model, probes), model.denoise(probes).detach(), atol=1e-6, rtol=0)
    assert not torch.equal(*teacher(model, probes).unbind(1))


def test_cache_is_found_again_and_equal(conditioning, tmp_path):
    model = ToyModel()
    _, cold = prepared_cache(model, conditioning, tmp_path)
    made = model.evaluations
    _, warm = prepared_cache(model, conditioning, tmp_path)
    assert model.evaluations == made
    first, second = (source.draw(model, batch_of(1), 4, conditioning, Chance(2)) for source in (cold, warm))
    assert torch.equal(first.frozen, second.frozen) and torch.equal(first.z_t, second.z_t)


@pytest.mark.parametrize(
    "change",
    [{"noisings": 4}, {"dtype": "float16"}, {"latents": NoiseLatents(samples=5)}, {"latents": NoiseLatents(any_t=True, samples=6)}],
    ids=["noisings", "dtype", "timesteps", "samples"],
)
def test_cache_is_made_anew_for_other_settings(conditioning, tmp_path, change):
    model = ToyModel()
    prepared_cache(model, conditioning, tmp_path)
    made = model.evaluations
    prepared_cache(model, conditioning, tmp_path, **change)
    assert model.evaluations > made


def test_cache_is_made_anew_for_other_prompts(conditioning, tmp_path):
    model = ToyModel()
    prepared_cache(model, conditioning, tmp_path)
    made = model.evaluations
    prepared_cache(model, EmptyPrompt(), tmp_path)
    assert model.evaluations > made


def test_cache_is_made_anew_for_another_prompt_at_the_same_latents(tmp_path):
    model, evaluations = ToyModel(), []
    for prompt in ("a house", "a tree", "a house"):
        conditioning = ClassPrompts(prompts=[prompt])
        conditioning.bind(WORDS)
        prepared_cache(model, conditioning, tmp_path)
        evaluations.append(model.evaluations)
    assert evaluations[0] < evaluations[1] == evaluations[2]


def test_cache_of_a_mixture_keeps_each_entry_with_its_prompt(tmp_path):
    mixture = Mixture([EmptyPrompt(), ClassPrompts()])
    mixture.bind(WORDS)
    model = ToyModel()
    teacher, source = prepared_cache(model, mixture, tmp_path)
    probes = source.draw(model, batch_of(1), 15, mixture, Chance(0))
    torch.testing.assert_close(teacher(model, probes), model.denoise(probes).detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cache_in_half_precision_rounds_only_the_output(conditioning, tmp_path, dtype):
    model = ToyModel()
    teacher, source = prepared_cache(model, conditioning, tmp_path, dtype=dtype)
    probes = source.draw(model, batch_of(1), 15, conditioning, Chance(0))
    exact, rounded = model.denoise(probes).detach(), teacher(model, probes)
    error = (exact - rounded).pow(2).mean() / exact.pow(2).mean()
    assert rounded.dtype == torch.float32 and 0 < error < 1e-4


def test_cache_refuses_latents_that_are_new_in_every_step_and_names_what_fits(conditioning):
    with pytest.raises(ValueError, match="TrainingLatents.*PriorSamples or NoiseLatents.*FrozenCopy"):
        CachedTeacher().check(conditioning, TrainingLatents())


def test_cache_refuses_choices_that_move_with_the_concept_while_it_moves(tmp_path):
    class AroundTheConcept(Conditioning):
        needs_concept = True

        def prompts(self, n, generator):
            return ["a photo of a cat"] * n

    model, latents = ToyModel(), PriorSamples(samples=2, cache_dir=str(tmp_path))
    parts = {"conditioning": AroundTheConcept(), "latents": latents, "teacher": CachedTeacher(noisings=1, cache_dir=str(tmp_path))}
    with pytest.raises(ValueError, match="EmptyPrompt or ClassPrompts.*train_embeddings: false.*FrozenCopy"):
        regularizer_of(model, start=start_of(model, concept_moves=True), **parts)
    assert model.priors == 0, "said before anything is sampled"
    assert regularizer_of(model, start=start_of(model, concept_moves=False), **parts).floor < 1e-10


def test_the_keys_of_existing_outputs_hold(conditioning, tmp_path):
    """Keys are of facts, not of what a machine's rounding makes of samples: latents of whole numbers."""

    class Whole(NoiseLatents):
        def population(self, start, conditioning, noisings):
            return NoisyLatents(torch.arange(64.0).view(2, 2, 4, 4), torch.tensor([3, 9]), Prompts(["one cat", "a cat"]))

    prepared_cache(ToyModel(), conditioning, tmp_path, latents=Whole())
    assert [path.name for path in tmp_path.iterdir()] == ["frozen-outputs-6fa19fdd881d3ef8.pt"]


class TheConceptItself(Conditioning):
    """c = τ of the concept: the most that an encoding can depend on its vectors."""

    needs_concept = True

    def prompts(self, n, generator):
        return ["a photo of a cat"] * n


def test_cache_is_made_anew_for_another_concept_where_the_encoding_depends_on_it(conditioning, tmp_path):
    model, evaluations = ToyModel(), []
    for depends in (False, True):
        for concept in ("one", "another", "one"):
            asked = TheConceptItself() if depends else conditioning
            start = start_of(model, concept_moves=False, concept_hash=concept)
            CachedTeacher(noisings=2, cache_dir=str(tmp_path)).prepare(start, asked, NoiseLatents(samples=3))
            evaluations.append(model.evaluations)
    assert evaluations[0] == evaluations[1] == evaluations[2] < evaluations[3] < evaluations[4] == evaluations[5]


class AskedOnce(Prompts):
    """A choice that must be settled: by whom, it remembers."""

    by = None

    def settled(self, encoder):
        settled = AskedOnce(self.texts)
        settled.by = float(encoder(["x"]).detach().sum())
        return settled

    def select(self, rows):
        return self


def test_choices_are_settled_by_the_frozen_encoder(conditioning, tmp_path):
    class Asking(ClassPrompts):
        def choose(self, prompts, generator):
            return AskedOnce(prompts)

    model, asking = ToyModel(), Asking(prompts=["a cat"])
    asking.bind(WORDS)
    frozen = float(model.encode(["x"]).detach().sum())
    teachers = [prepared_copy(model, asking), CachedTeacher(noisings=1, cache_dir=str(tmp_path))]
    cached = teachers[1].prepare(start_of(model), asking, NoiseLatents(samples=1))
    model.take_a_step()
    assert teachers[0].settle(model, AskedOnce(["a cat"])).by == frozen != float(model.encode(["x"]).detach().sum())
    choice = cached.draw(model, batch_of(1), 1, asking, Chance(0)).choice
    assert choice.by == frozen and teachers[1].settle(model, choice) is choice


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FrozenCopy(dtype="half-ish"), "dtype is 'half-ish'"),
        (lambda: FrozenCopy(device="gpu"), "device is 'gpu'.*cpu, cuda"),
        (lambda: CachedTeacher(dtype="int8"), "dtype is 'int8'"),
        (lambda: CachedTeacher(noisings=0), "noisings is 0"),
        (lambda: CachedTeacher(batch_size=0), "teacher_config.params.batch_size is 0"),
    ],
)
def test_impossible_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "a card", "a CPU"],
)
def test_where_memory_does_not_hold_a_copy_the_teachers_that_need_none_are_named(conditioning, monkeypatch, failure):
    def full(*args, **kwargs):
        raise failure

    monkeypatch.setattr(copy, "deepcopy", full)
    with pytest.raises(ValueError, match="not enough memory on cpu.*GiB.*CachedTeacher.*AdapterOff.*dtype: bfloat16"):
        prepared_copy(ToyModel(), conditioning)


def test_another_failure_of_a_copy_keeps_its_own_words(conditioning, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")

    monkeypatch.setattr(copy, "deepcopy", broken)
    with pytest.raises(RuntimeError, match="created explicitly"):
        prepared_copy(ToyModel(), conditioning)


def test_a_network_held_on_the_bank_is_held_as_well_at_points_it_has_never_met(conditioning, tmp_path):
    """Tuned hard on one picture, with the term on cached probes: R there and R on new samples, noises and timesteps agree within their error."""
    model = ToyModel()
    latents = PriorSamples(samples=16, ddim_steps=2, cache_dir=str(tmp_path))
    regularizer = regularizer_of(model, latents=latents, teacher=CachedTeacher(noisings=8, cache_dir=str(tmp_path)), batch_size=16)
    reference, picture = copy.deepcopy(model), batch_of(4)
    concept = NoisyLatents(picture.z_t, picture.t, Prompts(["one *"] * 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        (5 * (model.denoise(concept) - 1).pow(2).mean() + regularizer(model, picture, step).loss).backward()
        optimizer.step()

    def error_at(probes):
        with torch.no_grad():
            return (model.denoise(probes) - reference.denoise(probes)).pow(2).flatten(1).mean(1)

    fresh_source = PriorSamples(samples=64, ddim_steps=2, cache_dir=str(tmp_path))
    fresh_source.prepare(start_of(reference, seed=99), conditioning)
    bank = error_at(regularizer._source._entries)
    fresh = error_at(fresh_source.draw(model, picture, 512, conditioning, Chance(7)))
    se = (bank.var() / 16 + fresh.var() / 64).sqrt()  # the independent unit is the sample
    assert bank.mean() > 1e-4, "the picture has moved the network"
    assert abs(bank.mean() - fresh.mean()) < 3 * se


def test_cache_works_on_prior_samples_too(conditioning, tmp_path):
    model = ToyModel()
    latents = PriorSamples(samples=4, ddim_steps=2, cache_dir=str(tmp_path))
    teacher, source = prepared_cache(model, conditioning, tmp_path, latents=latents)
    probes = source.draw(model, batch_of(1), 12, conditioning, Chance(0))
    torch.testing.assert_close(teacher(model, probes), model.denoise(probes).detach(), atol=1e-6, rtol=0)
    assert len(list(tmp_path.iterdir())) == 2, "samples and outputs are kept apart: other noisings need no new samples"
