"""One run of two phases with outputs stored near the concept: they are made when the word is fixed, of the network as it was before it was tuned."""
from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

from ldm.checkpoints import read_state_dict, save_weights
from tests.regularization.tiny_runs import term_config
from tests.training import tiny
from tests.training.test_resume import assert_same_training

STEPS, SWAP = 7, 4  # epochs of 4 steps


def config_in(folder, **swap) -> dict:
    plain = tiny.config(tiny.photos(folder / "photos", count=2))
    term = term_config(folder / "banks", conditioning=("EncodingInterpolation", {"alpha": [0.2, 0.8]}))
    plain["model"]["target"] = "ldm.models.diffusion.regularized.RegularizedLatentDiffusion"
    plain["model"]["params"]["regularization_config"] = term
    plain["lightning"]["callbacks"]["swap"] = {"target": "main.ModeSwapCallback", "params": {"swap_step": SWAP, "train_embeddings_after": False, **swap}}
    return plain


@pytest.fixture
def run(train, tmp_path) -> Callable:
    base = str(tiny.base_checkpoint(tmp_path / "base.safetensors"))
    return lambda plain, steps, given=base: train(plain, "--actual_resume", given, "--max_steps", str(steps))


def losses(ran) -> dict[int, float]:
    lines = [json.loads(line) for line in (ran.folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss_locality_step"] for line in lines if "train/loss_locality_step" in line}


def test_outputs_near_the_concept_are_stored_once_the_word_is_fixed(run, tmp_path):
    first = run(config_in(tmp_path), SWAP)
    assert first.code == 0 and "made when the word is fixed" in first.out
    assert not (tmp_path / "banks").exists() and "training" not in first.last["regularization"]
    both = run(config_in(tmp_path), STEPS)
    assert both.code == 0 and both.last["regularization"]["acted"] == STEPS - SWAP
    told = losses(both)
    assert min(told) >= SWAP and told[SWAP] < 1e-9 < told[STEPS - 1], "where the network is the base still, it says what was stored"
    assert len(list((tmp_path / "banks").glob("frozen-outputs-*"))) == 1


@pytest.mark.parametrize("stop", [2, SWAP, 5], ids=["in the first phase", "at the swap", "in the second"])
def test_such_a_run_resumes_bit_for_bit(run, train, tmp_path, stop):
    plain = config_in(tmp_path)
    straight, first = run(plain, STEPS), run(plain, stop)
    resumed = train(None, "-r", str(first.folder), "--max_steps", str(STEPS))
    assert resumed.code == 0, resumed.out
    last = torch.load(first.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same_training(last, straight.last)
    ours, expected = last["regularization"], straight.last["regularization"]
    assert ours["acted"] == expected["acted"] and ours["theta_hash"] == expected["theta_hash"]
    assert len(list((tmp_path / "banks").glob("frozen-outputs-*"))) == 1, "the resumed run finds what the first one stored"


def test_a_word_that_goes_on_learning_is_refused_before_the_first_phase(run, tmp_path):
    ran = run(config_in(tmp_path, train_embeddings_after=True), STEPS)
    assert ran.code == 1 and "CachedTeacher cannot store" in ran.out and "train_embeddings_after: false" in ran.out


@pytest.mark.parametrize("stop", [2, 5], ids=["in the first phase", "in the second"])
def test_another_base_is_refused_in_either_phase(run, train, tmp_path, stop):
    first = run(config_in(tmp_path), stop)
    other = tiny.base_checkpoint(tmp_path / "other.safetensors", width=tiny.WIDTH)
    weights = read_state_dict(other)
    save_weights(other, {key: value + 0.01 if key.startswith("model.") else value for key, value in weights.items()})
    resumed = train(None, "-r", str(first.folder), "--actual_resume", str(other), "--max_steps", str(STEPS))
    assert resumed.code == 1 and "started from another base" in resumed.out


def test_a_first_phase_without_the_term_cannot_be_gone_on_with(run, train, tmp_path):
    plain = config_in(tmp_path)
    without = deepcopy(plain)
    without["model"]["params"]["regularization_config"]["params"]["weight_config"]["params"]["weight"] = 0.0
    first = run(without, 5)  # the network has moved
    resumed = train(None, "-r", str(first.folder), "model.params.regularization_config.params.weight_config.params.weight=1.0", "--max_steps", str(STEPS))
    assert resumed.code == 1 and "no longer those of the base checkpoint" in resumed.out
