"""Which arms of the screen are looked at again: a rule on its rows, stated once, applied without a look at anything else.

Arms are ranked as `statistics.in_order` says. A second look is had by the first of each of the five ideas, the first of the mixture of the empty
and the class prompts, which three of the ideas have to surpass, and the firsts of the three rivals that rank highest.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ldm.evaluation.full_study.arms import FROZEN, IDEAS, MIXTURE, UNREGULARIZED, UNREGULARIZED_TWO_PHASE, WITHOUT_RUN, Arm
from ldm.evaluation.full_study.statistics import Row, Standing, in_order, standings

RIVAL_FINALISTS = 3


def best_of_ours(found: Iterable[Standing]) -> list[Arm]:
    """At most six: the first of each idea, in their order, and of the mixture; of those that were tried."""
    ranked = [one.arm for one in in_order(one for one in found if one.arm.ours)]
    firsts = [next((arm for arm in ranked if arm.conditioning == idea), None) for idea in (*IDEAS, MIXTURE)]
    return [arm for arm in firsts if arm is not None]


def best_rivals(found: Iterable[Standing]) -> list[Arm]:
    """Each of another method, the highest first."""
    best: dict[str, Arm] = {}
    for one in in_order(one for one in found if not one.arm.ours and one.arm.method != UNREGULARIZED.method):
        best.setdefault(one.arm.method, one.arm)
    return list(best.values())[:RIVAL_FINALISTS]


def two_phase_arms(rows: Iterable[Row]) -> list[Arm]:
    """The best of ours and of the rivals that learn word and network at once, to be tried round a fixed word too."""
    at_once = [one for one in standings(rows).values() if one.arm.phases == 1]
    rivals = best_rivals(one for one in at_once if one.arm.method not in WITHOUT_RUN)
    return [replace(arm, phases=2) for arm in (*best_of_ours(at_once), *rivals)]


def finals_arms(rows: Sequence[Row]) -> list[Arm]:
    """What the finals measure, by the rows of the screen: frozen and unregularised, at most six of ours, three rivals.

    Where one of them has two phases, so has a second unregularised run.
    """
    found = list(standings(rows).values())
    chosen = [*best_of_ours(found), *best_rivals(found)]
    plain = [UNREGULARIZED, *([UNREGULARIZED_TWO_PHASE] if any(arm.phases == 2 for arm in chosen) else [])]
    return [FROZEN, *plain, *chosen]
