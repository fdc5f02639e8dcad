"""How much, and when."""
import logging
import math

import pytest

from ldm.regularization import ClassPrompts, ConstantWeight, DriftBudget, DriftMeter
from tests.regularization.doubles import WORDS


def test_every_kth_step_counted_from_the_kth():
    assert [step for step in range(25) if ConstantWeight(1.0, every=8).due(step)] == [7, 15, 23]
    assert all(ConstantWeight(1.0).due(step) for step in range(5))


def test_weight_0_is_never_due():
    assert not ConstantWeight(0.0).on and not any(ConstantWeight(0.0).due(step) for step in range(10))


def test_warm_up_rises_linearly_from_0_and_then_stays():
    weight = ConstantWeight(10.0, warmup_steps=4)
    assert [weight.at(step) for step in range(6)] == [0.0, 2.5, 5.0, 7.5, 10.0, 10.0]
    assert ConstantWeight(10.0).at(0) == 10.0


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"weight": -1.0}, "weight is -1"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"weight": "1e-3"}, "weight is '1e-3'"),
        ({"weight": None}, "weight is None"),
        ({"every": "8"}, "every is '8'"),
        ({"every": 0}, "every is 0"),
        ({"warmup_steps": -3}, "warmup_steps is -3"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, key):
    with pytest.raises(ValueError, match=key):
        ConstantWeight(**settings)


def test_a_weight_far_above_the_recommended_is_warned_of():
    assert ConstantWeight(10.0).caution() is None and ConstantWeight(0.0).caution() is None
    assert "100 times the recommended 10" in ConstantWeight(1000.0).caution()


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match="weight is -1.*every is 0"):
        ConstantWeight(-1.0, every=0)


class Told(DriftMeter):
    """A meter that reads what it is told."""

    def __init__(self, *readings: float):
        super().__init__(prompts=["a house"])
        self.readings = list(readings)
        self.asked = 0

    def __call__(self, model, batch):
        self.asked += 1
        return self.readings[min(self.asked, len(self.readings)) - 1]


def watched(budget: DriftBudget, steps) -> list:
    return [(step, budget.watch(None, None, step).get("drift"), budget.at(step)) for step in steps]


@pytest.mark.parametrize(
    ("reading", "excess"), [(0.02, math.log(2)), (0.005, -math.log(2)), (1.0, 1.0), (0.0, -1.0), (0.01, 0.0)], ids=["over", "under", "far over", "none", "met"]
)
def test_the_weight_goes_up_while_over_the_budget_and_down_while_under(reading, excess):
    budget = DriftBudget(0.01, weight=4.0, step_size=0.3, meter=Told(reading))
    assert budget.at(0) == 4.0
    assert watched(budget, [0])[0][2] == pytest.approx(4.0 * math.exp(0.3 * excess))


def test_drift_is_smoothed_before_it_is_judged():
    budget = DriftBudget(0.01, weight=1.0, step_size=1.0, smoothing=0.75, measure_every=1, meter=Told(0.01, 0.014))
    watched(budget, [0])
    (_, measured, weight), = watched(budget, [1])
    assert measured == 0.014 and budget.drift == pytest.approx(0.011) and weight == pytest.approx(1.1)


def test_the_weight_stays_within_its_bounds(caplog):
    rising = DriftBudget(0.01, weight=4.0, max_weight=5.0, measure_every=1, meter=Told(1.0))
    with caplog.at_level(logging.WARNING):
        assert [weight for *_, weight in watched(rising, range(3))][-1] == 5.0
    assert "over the budget of 0.01 with the largest weight allowed, 5" in caplog.text
    falling = DriftBudget(0.01, weight=4.0, min_weight=0.5, measure_every=1, meter=Told(0.0))
    assert watched(falling, range(20))[-1][2] == 0.5


def test_it_measures_every_so_many_steps_once_a_step():
    budget = DriftBudget(0.01, every=4, measure_every=10, meter=Told(0.01))
    seen = watched(budget, [3, 3, 7, 11, 15, 19, 23, 27])
    assert [step for step, measured, _ in seen if measured is not None] == [3, 15, 27] and budget.meter.asked == 3


def test_a_budget_warms_up_and_keeps_its_rhythm_like_a_constant_weight():
    budget = DriftBudget(0.01, weight=8.0, every=2, warmup_steps=4, meter=Told(0.01))
    assert [budget.at(step) for step in (0, 1, 4, 9)] == [0.0, 2.0, 8.0, 8.0]
    assert [step for step in range(5) if budget.due(step)] == [1, 3] and budget.on
    assert "drift budget of 0.01" in budget.describe() and budget.caution() is None


def test_a_budget_goes_on_where_it_was():
    first, second = (DriftBudget(0.01, measure_every=2, meter=Told(0.02)) for _ in range(2))
    watched(first, range(5))
    second.load_state_dict(first.state_dict())
    assert (second.at(5), second.drift) == (first.at(5), first.drift) and watched(second, [5, 6])[0][1] is None


def test_a_budget_that_is_told_to_go_on_from_another_weight_says_so():
    with pytest.raises(ValueError, match="weight_config.*another weight than DriftBudget"):
        DriftBudget(0.01, meter=Told(0.02)).load_state_dict(ConstantWeight().state_dict())


@pytest.mark.parametrize("free", [0.5, 2.0, 10.0, 40.0], ids=lambda free: f"unregularised drift {free} budgets")
def test_dual_ascent_meets_the_budget_where_drift_answers_to_the_weight(free):
    """A quadratic loss pulls x to 1 and the term to 0, which settles at drift = free · budget / (1 + weight/3)²: the dual variable is known."""
    budget = DriftBudget(0.01, meter=Told(0.0))
    x = 0.0
    for step in range(1500):
        budget.meter.readings = [x * x * free * 0.01]
        budget.meter.asked = 0
        budget.watch(None, None, step)
        x += 0.02 * (1 / (1 + budget.at(step) / 3) - x)
    drift, needed = x * x * free, 3 * (free**0.5 - 1)
    if free < 1:
        assert budget.at(1500) == budget.min_weight and drift == pytest.approx(free, rel=0.02), "met by itself: nothing is held"
    else:
        assert drift == pytest.approx(1, rel=0.1) and budget.at(1500) == pytest.approx(needed, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0.0}, "budget is 0.0.*ConstantWeight"),
        ({"budget": -1.0}, "budget is -1"),
        ({"budget": "1e-3"}, "budget is '1e-3'"),
        ({"budget": None}, "budget is None"),
        ({"budget": 0.1, "max_weight": None}, "max_weight"),
        ({"budget": 0.1, "step_size": 0.0}, "step_size is 0"),
        ({"budget": 0.1, "smoothing": 1.0}, "smoothing is 1"),
        ({"budget": 0.1, "measure_every": 0}, "measure_every is 0"),
        ({"budget": 0.1, "min_weight": 20.0}, "min_weight, weight, max_weight are 20.0, 10.0"),
        ({"budget": 0.1, "weight": -1.0}, "weight is -1"),
        ({"budget": 0.0, "smoothing": 2.0}, "budget is 0.0.*smoothing is 2"),
    ],
)
def test_an_impossible_budget_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        DriftBudget(**settings)


def test_the_meters_prompts_must_not_be_the_terms_own():
    conditioning = ClassPrompts()
    conditioning.bind(WORDS)
    DriftBudget(0.1).bind(WORDS, conditioning)
    with pytest.raises(ValueError, match="meter_config.params.prompts: 'one cat' is among the prompts"):
        DriftBudget(0.1, meter=DriftMeter(prompts=["a house", "one cat"])).bind(WORDS, conditioning)
