"""Every arm that there is becomes a config that builds its parts."""
from __future__ import annotations

from dataclasses import replace

import pytest

from ldm.evaluation.full_study.arms import (
    CONDITIONINGS,
    CONFIGS,
    FEWER_WEIGHTS,
    IDEAS,
    LATENTS,
    LAZY,
    MIXTURE,
    NEAR_CONCEPT,
    RIVALS,
    SHIPPED_WEIGHT,
    WEIGHTS,
    Arm,
    arm_of,
    screen_arms,
)  # fmt: skip
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regularized import RegularizedLatentDiffusion
from ldm.training.compose import merge
from ldm.training.validation import check_config
from ldm.util import get_obj_from_str
from tests.evaluation.full_study.world import made_row
from tests.golden.case import REPOSITORY

ARMS = screen_arms()
WITH_RUN = [arm for arm in ARMS if arm.method != "frozen" and arm.source == arm and arm.strength in (None, 1.5, *(some[0] for _, some in RIVALS.values()))]
LAZY_ARMS = [arm for arm in ARMS if arm.every > 1]
TWO_PHASE = [Arm("locality", name, "prior", 1.5, 2) for name in CONDITIONINGS]


def composed(arm: Arm):
    return merge([REPOSITORY / CONFIGS[arm.ours, arm.phases]], arm.overrides())


def test_the_screen_has_every_conditioning_on_all_latents_at_three_weights_and_every_rival_at_four_strengths():
    ours = {(arm.conditioning, arm.latents, arm.strength) for arm in ARMS if arm.conditioning in CONDITIONINGS}
    assert ours == {(name, latents, weight) for name in CONDITIONINGS for latents in LATENTS for weight in WEIGHTS}
    assert len(CONDITIONINGS) == 7 and len(LATENTS) == 4 and set(IDEAS) < set(CONDITIONINGS)
    strengths = {method: [arm.strength for arm in ARMS if arm.method == method] for method in (*RIVALS, "early_stopping", "interpolation")}
    assert all(len(values) >= 4 and len(set(values)) == len(values) for values in strengths.values())


def test_names_tell_arms_apart_and_rows_give_them_back():
    every = [*ARMS, *TWO_PHASE]
    assert len({arm.name for arm in every}) == len(every)
    assert all(arm_of(made_row(arm)) == arm for arm in every)


def test_fewer_weights_are_some_of_the_weights():
    assert set(FEWER_WEIGHTS) < set(WEIGHTS) and len(FEWER_WEIGHTS) == 2
    assert len(screen_arms(FEWER_WEIGHTS)) == len(ARMS) - 7 * 4


@pytest.mark.parametrize("arm", [*WITH_RUN, *TWO_PHASE], ids=lambda arm: arm.name)
def test_the_config_of_an_arm_has_no_fault_and_its_own_parts_alone(arm):
    config = composed(arm)
    config.model.params.ckpt_path = "base.safetensors"  # as --actual_resume and --data_root write it
    for pictures in (config.data.params.train, config.data.params.validation):
        pictures.params.data_root = "pictures"
    check_config(config)
    model = get_obj_from_str(config.model.target)
    assert issubclass(model, LatentDiffusion) and issubclass(model, RegularizedLatentDiffusion) == arm.ours
    if not arm.ours or arm.conditioning == "shipped":
        return
    term = config.model.params.regularization_config.params
    assert term.weight_config.params.weight == arm.strength
    assert term.conditioning_config == CONDITIONINGS[arm.conditioning] and term.latents_config == LATENTS[arm.latents]


def test_a_lazy_arm_is_the_shipped_one_in_every_kth_step():
    assert {(arm.conditioning, arm.every) for arm in LAZY_ARMS} == {("shipped", k) for k in LAZY} and len(LAZY_ARMS) == len(LAZY) * len(FEWER_WEIGHTS)
    for arm in LAZY_ARMS:
        lazy, busy = composed(arm), composed(replace(arm, every=1))
        assert lazy.model.params.regularization_config.params.weight_config.params.every == arm.every
        lazy.model.params.regularization_config.params.weight_config.params.every = 1
        assert lazy == busy and busy.model.params.regularization_config.params.weight_config.params.weight == arm.strength


@pytest.mark.parametrize("arm", [arm for arm in WITH_RUN if arm.conditioning in CONDITIONINGS], ids=lambda arm: arm.name)
def test_a_cached_teacher_stands_only_where_it_can_answer(arm):
    target = composed(arm).model.params.regularization_config.params.teacher_config.target
    fits = arm.conditioning not in NEAR_CONCEPT and arm.latents != "training"
    assert target.endswith("CachedTeacher" if fits else "FrozenCopy") and arm.teacher == ("cached" if fits else "copy")


@pytest.mark.parametrize("method", RIVALS)
def test_a_rivals_strength_reaches_its_parameter(method):
    strengths = RIVALS[method][1]
    key = {"prior_preservation": "prior_weight", "base_weights": "base_weight", "output_preservation": "output_weight", "kv_only": "model_lr"}[method]
    assert [composed(Arm(method, strength=strength)).model.params[key] for strength in strengths] == list(strengths)


def test_the_shipped_term_is_looked_at_with_the_weight_that_ships():
    arm = Arm("locality", "shipped", "prior", SHIPPED_WEIGHT)
    assert arm in ARMS and composed(arm) == merge([REPOSITORY / CONFIGS[True, 1]], [])


def test_the_two_phase_config_ships_an_arm_of_the_finals_in_one_pass():
    arm = composed(Arm("locality", MIXTURE, "prior", 7.5, 2))
    assert arm.model.params.regularization_config.params.share_forward is False
    arm.model.params.regularization_config.params.share_forward = True
    assert arm == merge([REPOSITORY / CONFIGS[True, 2]], [])
