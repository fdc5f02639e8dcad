"""Drift on prompts of its own: the mean square of the difference in ε, of one forward pass, without a trace in the model or the run."""
import copy

import pytest
import torch

from ldm.prompts import imagenet_templates_small
from ldm.regularization import ClassPrompts, DriftBudget, DriftMeter, Words
from ldm.regularization.drift_meter import OF_OTHER_THINGS, OF_THE_CLASS
from tests.regularization.doubles import WORDS, ToyModel, batch_of, regularizer_of, start_of


@pytest.fixture
def meter(tmp_path):
    def made(model, **settings):
        meter = DriftMeter(**{"samples": 4, "ddim_steps": 2, "noisings": 5, "points": 20, "cache_dir": str(tmp_path), **settings})
        meter.bind(WORDS, ClassPrompts(prompts=["never asked"]))
        meter.prepare(start_of(model))
        return meter

    return made


def test_drift_is_0_at_the_start_and_the_mean_square_of_what_has_changed(meter):
    model = ToyModel()
    measure = meter(model)
    assert measure(model, batch_of(1)) < 1e-12

    class Shifted(ToyModel):
        def denoise(self, probes, theta=None):
            return super().denoise(probes, theta) + 0.3

    assert measure(Shifted(), batch_of(1)) == pytest.approx(0.09, rel=1e-4)


def test_a_model_that_predicts_x0_is_measured_in_eps(meter):
    class Shifted(ToyModel):
        parameterization = "x0"
        shift = 0.0

        def denoise(self, probes, theta=None):
            return super().denoise(probes, theta) + self.shift * ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()[probes.t].view(-1, 1, 1, 1)

    model = Shifted()
    measure = meter(model)
    model.shift = 0.3  # in x0 what is 0.3 in ε
    assert measure(model, batch_of(1)) == pytest.approx(0.09, rel=1e-4)


def test_it_takes_one_pass_and_leaves_modes_and_randomness_alone(meter):
    model = ToyModel()
    measure = meter(model, points=3)
    model.train()
    before, state = model.evaluations, torch.get_rng_state()
    model.take_a_step()
    first, second = measure(model, batch_of(1)), measure(model, batch_of(1))
    assert model.evaluations == before + 2 and model.training and torch.equal(torch.get_rng_state(), state)
    assert first != second > 0, "the next points in turn"


def weigh_as_one_of_two(rank, folder):
    """A process of a run whose ranks measure different drift: 0.01 and 0.04."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    class Shifted(ToyModel):
        def denoise(self, probes, theta=None):
            return super().denoise(probes, theta) + 0.1 * (rank + 1)

    held_out = DriftMeter(samples=4, ddim_steps=2, noisings=5, points=20, cache_dir=f"{folder}/{rank}")
    budget = DriftBudget(0.02, weight=4.0, meter=held_out)
    budget.bind(WORDS, ClassPrompts(prompts=["never asked"]))
    budget.prepare(start_of(ToyModel()))
    drift = budget.watch(Shifted(), batch_of(1), 0)["drift"]
    torch.save({"drift": drift, "weight": budget.at(1)}, f"{folder}/rank_{rank}.pt")
    torch.distributed.destroy_process_group()


def test_every_rank_weighs_by_the_mean_drift(tmp_path):
    torch.multiprocessing.spawn(weigh_as_one_of_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt") for rank in range(2))
    assert first == second and first["drift"] == pytest.approx(0.025, rel=1e-4) and first["weight"] == pytest.approx(4.0 * 1.25**0.2, rel=1e-4)


def test_measurements_go_on_from_a_saved_state(meter):
    model = ToyModel()
    first, second = meter(model, points=3), meter(model, points=3)
    model.take_a_step()
    first(model, batch_of(1))
    second.load_state_dict(first.state_dict())
    assert [second(model, batch_of(1)) for _ in range(3)] == [first(model, batch_of(1)) for _ in range(3)]


def test_default_prompts_are_none_that_the_shipped_term_uses():
    templates = Words(("*",), "cat", tuple(imagenet_templates_small))
    conditioning = ClassPrompts()
    conditioning.bind(templates)
    meter = DriftMeter()
    meter.bind(templates, conditioning)
    assert "cat" in meter.describe() and "a street" in meter.describe()


def test_of_its_own_prompts_it_takes_those_that_the_term_leaves_alone():
    meter = DriftMeter()

    def bind_beside(*prompts):
        held = ClassPrompts(prompts=prompts)
        held.bind(WORDS)
        meter.bind(WORDS, held)

    bind_beside("cat", "a street with houses", "a photo of a cat")
    of_class = [template.format("cat") for template in OF_THE_CLASS if template != "{}"]
    assert meter._conditioning.known_prompts() == [*of_class, *OF_OTHER_THINGS[1:]]
    bind_beside("cat", *of_class)
    assert meter._conditioning.known_prompts() == [*OF_OTHER_THINGS]
    with pytest.raises(ValueError, match="holds still all prompts"):
        bind_beside("cat", *of_class, *OF_OTHER_THINGS)


def test_a_run_with_a_budget_logs_drift_and_the_weight_that_follows(tmp_path):
    def regularizer():
        held_out = DriftMeter(samples=4, ddim_steps=2, noisings=5, points=10, cache_dir=str(tmp_path))
        return regularizer_of(ToyModel(), weight=DriftBudget(1e-4, weight=2.0, measure_every=2, meter=held_out))

    model, term = ToyModel(), regularizer()
    at_start = term(model, batch_of(2), 0)
    assert at_start.logs["drift"] < 1e-12 and at_start.logs["locality_weight"] < 2.0
    model.take_a_step()
    between = term(model, batch_of(2), 1)
    assert "drift" not in between.logs and between.logs["locality_weight"] == at_start.logs["locality_weight"]
    state = copy.deepcopy(term.state_dict())
    over = [term(model, batch_of(2), step).logs for step in range(2, 10)]
    weights = [logs["locality_weight"] for logs in over]
    assert over[0]["drift"] > 1e-4 and weights[-1] > weights[0]
    assert "drift" not in term(model, batch_of(2), 40, training=False).logs
    resumed = regularizer()
    resumed.load_state_dict(state)
    assert [resumed(model, batch_of(2), step).logs["locality_weight"] for step in range(2, 10)] == weights
