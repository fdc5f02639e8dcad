"""With a term, too, a resumed run is the run that was never stopped: for every teacher and source of latents, in the middle of an epoch."""
from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch

from ldm.training import forecast
from tests.regularization.tiny_runs import term_config
from tests.rivals.tiny_rivals import PRIOR
from tests.training import tiny, toy
from tests.training.test_resume import assert_same_training

STOP, STEPS = 20, 40
AN_EPOCH = 6  # 3 pictures, 4 times each, by twos
EVERY = 4  # most steps are without the term, as in the shipped configs

DRAWN = {"samples": 7, "ddim_steps": 2}  # step 20 is in the middle of a round through them
LATENTS = {
    "TrainingLatents": {},
    "NoiseLatents": {"any_t": True, "samples": 7},
    "PriorSamples": DRAWN,
    "Trajectories": DRAWN,
    "TrainingPictures": {"samples": 7, "t_min": 100},
    "MixedLatents": {},
}
# The word is learnt beside the network: a stored output cannot be for a point near it.
NEAR = {"target": "ldm.regularization.conditioning.EncodingInterpolation", "params": {"alpha": [0.2, 0.8]}}
BOTH = ("Mixture", {"parts": [{"target": "ldm.regularization.conditioning.ClassPrompts"}, NEAR]})
ADAPTERS = {"target": "ldm.models.adapters.LowRankAdapters", "params": {"rank": 2, "dropout": 0.1, "text_rank": 2}}
SHARED = ("TrainingLatents", "PriorSamples")  # probes from these go through the network in the batch's own pass
CELLS = [(teacher, latents) for teacher in ("FrozenCopy", "AdapterOff", "CachedTeacher") for latents in LATENTS]
CELLS.remove(("CachedTeacher", "TrainingLatents"))  # they are new in every step: refused


class Start(NamedTuple):
    """What all runs here begin with."""

    base: Path
    photos: Path
    banks: Path


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Start:
    where = tmp_path_factory.mktemp("start")
    return Start(tiny.moving_base(where / "base.safetensors"), tiny.photos(where / "photos", count=3), where / "banks")


@pytest.fixture(autouse=True)
def no_forecast(monkeypatch):
    """What a run will need is another test's subject, and costs as much as many of these steps."""
    monkeypatch.setattr(forecast, "sketch", lambda config: None)


def config_of(start: Start, latents: str = "PriorSamples", teacher: str = "FrozenCopy", **term: Any) -> dict[str, Any]:
    """A config with a term; AdapterOff's tunes adapters."""
    banks = {"cache_dir": str(start.banks)}
    params = {name: {**of, **(banks if of is DRAWN else {})} for name, of in LATENTS.items()}
    parts = [{"target": f"ldm.regularization.latents.{name}", "params": params[name]} for name in ("PriorSamples", "TrainingPictures")]
    params["MixedLatents"] = {"parts": parts}
    conditioning = "ClassPrompts" if teacher == "CachedTeacher" else BOTH
    config = tiny.config(start.photos)
    config["model"]["target"] = "ldm.models.diffusion.regularized.RegularizedLatentDiffusion"
    parts = {"conditioning": conditioning, "latents": (latents, params[latents]), "teacher": teacher}
    rest = {"every": EVERY, "batch_size": 2, "share_forward": latents in SHARED}
    config["model"]["params"]["regularization_config"] = term_config(start.banks, **{**parts, **rest, **term})
    if teacher == "AdapterOff":
        config["model"]["params"] |= {"unfreeze_model": False, "adapter_config": ADAPTERS}
    return with_settings(config)


def rival_of(start: Start) -> dict[str, Any]:
    """A config of prior preservation, which keeps samples and draws of its own."""
    config = tiny.config(start.photos)
    config["model"]["target"] = f"{PRIOR.target.__module__}.{PRIOR.target.__name__}"
    config["model"]["params"] |= {PRIOR.key: 1.0, **PRIOR.params}
    return with_settings(config)


