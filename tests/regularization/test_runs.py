"""The term in real runs of a Trainer: off it leaves no trace, on it resumes, and it says what it did."""
from __future__ import annotations

import logging

import pytest
import torch

from tests.regularization.tiny_runs import equal, fit, plain_model, regularized_model, tensors_of

COPY = {"teacher": "FrozenCopy", "latents": "TrainingLatents"}


def test_with_weight_0_the_run_is_bit_identical_to_the_unregularised_one(base, tmp_path):
    plain, off = plain_model(base), regularized_model(base, tmp_path / "banks", weight=0.0)
    plain_log = fit(plain, tmp_path / "plain", steps=20, save=True)
    off_log = fit(off, tmp_path / "off", steps=20, save=True)
    assert equal(tensors_of(plain), tensors_of(off))
    assert (plain_log.steps, plain_log.epochs) == (off_log.steps, off_log.epochs) and len(plain_log.steps) == 20
    assert not (tmp_path / "banks").exists() and not off.regularizer.ready
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("plain", "off")]
    assert saved[0].keys() == saved[1].keys()


def test_the_term_changes_no_other_random_draw_of_the_run(base, tmp_path):
    """Rate 0: nothing moves, so a run that draws the same noise and timesteps has the same original losses."""
    params = {"model_lr": 0.0}
    plain, on = plain_model(base, **params), regularized_model(base, tmp_path / "banks", params)
    plain.learning_rate = on.learning_rate = 0.0
    plain_log, log = fit(plain, tmp_path / "plain", steps=4, validate=True), fit(on, tmp_path / "on", steps=4, validate=True)
    assert log.by_step("train/loss_original") == plain_log.by_step("train/loss") and len(set(log.by_step("train/loss_original").values())) == 4
    assert log.by_epoch("val/loss_original") == plain_log.by_epoch("val/loss")


