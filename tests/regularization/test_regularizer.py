"""The parts joined: value, weight, rhythm, state, and that another part is one small class."""
import io
import logging

import pytest
import torch

from ldm.regularization import (
    CachedTeacher,
    ClassPrompts,
    Conditioning,
    ConstantWeight,
    EmptyPrompt,
    FrozenCopy,
    Latents,
    LocalityRegularizer,
    NoiseLatents,
    NoiseMSE,
    NoisyLatents,
    Part,
    PriorSamples,
    Teacher,
    TrainingLatents,
)
from ldm.regularization import conditioning as conditioning_module
from ldm.regularization.choices import Prompts
from ldm.regularization.conditioning import choose
from ldm.regularization.configuration import build
from ldm.util import instantiate_from_config
from tests.regularization.doubles import WORDS, ToyModel, batch_of, regularizer_of, start_of


def run(regularizer, model, steps, batch=None, training=True) -> list:
    return [regularizer(model, batch or batch_of(2), step, training).loss.item() for step in steps]


def test_term_is_weight_times_k_times_r_and_in_validation_without_k():
    model = ToyModel()
    regularizer = regularizer_of(model, weight=ConstantWeight(2.0, every=4, warmup_steps=8))
    model.take_a_step()
    term = regularizer(model, batch_of(2), 3)
    assert term.logs["locality_weight"] == 2.0 * 3 / 8
    torch.testing.assert_close(term.loss, 2.0 * (3 / 8) * 4 * term.logs["loss_locality"])
    assert not term.logs["loss_locality"].requires_grad
    validated = regularizer(model, batch_of(2), 3, training=False)
    torch.testing.assert_close(validated.loss, 2.0 * (3 / 8) * validated.logs["loss_locality"])


def test_due_in_every_kth_training_step_and_in_every_validation():
    regularizer = regularizer_of(ToyModel(), weight=ConstantWeight(2.0, every=4))
    assert [step for step in range(9) if regularizer.due(step, training=True)] == [3, 7]
    assert all(regularizer.due(step, training=False) for step in range(9))


def test_probes_are_as_many_as_the_batch_on_training_latents_and_batch_size_elsewhere():
    seen = []

    class Counted(ToyModel):
        def denoise(self, probes, theta=None):
            seen.append(len(probes.t))
            return super().denoise(probes, theta)

    for latents, expected in ((TrainingLatents(), 3), (NoiseLatents(), 5)):
        regularizer = regularizer_of(Counted(), latents=latents, batch_size=5)
        seen.clear()
        regularizer(Counted(), batch_of(3), 0)
        assert set(seen) == {expected}


def test_the_floor_is_0_for_an_exact_teacher_and_rounding_for_another(caplog):
    with caplog.at_level(logging.INFO, "ldm.regularization.regularizer"):
        assert regularizer_of(ToyModel()).floor == 0.0
        assert 0 < regularizer_of(ToyModel(), teacher=FrozenCopy(dtype="bfloat16")).floor < 1e-3
    assert "before the first step R is" in caplog.text and "more than rounding" not in caplog.text


def test_a_teacher_that_is_not_the_model_is_warned_of(caplog):
    class Wrong(Teacher):
        def __call__(self, model, probes):
            return torch.zeros_like(probes.z_t)

    regularizer_of(ToyModel(), teacher=Wrong())
    assert "more than rounding" in caplog.text


def test_steps_that_carry_the_term_are_counted_once_however_many_batches_they_have():
    model = ToyModel()
    regularizer = regularizer_of(model)
    run(regularizer, model, [3, 3, 7, 7])
    run(regularizer, model, [8], training=False)
    assert regularizer.acted == 2


def test_validation_draws_from_a_generator_of_its_own():
    model = ToyModel()
    with_validation, without = (regularizer_of(model, latents=NoiseLatents(any_t=True)) for _ in range(2))
    model.take_a_step()
    mixed = []
    for step in range(3):
        run(with_validation, model, [step], training=False)
        mixed += run(with_validation, model, [step])
    assert mixed == run(without, model, range(3)) and len(set(mixed)) == 3