def with_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Every step is logged, every third epoch validated; a checkpoint is written at the end alone."""
    config["lightning"]["trainer"] |= {"log_every_n_steps": 1, "check_val_every_n_epoch": 3}
    config["lightning"]["modelcheckpoint"]["params"]["every_n_train_steps"] = 1000
    return config


def equal(ours: Any, theirs: Any) -> bool:
    """To the last bit, all the way down."""
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, torch.Tensor) and torch.equal(ours, theirs)
    if isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(equal(ours[key], value) for key, value in theirs.items())
    if isinstance(theirs, Sequence) and not isinstance(theirs, str):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder: Path, stop: int) -> list[dict[str, Any]]:
    """The log, but for means of the epoch that was broken off there: each start has its own of its part."""
    lines = lines_of(folder)
    broken = {stop - 1, stop // AN_EPOCH * AN_EPOCH + AN_EPOCH - 1}
    means = [key for line in lines for key in line if key.startswith("train/") and not key.endswith("_step")]
    return [{key: value for key, value in line.items() if not (line["step"] in broken and key in means)} for line in lines]


@pytest.fixture
def both(train, start) -> Callable[..., tuple[dict, list[dict]]]:
    """Trains to the end at once, and in two parts for each stop; asserts that they are one. Returns what they left in last.ckpt and in the log."""

    def run(config: dict[str, Any], *stops: int, steps: int = STEPS, state: str = "regularization") -> tuple[dict, list[dict]]:
        words = ("--actual_resume", str(start.base), "--max_steps")
        straight = train(config, *words, str(steps))
        assert straight.code == 0, straight.out
        for stop in stops or (STOP,):
            halves = train(config, *words, str(stop))
            at_stop = halves.last
            assert at_stop["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == stop % AN_EPOCH > 0, "in the middle of an epoch"
            resumed = train(None, "-r", str(halves.folder), "--max_steps", str(steps))
            assert resumed.code == 0, resumed.out
            assert_same_training(halves.last, straight.last)
            for part in ("optimizer_states", "random_states", state):
                assert equal(halves.last[part], straight.last[part]), part
                assert not equal(at_stop[part], straight.last[part]), f"{part} stood still: it could not differ"
            assert logged(halves.folder, stop) == logged(straight.folder, stop)
        return straight.last, logged(straight.folder, stop)

    return run


@pytest.mark.parametrize(("teacher", "latents"), CELLS)
def test_every_teacher_and_source_of_latents_resumes_bit_for_bit(both, start, teacher, latents):
    last, lines = both(config_of(start, latents, teacher))
    assert last["regularization"]["acted"] == STEPS / EVERY
    drift = [line["train/loss_locality_step"] for line in lines if "train/loss_locality_step" in line]
    assert len(drift) == STEPS / EVERY and min(drift[STOP // EVERY :]) > 1e-10, "the term was at work"


def test_a_drift_budget_goes_on_from_its_dual_variable(both, start):
    config = config_of(start, "NoiseLatents", "FrozenCopy")
    meter = {"samples": 3, "ddim_steps": 2, "noisings": 2, "points": 4, "cache_dir": str(start.banks)}
    budget = {"budget": 1.0e-4, "measure_every": 4, "meter_config": {"target": "ldm.regularization.drift_meter.DriftMeter", "params": meter}}
    weight = {"target": "ldm.regularization.weight.DriftBudget", "params": {"every": EVERY, **budget}}
    config["model"]["params"]["regularization_config"]["params"]["weight_config"] = weight
    last, lines = both(config)
    weights = {line["step"]: line["train/locality_weight_step"] for line in lines if "train/locality_weight_step" in line}
    assert len({weights[step] for step in (3, 19, 23, 27, 31, 35, 39)}) == 7, "each measurement moves it, before the stop and after"
    assert last["regularization"]["weight"]["dual"] == weights[STEPS - 1] and last["regularization"]["weight"]["meter"]["position"] == 40


def test_a_rival_goes_on_with_its_own_draws(both, start):
    _, lines = both(rival_of(start), state="prior_preservation")
    assert len([line for line in lines if f"{PRIOR.log}_step" in line]) == STEPS


def test_two_phases_with_a_term_resume_in_either(both, start):
    """The word alone up to the epoch that begins at step 12; then the network round the fixed word, held near it too."""
    config = config_of(start)
    swap = {"target": "main.ModeSwapCallback", "params": {"swap_step": 10, "train_embeddings_after": False}}
    config["lightning"]["callbacks"]["swap"] = swap
    last, lines = both(config, 8, 16, steps=20)
    steps = [line["step"] for line in lines if "train/loss_locality_step" in line]
    assert steps == [15, 19] and last["regularization"]["acted"] == 2, "in the first phase there is nothing to hold"


class Press(pl.Callback):
    """Presses Ctrl-C within a batch, when its loss is known: once to stop after it, twice to stop at once."""

    def __init__(self, batch: int, times: int):
        self.batch, self.times = batch, times

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: object) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("accumulated", "batch", "times"), [(3, 8, 1), (1, 5, 2)], ids=["between two batches of a step", "within a batch"])
@pytest.mark.parametrize("kind", ["term", "rival"])
def test_a_step_that_was_broken_off_is_made_anew_with_the_same_draws(train, start, monkeypatch, kind, accumulated, batch, times):
    monkeypatch.setattr(sys.modules[toy.MODULE], "Press", Press, raising=False)
    config = config_of(start) if kind == "term" else rival_of(start)
    if kind == "term":
        config["model"]["params"]["regularization_config"]["params"]["weight_config"]["params"]["every"] = 1
    config["lightning"]["trainer"] |= {"max_steps": 6, "accumulate_grad_batches": accumulated}
    words = ("--actual_resume", str(start.base))
    straight = train(config, *words)
    config["lightning"]["callbacks"]["press"] = {"target": f"{toy.MODULE}.Press", "params": {"batch": batch, "times": times}}
    stopped = train(config, *words)
    assert stopped.code == 130 and 0 < stopped.last["global_step"] < 6
    resumed = train(None, "-r", str(stopped.folder), "lightning.callbacks.press.params.times=0")
    assert resumed.code == 0, resumed.out
    assert_same_training(stopped.last, straight.last)
    state = "regularization" if kind == "term" else "prior_preservation"
    assert equal(stopped.last[state], straight.last[state])


def test_later_validations_meet_the_same_probes_whichever_came_before(train, start):
    """last.ckpt of step 6 is written before the validation that ends the epoch, which a resumed run does not repeat."""
    config = config_of(start, "NoiseLatents")
    config["lightning"]["trainer"]["check_val_every_n_epoch"] = 1
    config["lightning"]["modelcheckpoint"]["params"]["every_n_train_steps"] = AN_EPOCH
    words = ("--actual_resume", str(start.base), "--max_steps")
    straight, first = (train(config, *words, str(steps)) for steps in (2 * AN_EPOCH, AN_EPOCH))
    train(None, "-r", str(first.folder), "--max_steps", str(2 * AN_EPOCH))
    ours, theirs = ([line["val/loss_locality"] for line in lines_of(run.folder) if "val/loss_locality" in line] for run in (first, straight))
    assert ours == theirs and len(set(ours)) == 2