def test_a_checkpoint_has_the_keys_of_an_unregularised_one_and_loads_there(base, tmp_path):
    plain, on = plain_model(base), regularized_model(base, tmp_path / "banks", teacher="FrozenCopy")
    assert list(on.state_dict()) == list(plain.state_dict())
    fit(on, tmp_path, steps=2, save=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(plain.state_dict())
    plain.load_state_dict(saved["state_dict"])
    assert equal(tensors_of(plain), tensors_of(on))


def test_a_warm_cache_gives_the_run_of_a_cold_one(base, tmp_path, caplog):
    runs = []
    for name in ("cold", "warm"):
        model = regularized_model(base, tmp_path / "banks")
        with caplog.at_level(logging.INFO, "ldm.regularization.bank"):
            caplog.clear()
            log = fit(model, tmp_path / name, steps=4)
        assert ("found in" in caplog.text) == (name == "warm")
        runs.append((tensors_of(model), log.steps))
    assert equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


@pytest.mark.parametrize("term", [{"batch_size": 3}, COPY], ids=["bank", "copy"])
def test_a_resumed_run_is_the_straight_one_and_holds_to_the_base(base, tmp_path, term):
    straight = regularized_model(base, tmp_path / "banks", **term)
    log = fit(straight, tmp_path / "straight", steps=5, pictures=2)
    fit(regularized_model(base, tmp_path / "banks", **term), tmp_path / "first", steps=3, pictures=2, save=True)
    resumed = regularized_model(base, tmp_path / "banks", **term)
    saved = torch.load(tmp_path / "first" / "last.ckpt", weights_only=True)["regularization"]
    resumed_log = fit(resumed, tmp_path / "resumed", steps=5, pictures=2, resume=str(tmp_path / "first" / "last.ckpt"))
    assert resumed.regularizer.theta_hash == straight.regularizer.theta_hash == saved["theta_hash"], "θ₀ is the base, not what was resumed"
    assert list(resumed_log.by_step("train/loss_locality")) == [3, 4]
    assert resumed_log.by_step("train/loss_locality")[3] > 1e-6, "had θ₀ been taken from the resumed weights, R would be 0 here"
    assert resumed.regularizer.acted == straight.regularizer.acted == 5
    assert resumed.regularizer.training_chance.position == straight.regularizer.training_chance.position
    assert torch.equal(resumed.regularizer.training_chance.generator.get_state(), straight.regularizer.training_chance.generator.get_state())
    assert list(log.by_step("train/loss_locality")) == [0, 1, 2, 3, 4]


def test_resuming_on_another_base_is_refused_with_both_hashes(base, tmp_path):
    fit(regularized_model(base, tmp_path / "banks", **COPY), tmp_path, steps=1, save=True)
    other = regularized_model(base, tmp_path / "banks", **COPY)
    with torch.no_grad():
        next(other.model.parameters()).add_(1e-3)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["regularization"]["theta_hash"]
    with pytest.raises(ValueError, match=saved) as caught:
        fit(other, tmp_path, steps=2, resume=str(tmp_path / "last.ckpt"))
    assert other.regularizer.theta_hash in str(caught.value) != saved


def test_the_same_base_from_another_place_is_fine(base, tmp_path):
    fit(regularized_model(base, tmp_path / "banks", **COPY), tmp_path, steps=1, save=True)
    moved = tmp_path / "moved.ckpt"
    state = plain_model(base).state_dict()
    torch.save({"state_dict": {key: value for key, value in state.items() if not key.startswith("embedding_manager")}}, moved)
    fit(regularized_model(str(moved), tmp_path / "banks", **COPY), tmp_path, steps=2, resume=str(tmp_path / "last.ckpt"))


def test_an_unregularised_run_may_go_on_regularised(base, tmp_path, caplog):
    fit(plain_model(base), tmp_path, steps=1, save=True)
    model = regularized_model(base, tmp_path / "banks", **COPY)
    log = fit(model, tmp_path, steps=2, resume=str(tmp_path / "last.ckpt"))
    assert "had no locality term" in caplog.text and log.by_step("train/loss_locality")[1] > 1e-6


def test_a_second_fit_keeps_the_first_ones_theta_0(base, tmp_path):
    model = regularized_model(base, tmp_path / "banks", **COPY)
    fit(model, tmp_path, steps=2)
    before = model.regularizer.theta_hash
    log = fit(model, tmp_path, steps=1)
    assert model.regularizer.theta_hash == before and log.by_step("train/loss_locality")[0] > 1e-6


def test_skipped_steps_compute_and_log_nothing_and_due_ones_weigh_k_fold(base, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ldm.models.diffusion.regularized"):
        log = fit(regularized_model(base, tmp_path / "banks", every=3, warmup_steps=4), tmp_path, steps=7)
    assert list(log.by_step("train/loss_locality")) == list(log.by_step("train/locality_weight")) == [2, 5]
    assert list(log.by_step("train/loss_original")) == list(range(7))
    for step, metrics in log.steps.items():
        added = {2: 3 * 5.0, 5: 3 * 10.0}.get(step, 0.0) * metrics.get("train/loss_locality", 0.0)
        assert metrics["train/loss"] == pytest.approx(metrics["train/loss_original"] + added, rel=1e-5)
    assert log.by_epoch("train/loss_locality")[0] == log.by_step("train/loss_locality")[2], "the epoch's mean is over the steps that have it"
    assert "every 3" in caplog.text and "it acted in 2 of 7 optimiser steps" in caplog.text


def test_steps_are_logged_as_rarely_as_the_trainer_is_told(base, tmp_path):
    log = fit(regularized_model(base, tmp_path / "banks", every=2, **COPY), tmp_path, steps=8, log_every_n_steps=4)
    assert list(log.by_step("train/loss_locality")) == [3, 7] and len(log.by_step("train/loss_original")) == 2


def test_a_term_that_never_acted_is_warned_of(base, tmp_path, caplog):
    fit(regularized_model(base, tmp_path / "banks", every=50, **COPY), tmp_path, steps=2)
    (warning,) = [record for record in caplog.records if "acted" in record.message]
    assert warning.levelno == logging.WARNING and "0 of 2" in warning.message


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_the_log_says_on_or_off_at_the_start(base, tmp_path, caplog, weight):
    with caplog.at_level(logging.INFO, "ldm.models.diffusion.regularized"):
        fit(regularized_model(base, tmp_path / "banks", weight=weight, **COPY), tmp_path, steps=1)
    assert f"locality term: {'on' if weight else 'off'}" in caplog.text


@pytest.mark.parametrize(("pictures", "batch_size"), [(8, 4), (4, 3)], ids=["batches of 4", "last batch of 1"])
@pytest.mark.parametrize("term", [{"batch_size": 1}, {"batch_size": 5}, COPY], ids=["1 probe", "5 probes", "training latents"])
def test_all_sizes_of_batches_run_under_accumulation(base, tmp_path, pictures, batch_size, term):
    """With 2 batches a step, both batches of a due step carry the term, and those of other steps do not."""
    model = regularized_model(base, tmp_path / "banks", every=2, **term)
    probes = []
    model.regularizer.loss = counting(model.regularizer.loss, probes)
    log = fit(model, tmp_path, steps=2, pictures=pictures, batch_size=batch_size, accumulate_grad_batches=2)
    batches = [batch_size, pictures - batch_size]
    assert model.global_step == 2 and model.regularizer.acted == 1
    assert probes == (batches if term is COPY else [term["batch_size"]] * 2)
    assert all(torch.isfinite(torch.tensor(list(log.by_step("train/loss").values()))))


def counting(loss, sizes):
    def counted(f, f0, probes, model):
        sizes.append(len(f))
        return loss(f, f0, probes, model)

    counted.describe = loss.describe
    return counted


def test_validation_logs_the_term_for_plain_and_averaged_weights_at_equal_probes(base, tmp_path):
    model = regularized_model(base, tmp_path / "banks", {"use_ema": True}, every=50, latents="NoiseLatents", teacher="FrozenCopy")
    probes, inner = [], model.regularizer.loss

    def loss(f, f0, drawn, host):
        probes.append((host.training, drawn.z_t))
        return inner(f, f0, drawn, host)

    loss.describe = inner.describe
    model.regularizer.loss = loss
    log = fit(model, tmp_path, steps=4, pictures=4, batch_size=2, validate=True)
    plain, averaged = log.by_epoch("val/loss_locality"), log.by_epoch("val/loss_locality_ema")
    assert len(plain) == len(averaged) == 2 and log.by_epoch("val/locality_weight") == [10.0, 10.0]
    assert plain[-1] > 0 and plain[-1] != averaged[-1]
    for key in ("val/loss_original", "val/loss", "val/loss_ema"):
        assert len(log.by_epoch(key)) == 2
    assert log.by_epoch("val/loss")[-1] == pytest.approx(log.by_epoch("val/loss_original")[-1] + 10.0 * plain[-1], rel=1e-5)
    assert not any(training for training, _ in probes) and len(probes) == 4
    assert torch.equal(probes[0][1], probes[1][1]) and torch.equal(probes[2][1], probes[3][1]) and not torch.equal(probes[0][1], probes[2][1])