def test_both_validation_passes_meet_the_same_probes_and_the_next_batch_others():
    model = ToyModel()
    regularizer = regularizer_of(model, latents=NoiseLatents(any_t=True))
    model.take_a_step()
    values = []
    for _ in range(2):
        with regularizer.equal_validation_draws():
            values.append(run(regularizer, model, [0, 0], training=False))
    assert values[0][0] == values[0][1] != values[1][0] == values[1][1]
    outside = run(regularizer, model, [0, 0], training=False)
    assert outside[0] != outside[1], "only inside"


def test_state_restores_the_run_through_a_file_of_plain_values():
    model = ToyModel()
    parts = {"latents": NoiseLatents(any_t=True), "conditioning": ClassPrompts()}
    regularizer = regularizer_of(model, **parts)
    model.take_a_step()
    run(regularizer, model, range(3))
    run(regularizer, model, [2], training=False)
    file = io.BytesIO()
    torch.save(regularizer.state_dict(), file)
    expected = run(regularizer, model, range(3, 6)), run(regularizer, model, [6], training=False), regularizer.acted
    resumed = regularizer_of(model, **parts, teacher=regularizer.teacher, start=start_of(ToyModel()))
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert (run(resumed, model, range(3, 6)), run(resumed, model, [6], training=False), resumed.acted) == expected


def test_another_base_is_refused_with_both_hashes():
    state = regularizer_of(ToyModel()).state_dict()
    other = regularizer_of(ToyModel(), start=start_of(ToyModel(), theta_hash="abc123"))
    with pytest.raises(ValueError, match="of the toy.*abc123"):
        other.load_state_dict(state)


def test_ranks_draw_different_probes():
    model = ToyModel()
    ranks = [regularizer_of(model, latents=NoiseLatents(any_t=True), start=start_of(model, rank=rank)) for rank in range(2)]
    model.take_a_step()
    assert run(ranks[0], model, [0]) != run(ranks[1], model, [0])


def test_too_high_a_weight_is_warned_of_when_the_run_starts(caplog):
    regularizer_of(ToyModel(), weight=ConstantWeight(10.0))
    assert "recommended" not in caplog.text
    regularizer_of(ToyModel(), weight=ConstantWeight(1000.0))
    assert "100 times the recommended 10" in caplog.text and "loss_original" in caplog.text


def test_weight_0_is_said():
    off = LocalityRegularizer(weight=ConstantWeight(0.0), conditioning=ClassPrompts(), latents=TrainingLatents(), teacher=FrozenCopy())
    assert not off.on and not off.ready and "off" in off.describe()


def test_description_says_what_where_and_how_often():
    line = regularizer_of(ToyModel(), weight=ConstantWeight(10.0, every=8, warmup_steps=100), batch_size=3).describe()
    for said in ("on", "weight 10", "every 8", "100 steps", "'a photo of a cat'", "TrainingLatents", "FrozenCopy", "NoiseMSE", "3 probes"):
        assert said in line
    assert "\n" not in line


def test_hybrid_networks_need_training_latents(tmp_path):
    hybrid = start_of(ToyModel(), hybrid=True)
    with pytest.raises(ValueError, match="conditioning_key: hybrid.*TrainingLatents"):
        regularizer_of(ToyModel(), latents=PriorSamples(cache_dir=str(tmp_path)), start=hybrid)
    assert regularizer_of(ToyModel(), latents=TrainingLatents(), start=hybrid).ready


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_batch_size_below_1_is_refused(size):
    with pytest.raises(ValueError, match="batch_size"):
        LocalityRegularizer(weight=ConstantWeight(), conditioning=EmptyPrompt(), latents=TrainingLatents(), teacher=FrozenCopy(), batch_size=size)


