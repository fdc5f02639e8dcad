"""Intervals over characters, ratios of drift, the ranking and the hypervolume, each against values known otherwise."""
from __future__ import annotations

import math
import random

import pytest

from ldm.evaluation.full_study.arms import UNREGULARIZED, Arm
from ldm.evaluation.full_study.statistics import drift_decades, estimate, hypervolume, in_order, over_characters, pareto_front, standings
from tests.evaluation.full_study.world import made_row, made_rows

OURS, OTHER = Arm("locality", "class", "prior", 1.5), Arm("locality", "empty", "prior", 1.5)


def test_the_interval_is_students():
    """Four values: t(0.975, 3) = 3.182, from tables."""
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.margin == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, rel=2e-3)
    assert f"{found:.1f}" == "2.5 ± 2.1"


def test_fewer_than_four_characters_have_no_interval():
    assert estimate([1.0, 3.0, 5.0]).margin is None and f"{estimate([1.0, 3.0]):.1f}" == "2.0"
    with pytest.raises(ValueError, match="no rows"):
        estimate([])


def test_intervals_hold_the_mean_as_often_as_they_say():
    chance = random.Random(0)
    draws = [estimate([chance.gauss(3.0, 2.0) for _ in range(4)]) for _ in range(2000)]
    held = sum(abs(one.mean - 3.0) <= one.margin for one in draws) / len(draws)
    assert held == pytest.approx(0.95, abs=0.02)


def test_seeds_of_a_character_count_once():
    rows = [made_row(OURS, "a", seed, identity=value) for seed, value in enumerate((0.0, 1.0, 0.5))] + [made_row(OURS, "b", 0, identity=1.0)]
    assert over_characters(rows, "trait_rate_concept").mean == pytest.approx(0.75)


def test_drift_is_compared_within_a_character():
    """Characters drift by different amounts; ten times less of each is ten times less."""
    rows = made_rows([(OURS, 1.0, 1.0)])
    decades = drift_decades([row for row in rows if row["method"] == "locality"], [row for row in rows if row["method"] == "unregularized"])
    assert decades.mean == pytest.approx(1.0) and decades.margin == pytest.approx(0.0, abs=1e-9)


def test_no_drift_at_all_is_no_infinity():
    rows = made_rows([(OURS, 1.0, 400.0)])
    assert math.isfinite(standings(rows)[OURS].decades.mean)


def test_arms_that_keep_the_identity_come_first_then_the_least_drift():
    arms = [Arm("locality", "class", "prior", strength) for strength in (1.0, 2.0, 3.0, 4.0)]
    found = standings(made_rows([(arms[0], 0.96, 0.5), (arms[1], 0.95, 1.0), (arms[2], 0.90, 2.0), (arms[3], 0.5, 3.0)]))
    assert [one.arm for one in in_order(one for one in found.values() if one.arm.ours)] == [arms[1], arms[0], arms[2], arms[3]]
    assert [found[arm].keeps_identity for arm in arms] == [True, True, False, False]
    assert found[UNREGULARIZED].point == (1.0, 0.0)


def test_without_an_unregularised_row_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="unregularized"):
        standings([made_row(OURS)])


def test_hypervolumes_of_rectangles():
    assert hypervolume([]) == hypervolume([(0.79, 5.0)]) == hypervolume([(1.0, -1.0)]) == 0.0
    assert hypervolume([(0.9, 2.0)]) == pytest.approx(0.2)
    assert hypervolume([(0.9, 2.0), (0.85, 1.0)]) == pytest.approx(0.2)  # the second is surpassed in both
    assert hypervolume([(1.0, 1.0), (0.9, 2.0)]) == pytest.approx(0.2 * 1.0 + 0.1 * 1.0)
    assert hypervolume([(0.9, 2.0), (1.0, 1.0), (0.95, 1.5), (0.9, 2.0)]) == pytest.approx(0.2 + 0.15 * 0.5 + 0.1 * 0.5)


def test_hypervolume_is_the_area_that_darts_tell():
    chance = random.Random(1)
    points = [(chance.uniform(0.7, 1.0), chance.uniform(-0.5, 2.0)) for _ in range(12)]
    darts = [(chance.uniform(0.8, 1.0), chance.uniform(0.0, 2.0)) for _ in range(40_000)]
    hit = sum(any(x <= point[0] and y <= point[1] for point in points) for x, y in darts) / len(darts)
    assert hypervolume(points) == pytest.approx(hit * 0.2 * 2.0, abs=0.004)


def test_a_front_has_no_point_that_another_surpasses():
    assert pareto_front([(0.9, 1.0), (0.8, 2.0), (0.85, 1.5), (0.85, 0.5), (0.9, 0.2)]) == [(0.8, 2.0), (0.85, 1.5), (0.9, 1.0)]
