"""Learning-rate curves against the recorded ones, and where those do not reach."""
from __future__ import annotations

import json

import pytest
import torch

from ldm import lr_scheduler
from tests.golden.case import golden_path

RECORDED = ("LambdaWarmUpCosineScheduler", "LambdaWarmUpCosineScheduler2", "LambdaLinearScheduler")
TWO_CYCLES = {"warm_up_steps": [5, 5], "f_min": [0.1, 0.2], "f_max": [1.0, 0.5], "f_start": [0.01, 0.02], "cycle_lengths": [20, 30]}


@pytest.mark.parametrize("name", RECORDED)
def test_curve_equals_the_recorded_one(name):
    case = json.loads(golden_path("lr_schedulers.json").read_text())[name]
    schedule = getattr(lr_scheduler, name)(**case["params"])
    assert [schedule(n) for n in case["n"]] == pytest.approx(case["value"], abs=1e-12)


def test_cosine_stays_at_its_floor_after_the_descent():
    schedule = lr_scheduler.LambdaWarmUpCosineScheduler(10, lr_min=0.1, lr_max=1.0, lr_start=0.01, max_decay_steps=50)
    assert schedule(50) == pytest.approx(0.1) and schedule(10_000) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["LambdaWarmUpCosineScheduler2", "LambdaLinearScheduler"])
def test_the_last_cycle_never_ends(name):
    schedule = getattr(lr_scheduler, name)(**TWO_CYCLES)
    assert schedule(50) == pytest.approx(0.2) and schedule(51) == pytest.approx(0.2) and schedule(9_999) == pytest.approx(0.2)


def test_each_step_belongs_to_one_cycle():
    schedule = lr_scheduler.LambdaWarmUpCosineScheduler2(**TWO_CYCLES)
    assert [schedule.find_in_interval(n) for n in (0, 20, 21, 50, 51)] == [0, 0, 1, 1, 1]


def test_lists_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match="one entry a cycle.*'f_max': 2"):
        lr_scheduler.LambdaLinearScheduler(warm_up_steps=[1], f_min=[1.0], f_max=[1.0, 2.0], f_start=[0.0], cycle_lengths=[10])


def test_it_drives_an_optimiser():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=2.0)
    schedule = lr_scheduler.LambdaLinearScheduler(warm_up_steps=[2], f_min=[0.0], f_max=[1.0], f_start=[0.0], cycle_lengths=[10])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lr_lambda=schedule.schedule)
    rates = []
    for _ in range(4):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert rates == pytest.approx([0.0, 1.0, 1.6, 1.4])