@pytest.mark.parametrize(
    ("name", "part"),
    [("weight", None), ("weight", NoiseMSE()), ("conditioning", NoiseLatents()), ("latents", NoiseMSE()), ("teacher", EmptyPrompt()), ("loss", FrozenCopy())],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_part_in_the_wrong_place_is_named_by_its_key(name, part):
    parts = {"weight": ConstantWeight(), "conditioning": EmptyPrompt(), "latents": TrainingLatents(), "teacher": FrozenCopy()}
    found = "empty" if part is None else f"a {type(part).__name__}"
    with pytest.raises(ValueError, match=f"regularization_config.params.{name}_config is {found}; expected a "):
        LocalityRegularizer(**{**parts, name: part})


def test_a_seed_that_is_none_is_refused_by_name():
    with pytest.raises(ValueError, match="regularization_config.params.seed is None"):
        LocalityRegularizer(weight=ConstantWeight(), conditioning=EmptyPrompt(), latents=TrainingLatents(), teacher=FrozenCopy(), seed=None)


# Each of these is a part that the package does not have: one small class, and nothing else had to change.


class HalfwayTokens(Conditioning):
    """Between two prompts, in the space of token embeddings (a choice that edits tokens, drawn once, encoded by both encoders)."""

    class Halfway(Prompts):
        def __init__(self, texts, alpha):
            super().__init__(texts)
            self.alpha = alpha

        def select(self, rows):
            return type(self)([self.texts[row] for row in rows], self.alpha[list(rows)])

        def encode(self, encoder):
            n, alpha = len(self), self.alpha.view(-1, 1, 1)

            def between(e):
                return torch.cat([e[:n] + alpha * (e[n:] - e[:n]), e[n:]])

            return encoder([*self.texts, *[""] * n], edit_tokens=between)[:n]

    def prompts(self, n, generator):
        return ["one cat"] * n

    def choose(self, prompts, generator):
        return self.Halfway(prompts, torch.rand(len(prompts), generator=generator))


class ShrunkTrainingLatents(Latents):
    def __init__(self, scale: float = 0.5):
        self.scale = scale

    def draw(self, model, batch, n, conditioning, chance):
        choice = choose(conditioning.slots(len(batch.t), chance.generator), chance.generator)
        return NoisyLatents(self.scale * batch.z_t, batch.t, choice)


class ZeroTeacher(Teacher):
    def __call__(self, model, probes):
        return torch.zeros_like(probes.z_t)


class AbsoluteError(Part):
    def __call__(self, f, f0, probes, model):
        return (f - f0).abs().mean()


class FadingWeight(ConstantWeight):
    def at(self, step):
        return self.weight / (1 + step)


def test_another_conditioning_is_one_small_class(tmp_path):
    model = ToyModel()
    exact = regularizer_of(model, conditioning=HalfwayTokens())
    assert exact.floor == 0.0 and run(exact, model, [0]) == [0.0]

    def cached(conditioning):
        return regularizer_of(model, conditioning=conditioning, latents=NoiseLatents(), teacher=CachedTeacher(noisings=2, cache_dir=str(tmp_path)))

    class Nearer(HalfwayTokens):
        def choose(self, prompts, generator):
            return self.Halfway(prompts, 0.1 * torch.rand(len(prompts), generator=generator))

    held = cached(HalfwayTokens())
    assert held.floor < 1e-10, "each entry keeps its own point between the two"
    assert cached(Nearer()).floor < 1e-10, "and what it keeps is told from what another one kept"
    model.take_a_step()
    assert run(held, model, [1])[0] > 0


def test_another_conditioning_is_named_in_the_yaml_like_any(monkeypatch):
    monkeypatch.setattr(conditioning_module, "HalfwayTokens", HalfwayTokens, raising=False)
    here = "ldm.regularization."
    parts = ("weight.ConstantWeight", "conditioning.HalfwayTokens", "latents.TrainingLatents", "teacher.FrozenCopy")
    params = {f"{target.split('.')[0]}_config": {"target": here + target} for target in parts}
    built = build({"target": here + "regularizer.LocalityRegularizer", "params": params}, instantiate_from_config)
    assert isinstance(built.conditioning, HalfwayTokens)
    built.bind(WORDS)
    built.prepare(start_of(ToyModel()))
    assert built.floor == 0.0


def test_another_source_of_latents_is_one_small_class():
    model = ToyModel()
    regularizer = regularizer_of(model, latents=ShrunkTrainingLatents())
    assert run(regularizer, model, [0]) == [0.0] and "ShrunkTrainingLatents(scale=0.5)" in regularizer.describe()


def test_another_teacher_loss_and_weight_are_one_small_class_each():
    model, batch = ToyModel(), batch_of(2)
    regularizer = regularizer_of(model, conditioning=EmptyPrompt(), teacher=ZeroTeacher(), loss=AbsoluteError(), weight=FadingWeight(6.0))
    term = regularizer(model, batch, 2)
    expected = model.denoise(NoisyLatents(batch.z_t, batch.t, Prompts(["", ""]))).abs().mean()
    torch.testing.assert_close(term.loss, 6.0 / 3 * expected)
