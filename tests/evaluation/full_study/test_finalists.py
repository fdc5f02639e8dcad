"""The rule by which arms come to the finals."""
from __future__ import annotations

from dataclasses import replace

import pytest

from ldm.evaluation.full_study.arms import FROZEN, IDEAS, MIXTURE, UNREGULARIZED, UNREGULARIZED_TWO_PHASE, Arm
from ldm.evaluation.full_study.finalists import finals_arms, two_phase_arms
from tests.evaluation.full_study.world import made_rows


def ours(conditioning, strength=1.5, latents="prior", phases=1):
    return Arm("locality", conditioning, latents, strength, phases)


def rival(method, strength=1.0):
    return Arm(method, strength=strength)


IDEAS_AND_MIXTURE = [(ours(name), 1.0, 1.0) for name in (*IDEAS, MIXTURE)]


def test_each_idea_sends_its_best_and_three_rivals_come():
    better = ours("class", 7.5, "trajectories")
    rows = made_rows([
        *IDEAS_AND_MIXTURE, (better, 0.97, 1.4), (ours("empty", 7.5), 0.6, 3.0), (ours("morphing"), 1.0, 9.0),
        (rival("kv_only", 1e-3), 1.0, 0.2), (rival("kv_only", 1e-4), 0.3, 2.0), (rival("base_weights"), 0.99, 0.6), (rival("interpolation", 0.4), 0.98, 0.5),
        (rival("early_stopping", 0.5), 0.7, 5.0),
    ])  # fmt: skip
    chosen = finals_arms(rows)
    assert chosen[:2] == [FROZEN, UNREGULARIZED]
    assert chosen[2:8] == [ours("empty"), better, *(ours(name) for name in ("embedding", "encoding", "hypersphere", MIXTURE))]
    assert chosen[8:] == [rival("base_weights"), rival("interpolation", 0.4), rival("kv_only", 1e-3)]


def test_where_none_keeps_the_identity_the_nearest_to_it_comes():
    rows = made_rows([(ours("empty", 1.5), 0.5, 2.0), (ours("empty", 0.3), 0.8, 0.4), (ours("empty", 0.4), 0.8, 0.5)])
    assert finals_arms(rows) == [FROZEN, UNREGULARIZED, ours("empty", 0.4)]


def test_a_finalist_of_two_phases_brings_its_own_unregularised_twin():
    rows = made_rows([*IDEAS_AND_MIXTURE, (ours("empty", phases=2), 1.0, 2.0), (UNREGULARIZED_TWO_PHASE, 1.0, 0.1)])
    chosen = finals_arms(rows)
    assert chosen[:4] == [FROZEN, UNREGULARIZED, UNREGULARIZED_TWO_PHASE, ours("empty", phases=2)]
    assert ours("empty") not in chosen


def test_the_second_phase_is_tried_by_the_best_that_learn_at_once():
    rows = made_rows([*IDEAS_AND_MIXTURE, (ours("class", 7.5), 1.0, 1.2)])
    wanted = [ours("empty", phases=2), ours("class", 7.5, phases=2), *(ours(name, phases=2) for name in ("embedding", "encoding", "hypersphere", MIXTURE))]
    assert two_phase_arms(rows) == wanted
    again = made_rows([*IDEAS_AND_MIXTURE, (ours("class", 7.5), 1.0, 1.2), *((arm, 1.0, 5.0) for arm in wanted)])
    assert two_phase_arms(again) == wanted  # their own rows choose no others: a resumed study goes the same way


def test_so_is_it_by_the_best_rivals_that_have_a_run_of_their_own_and_may_reach_the_finals():
    rivals = [(rival("base_weights", 0.1), 1.0, 0.3), (rival("base_weights", 1.0), 0.5, 0.9), (rival("prior_preservation"), 1.0, 0.8)]
    made_of_a_run = [(rival("interpolation", 0.5), 1.0, 0.9), (rival("early_stopping", 0.5), 1.0, 0.2)]
    rows = [*IDEAS_AND_MIXTURE, *rivals, *made_of_a_run, (rival("kv_only"), 0.2, 1.0)]
    found = two_phase_arms(made_rows(rows))[6:]
    wanted = [replace(rival(method, strength), phases=2) for method, strength in (("prior_preservation", 1.0), ("base_weights", 0.1), ("kv_only", 1.0))]
    assert found == wanted
    chosen = finals_arms(made_rows([*rows, (wanted[0], 1.0, 1.1), (wanted[1], 1.0, 0.1), (UNREGULARIZED_TWO_PHASE, 1.0, 0.1)]))
    assert chosen[:3] == [FROZEN, UNREGULARIZED, UNREGULARIZED_TWO_PHASE]
    assert chosen[9:] == [wanted[0], rival("interpolation", 0.5), rival("base_weights", 0.1)]


def test_without_the_unregularised_run_nothing_is_chosen():
    rows = [row for row in made_rows(IDEAS_AND_MIXTURE) if row["method"] != "unregularized"]
    with pytest.raises(ValueError, match="unregularized"):
        finals_arms(rows)
