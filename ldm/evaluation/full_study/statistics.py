"""What rows of several characters say together: means with intervals, ratios of drift, and what is best of several points.

The independent unit is the character: seeds of one are averaged before anything else is done.
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ldm.evaluation.full_study.arms import UNREGULARIZED, Arm, arm_of
from ldm.regularization.drift import FEWEST_TRAJECTORIES, student_t_quantile

Row = Mapping[str, Any]
Point = tuple[float, float]  # identity, decades of off-pattern drift below the unregularised run

KEEPS_IDENTITY = 0.95  # of the unregularised run's, at least
REFERENCE: Point = (0.8, 0.0)  # of hypervolumes
NO_DRIFT = 1.0e-12  # what a drift of 0 counts as in a logarithm
FEWEST_CHARACTERS = FEWEST_TRAJECTORIES  # below, Student's quantile is not met by the expansion


@dataclass(frozen=True)
class Estimate:
    """A mean over characters. margin: half the width of its 95 % interval by Student's t; None for fewer than 4 characters."""

    mean: float
    margin: float | None

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}}" + ("" if self.margin is None else f" ± {self.margin:{spec}}")


@dataclass(frozen=True)
class Standing:
    """An arm over all its characters. decades: −log10 of its off-pattern drift over the unregularised run's, character by character."""

    arm: Arm
    identity: Estimate
    decades: Estimate
    keeps_identity: bool

    @property
    def point(self) -> Point:
        return self.identity.mean, self.decades.mean


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of one value a character. Raises ValueError for no values."""
    if not values:
        raise ValueError("a mean of no values: there are no rows to be averaged")
    n = len(values)
    margin = None if n < FEWEST_CHARACTERS else student_t_quantile(0.975, n - 1) * stdev(values) / math.sqrt(n)
    return Estimate(fmean(values), margin)


def by_arm(rows: Iterable[Row]) -> dict[Arm, list[Row]]:
    """Rows of each arm, arms in the order in which they are first met."""
    found: dict[Arm, list[Row]] = defaultdict(list)
    for row in rows:
        found[arm_of(row)].append(row)
    return dict(found)


def by_character(rows: Iterable[Row], value: Callable[[Row], float]) -> dict[str, float]:
    """Concept → the mean of a value over its seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["concept"]].append(value(row))
    return {concept: fmean(values) for concept, values in found.items()}


def over_characters(rows: Iterable[Row], key: str) -> Estimate:
    """Of a number of the rows."""
    return estimate(list(by_character(rows, lambda row: row[key]).values()))


def beside(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Those of the characters and seeds that the others have: a study that was stopped has more of some arms than of others."""
    theirs = {(row["concept"], row["seed"]) for row in others}
    return [row for row in rows if (row["concept"], row["seed"]) in theirs]


def drift_decades(rows: Sequence[Row], reference: Sequence[Row], key: str = "drift_off_pattern") -> Estimate:
    """−log10 of drift over the reference's (the unregularised run's), averaged over the characters, of the seeds that both have."""
    drift, of_reference = (by_character(beside(some, others), lambda row: row[key]) for some, others in ((rows, reference), (reference, rows)))
    return estimate([math.log10(max(of_reference[concept], NO_DRIFT) / max(drift[concept], NO_DRIFT)) for concept in drift])


def standings(rows: Iterable[Row]) -> dict[Arm, Standing]:
    """Where each tuned arm stands beside the unregularised one. Raises ValueError without rows of the latter."""
    of_arm = by_arm(rows)
    if UNREGULARIZED not in of_arm:
        raise ValueError(f"there are no rows of {UNREGULARIZED.name}, which all others are compared with")
    reference = of_arm[UNREGULARIZED]
    found = {}
    for arm, mine in of_arm.items():
        if arm.method == "frozen":
            continue
        identity = over_characters(mine, "trait_rate_concept")
        floor = KEEPS_IDENTITY * over_characters(beside(reference, mine), "trait_rate_concept").mean
        found[arm] = Standing(arm, identity, drift_decades(mine, reference), identity.mean >= floor - 1e-9)
    return found


def in_order(some: Iterable[Standing]) -> list[Standing]:
    """The rule by which arms are ranked: those that keep the identity (≥ 0.95 of the unregularised run's) before those that do not;
    among the former by how little they drift off-pattern, among the latter by identity, then by drift."""
    return sorted(some, key=lambda one: (not one.keeps_identity, 0.0 if one.keeps_identity else -one.identity.mean, -one.decades.mean))


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Those that no other surpasses in both, from the least identity on."""
    front: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def hypervolume(points: Iterable[Point], reference: Point = REFERENCE) -> float:
    """The area that the points dominate and that dominates the reference, more being better in both."""
    area, below = 0.0, reference[1]
    for identity, decades in reversed(pareto_front(point for point in points if point[0] > reference[0] and point[1] > reference[1])):
        area += (identity - reference[0]) * (decades - below)
        below = decades
    return area
