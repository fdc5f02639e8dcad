"""How much, and when."""
import pytest

from ldm.regularization import ConstantWeight


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
