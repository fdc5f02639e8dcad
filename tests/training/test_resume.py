"""A resumed run is the run that was never stopped: the same numbers to the last bit, the same counters."""
from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from ldm.checkpoints import save_weights
from tests.regularization.tiny_runs import term_config
from tests.training import tiny, toy


def assert_same_training(ours: dict, theirs: dict) -> None:
    """Weights, optimiser and counters of two checkpoints are equal to the bit."""
    assert ours["global_step"] == theirs["global_step"]
    assert list(ours["state_dict"]) == list(theirs["state_dict"])
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
    for group, (state, expected) in enumerate(zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True)):
        for index, moments in expected["state"].items():
            for name, value in moments.items():
                assert torch.equal(torch.as_tensor(state["state"][index][name]), torch.as_tensor(value)), (group, index, name)
    progress, expected = (ckpt["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"] for ckpt in (ours, theirs))
    assert progress == expected


@pytest.mark.parametrize("stop", [10, 14, 13], ids=["mid-epoch", "epoch end", "one before the end"])
@pytest.mark.parametrize("previews", [False, True], ids=["plain", "with previews"])
def test_resumed_run_equals_the_straight_run_bit_for_bit(train, stop, previews):
    plain = toy.config(lightning__callbacks={"image_logger": {"params": {"disabled": not previews, "batch_frequency": 3}}})
    straight = train(plain, "--max_steps", "20")
    halves = train(plain, "--max_steps", str(stop))
    assert halves.code == 0 and halves.last["global_step"] == stop
    at_stop = halves.last
    resumed = train(None, "-r", str(halves.folder), "--max_steps", "20")
    assert resumed.code == 0, resumed.out
    last = torch.load(halves.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same_training(last, straight.last)
    assert any(not torch.equal(last["state_dict"][key], at_stop["state_dict"][key]) for key in last["state_dict"])


def test_resumed_run_shows_the_examples_that_were_next(train):
    """No validation here, so all that is loaded is trained on: 20 examples, 7 batches an epoch."""
    train(toy.config(lightning__trainer__limit_val_batches=0), "--max_steps", "12")
    order = list(toy.ToyData.seen)
    toy.ToyData.seen.clear()
    first = train(toy.config(lightning__trainer__limit_val_batches=0), "--max_steps", "5")
    train(None, "-r", str(first.folder), "--max_steps", "12")
    assert toy.ToyData.seen == order
    assert sorted(order[:20]) == list(range(20))


@pytest.mark.parametrize("stop", [1, 11, 12])
def test_resume_with_gradient_accumulation_makes_the_remaining_steps(train, stop):
    """5 pictures, accumulate_grad_batches=4: two steps an epoch, the second of one batch."""
    plain = toy.config(data__params__train__params={"examples": 5}, data__params__batch_size=1, lightning__modelcheckpoint__params={"every_n_train_steps": 1})
    words = ("--accumulate_grad_batches", "4")
    straight = train(plain, "--max_steps", "20", *words)
    first = train(plain, "--max_steps", str(stop), *words)
    resumed = train(None, "-r", str(first.folder), "--max_steps", "20", *words)
    assert resumed.code == 0 and "finished after 20 steps" in resumed.out
    assert_same_training(torch.load(first.folder / "checkpoints" / "last.ckpt", weights_only=True), straight.last)
    steps = [json.loads(line)["step"] for line in (first.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(20))


class InterruptAt(pl.Callback):
    """Presses Ctrl-C during a batch, given as the number of batches already begun."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupting(monkeypatch):
    """`ldm.toy_for_tests.InterruptAt` as a callback for yaml files."""
    monkeypatch.setattr(sys.modules[toy.MODULE], "InterruptAt", InterruptAt, raising=False)


@pytest.mark.parametrize("batch", [3, 5, 6, 8])
def test_run_stopped_in_the_middle_of_an_accumulation_resumes_exactly(train, interrupting, batch):
    trainer = {"max_steps": 8, "accumulate_grad_batches": 3}
    plain = toy.config(data__params__train__params={"examples": 7}, data__params__batch_size=1, lightning__trainer=trainer)
    straight = train(plain)
    stopped = train(plain, f"lightning.callbacks.stop.target={toy.MODULE}.InterruptAt", f"lightning.callbacks.stop.params.batch={batch}")
    assert stopped.code == 130 and "go on with: python main.py -t -r" in stopped.out
    resumed = train(None, "-r", str(stopped.folder), "lightning.callbacks.stop.params.batch=-1")
    assert resumed.code == 0, resumed.out
    assert_same_training(torch.load(stopped.folder / "checkpoints" / "last.ckpt", weights_only=True), straight.last)


class Averaging(toy.Toy):
    """Moves an average where models do, in a hook that Lightning calls after all callbacks."""

    def __init__(self, **params: object):
        super().__init__(**params)
        self.register_buffer("average", torch.zeros(self.net[3].weight.shape))

    def on_train_batch_end(self, *_: object) -> None:
        self.average.lerp_(self.net[3].weight.detach(), 0.1)


@pytest.mark.parametrize("interrupt", [-1, 10], ids=["at its end", "by Ctrl-C"])
def test_averages_are_saved_with_the_step_that_they_follow(train, interrupting, monkeypatch, interrupt):
    """last.ckpt is written in step 10, before and after which there are others."""
    monkeypatch.setattr(sys.modules[toy.MODULE], "Averaging", Averaging, raising=False)
    plain = toy.config(model__target=f"{toy.MODULE}.Averaging")
    straight = train(plain)
    words = (f"lightning.callbacks.stop.target={toy.MODULE}.InterruptAt", f"lightning.callbacks.stop.params.batch={interrupt}")
    first = train(plain, "--max_steps", "10", *words)
    assert first.last["global_step"] == 10
    train(None, "-r", str(first.folder), "--max_steps", "20", "lightning.callbacks.stop.params.batch=-1")
    assert first.last["global_step"] == 20 and straight.last["state_dict"]["average"].any()
    assert_same_training(first.last, straight.last)


def test_every_later_checkpoint_differs_from_the_one_resumed_from(train):
    """A17: after a resume the weights go on changing, and the file is written anew."""
    first = train(toy.config(), "--max_steps", "10")
    before = first.last["state_dict"]
    train(None, "-r", str(first.folder), "--max_steps", "15")
    after = torch.load(first.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["global_step"] == 15
    assert all(not torch.equal(after["state_dict"][key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt"])
def test_resume_from_weights_only_names_the_flag_that_is_meant(train, tmp_path, name):
    """A16."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    save_weights(folder / name, toy.Toy().state_dict())
    ran = train(toy.config(), "-r", str(folder / name))
    assert ran.code == 1
    assert "holds weights only" in ran.out and f"--actual_resume {folder / name}" in ran.out
    assert "Traceback" not in ran.out


def test_resume_reads_the_saved_configs_before_base_and_reuses_the_folder(train, tmp_path):
    first = train(toy.config(), "--max_steps", "5")
    later = toy.write(tmp_path / "more.yaml", {"lightning": {"trainer": {"max_steps": 7}}})
    ran = train(None, "-r", str(first.folder / "checkpoints" / "last.ckpt"), "-b", later)
    assert ran.code == 0 and "finished after 7 steps" in ran.out
    assert list(first.folder.parent.iterdir()) == [first.folder]


def test_resume_of_a_folder_without_checkpoint_says_so(train, tmp_path):
    (tmp_path / "empty").mkdir()
    ran = train(None, "-r", str(tmp_path / "empty"))
    assert ran.code == 1 and "no checkpoints/last.ckpt" in ran.out


def test_resume_of_nothing_says_where_it_looked(train):
    ran = train(None, "-r", "nowhere/at/all")
    assert ran.code == 1 and "cannot find nowhere/at/all" in ran.out and str(Path.cwd()) in ran.out


@pytest.mark.parametrize("stop", [2, 5], ids=["in the first phase", "in the second"])
def test_a_run_on_adapters_held_to_the_network_without_them_resumes_bit_for_bit(train, tmp_path, stop):
    """Two phases: the word alone for an epoch of 4 steps, then adapters, with the term."""
    plain = tiny.config(tiny.photos(tmp_path / "photos", count=2))
    term = term_config(tmp_path / "banks", teacher="AdapterOff", latents="TrainingLatents")
    adapters = {"target": "ldm.models.adapters.LowRankAdapters", "params": {"rank": 2, "dropout": 0.1}}
    plain["model"]["target"] = "ldm.models.diffusion.regularized.RegularizedLatentDiffusion"
    plain["model"]["params"] |= {"unfreeze_model": False, "adapter_config": adapters, "regularization_config": term}
    plain["lightning"]["callbacks"]["swap"] = {"target": "main.ModeSwapCallback", "params": {"swap_step": 4, "train_embeddings_after": False}}
    words = ("--actual_resume", str(tiny.moving_base(tmp_path / "base.safetensors")))
    straight = train(plain, *words, "--max_steps", "8")
    first = train(plain, *words, "--max_steps", str(stop))
    assert first.code == 0 and first.last["global_step"] == stop, first.out
    resumed = train(None, "-r", str(first.folder), "--max_steps", "8")
    assert resumed.code == 0, resumed.out
    last = torch.load(first.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same_training(last, straight.last)
    assert last["regularization"]["acted"] == straight.last["regularization"]["acted"] == 4
    moved = [key for key in last["state_dict"] if key.endswith("lora_B.weight")]
    assert moved and all(last["state_dict"][key].any() for key in moved)
    assert not any(key.endswith("to_q.weight") for key in last["state_dict"]), "the base is not saved again"
