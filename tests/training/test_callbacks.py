"""What a run leaves and how it stops: saved configs, checkpoints and their settings, two phases, signals."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from ldm.checkpoints.embeddings import read_embeddings
from ldm.training.assembly import build_callbacks, build_loggers
from ldm.training.checkpointing import LastCheckpoint
from ldm.training.metrics import JsonLinesLogger
from ldm.training.optimizers import optimizers_of
from ldm.training.plan import groups
from ldm.training.run_folder import RunFolder
from tests.training import tiny, toy


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run", "cat2026")


def built(folder: RunFolder, lightning: dict, monitor: str | None = None) -> dict[str, pl.Callback]:
    callbacks = build_callbacks(folder, OmegaConf.create(), OmegaConf.create(lightning), lightning.get("trainer", {}), monitor)
    return {type(callback).__name__: callback for callback in callbacks}


def test_every_run_has_the_originals_callbacks(folder):
    names = built(folder, {})
    assert {"SetupCallback", "ImageLogger", "LearningRateMonitor", "CUDACallback", "ModelCheckpoint", "LastCheckpoint"} <= set(names)
    logger = names["ImageLogger"]
    assert (logger.batch_freq, logger.max_images, logger.clamp) == (750, 4, True)


def test_callbacks_are_overridden_by_key_and_others_are_added(folder):
    lightning = {"callbacks": {"image_logger": {"params": {"batch_frequency": 3}}, "swap": {"target": "main.ModeSwapCallback", "params": {"swap_step": 7}}}}
    names = built(folder, lightning)
    assert names["ImageLogger"].batch_freq == 3 and names["ImageLogger"].max_images == 4 and names["ModeSwapCallback"].swap_step == 7


def test_best_checkpoint_follows_the_models_monitor_and_last_the_steps(folder):
    names = built(folder, {"modelcheckpoint": {"params": {"every_n_train_steps": 500}}}, monitor="val/loss_simple_ema")
    best, last = names["ModelCheckpoint"], names["LastCheckpoint"]
    assert best.monitor == "val/loss_simple_ema" and best.save_top_k == 1 and best.filename == "{epoch:06}" and str(best.dirpath) == str(folder.checkpoints)
    assert isinstance(last, LastCheckpoint) and last.every_n_train_steps == 500 and last.path == folder.checkpoints / "last.ckpt"


def test_checkpoints_of_every_ten_thousand_steps_are_kept_where_asked_for(folder):
    callbacks = build_callbacks(folder, OmegaConf.create(), OmegaConf.create({"callbacks": {"metrics_over_trainsteps_checkpoint": {}}}), {}, None)
    kept = [callback for callback in callbacks if getattr(callback, "save_top_k", None) == -1]
    assert len(kept) == 1 and kept[0]._every_n_train_steps == 10000 and kept[0].save_weights_only
    assert str(kept[0].dirpath) == str(folder.checkpoints / "trainstep_checkpoints")


def test_bar_and_checkpoints_can_be_switched_off(folder):
    names = built(folder, {"trainer": {"enable_progress_bar": False, "enable_checkpointing": False}})
    assert not {"StepBar", "ModelCheckpoint", "LastCheckpoint"} & set(names)


def test_logger_of_the_config_is_merged_into_the_default(folder):
    _, board = build_loggers(folder, OmegaConf.create({"logger": {"params": {"name": "mine"}}}))
    assert type(board).__name__ == "TensorBoardLogger" and board.name == "mine" and board.save_dir == str(folder.path)


def test_run_saves_its_config_in_two_files(train, tmp_path):
    ran = train(toy.config(), "--max_steps", "1", "model.params.width=5", "--data_root", str(tiny.photos(tmp_path / "P5")), "-n", "x")
    project, lightning = (OmegaConf.load(next((ran.folder / "configs").glob(f"*-{kind}.yaml"))) for kind in ("project", "lightning"))
    assert set(project) == {"model", "data"} and project.model.params.width == 5
    assert set(lightning) == {"lightning"} and lightning.lightning.trainer.max_steps == 1
    stamp = next((ran.folder / "configs").glob("*-project.yaml")).name.removesuffix("-project.yaml")
    assert stamp.startswith("P520") and ran.folder.name == f"{stamp}_x"


def test_last_checkpoint_is_written_every_n_steps_though_the_monitor_is_known_later(train):
    """Before the first validation nothing is monitored; a run that is killed then still has its last.ckpt."""
    plain = toy.config(model__params__fail_at=None, lightning__trainer={"max_steps": 6, "limit_val_batches": 0})
    ran = train(plain)
    assert ran.code == 0 and ran.last["global_step"] == 6


TORCH_ALONE = """
import sys
for name in ("ldm", "main", "pytorch_lightning", "lightning_fabric", "torchmetrics", "omegaconf", "einops", "transformers", "safetensors", "numpy"):
    sys.modules[name] = None                                   # an import of it fails
import torch
last = torch.load(sys.argv[1], weights_only=True)
print(last["global_step"], *last)
"""


def test_last_checkpoint_opens_with_torch_alone_and_nothing_but_plain_values_in_it(train):
    """A15."""
    ran = train(toy.config(), "--max_steps", "3")
    last = ran.folder / "checkpoints" / "last.ckpt"
    alone = subprocess.run([sys.executable, "-I", "-c", TORCH_ALONE, str(last)], capture_output=True, text=True, check=False)
    assert alone.returncode == 0, alone.stderr
    step, *keys = alone.stdout.split()
    assert step == "3" and set(keys) >= {"state_dict", "optimizer_states", "lr_schedulers", "loops", "random_states"}


# -- metrics -------------------------------------------------------------------------------------------------------------------------------


def test_values_of_one_step_become_one_line_and_infinite_ones_null(tmp_path):
    logger = JsonLinesLogger(tmp_path / "m.jsonl")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_metrics({"b": torch.tensor(2.0), "c": float("nan")}, step=0)
    logger.log_metrics({"a": float("inf")}, step=1)
    assert [json.loads(line) for line in open(tmp_path / "m.jsonl")] == [{"step": 0, "a": 1.0, "b": 2.0, "c": None}, {"step": 1, "a": None}]


def test_resumed_metrics_drop_the_steps_that_are_made_again(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 0, "a": 0}\n{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a')
    JsonLinesLogger(tmp_path / "m.jsonl").log_metrics({"a": 9.0}, step=2)
    assert [json.loads(line) for line in open(tmp_path / "m.jsonl")] == [{"step": 0, "a": 0}, {"step": 1, "a": 1}, {"step": 2, "a": 9.0}]


# -- plan ----------------------------------------------------------------------------------------------------------------------------------


def test_plan_names_groups_by_the_parts_they_train():
    model = torch.nn.ModuleDict({"word": torch.nn.Linear(1, 2), "net": torch.nn.Linear(2, 2), "text": torch.nn.Linear(1, 1)})
    word, network = {"params": model["word"].parameters(), "lr": 0.5}, {"params": [*model["text"].parameters(), *model["net"].parameters()], "lr": 1e-6}
    optimizer = torch.optim.AdamW([word, network])
    assert [str(line) for line in groups(model, [optimizer])] == ["word: 2 tensors, 4 values at 0.5", "text + net: 4 tensors, 8 values at 1e-06"]


FORMS = [lambda o: o, lambda o: {"optimizer": o}, lambda o: [o], lambda o: ([o], []), lambda o: [{"optimizer": o, "lr_scheduler": None}]]


@pytest.mark.parametrize("form", FORMS)
def test_optimisers_are_found_in_every_form_that_lightning_knows(form):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert optimizers_of(form(optimizer)) == [optimizer]


# -- two phases ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swapped(tmp_path_factory) -> dict:
    where = tmp_path_factory.mktemp("swap")
    plain = tiny.config(tiny.photos(where / "P5"))
    plain["data"]["params"]["train"]["params"]["repeats"] = 1  # 3 batches an epoch
    plain["lightning"]["callbacks"]["swap"] = {"target": "main.ModeSwapCallback", "params": {"swap_step": 3, "train_embeddings_after": False}}
    return {"config": plain, "base": str(tiny.base_checkpoint(where / "base.safetensors"))}


def states(run) -> tuple[dict, torch.Tensor]:
    return run.last["state_dict"], read_embeddings(run.folder / "checkpoints" / "embeddings.pt")[1]["*"]


def test_first_the_word_alone_then_the_network_round_the_fixed_word(train, swapped):
    words = ("--actual_resume", swapped["base"], "-s", "3")
    key = "model.diffusion_model.out.2.weight"
    one, three, five = (train(swapped["config"], *words, "--max_steps", str(steps)) for steps in (1, 3, 5))
    assert all(run.code == 0 for run in (one, three, five)), five.out
    (net_1, word_1), (net_3, word_3), (net_5, word_5) = map(states, (one, three, five))
    assert torch.equal(net_1[key], net_3[key]) and not torch.equal(word_1, word_3)
    assert torch.equal(word_3, word_5) and not torch.equal(net_3[key], net_5[key])


@pytest.mark.parametrize("stop", [2, 3, 4], ids=["in the first", "at the swap", "in the second"])
def test_two_phases_resume_exactly_in_either(train, swapped, stop):
    words = ("--actual_resume", swapped["base"])
    straight = train(swapped["config"], *words, "--max_steps", "5")
    first = train(swapped["config"], *words, "--max_steps", str(stop))
    resumed = train(None, "-r", str(first.folder), "--max_steps", "5")
    assert resumed.code == 0, resumed.out
    ours = torch.load(first.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(ours[key], value) for key, value in straight.last["state_dict"].items())


# -- signals -------------------------------------------------------------------------------------------------------------------------------


class SendAt(pl.Callback):
    """Sends this process a signal in the middle of a batch, given as the number of batches begun."""

    def __init__(self, batch: int, name: str, times: int = 1):
        self.batch, self.number, self.times = batch, getattr(signal, name), times

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: object) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.fixture
def sending(monkeypatch):
    monkeypatch.setattr(sys.modules[toy.MODULE], "SendAt", SendAt, raising=False)

    def words(name: str, batch: int, times: int = 1) -> list[str]:
        params = {"batch": batch, "name": name, "times": times}
        return [f"lightning.callbacks.send.target={toy.MODULE}.SendAt", *(f"lightning.callbacks.send.params.{key}={value}" for key, value in params.items())]

    return words


def test_ctrl_c_ends_the_batch_writes_last_ckpt_and_says_how_to_go_on(train, sending):
    ran = train(toy.config(), *sending("SIGINT", 7))
    assert ran.code == 130 and ran.last["global_step"] == 7
    assert f"stopped: at step 7; go on with: python main.py -t -r {ran.folder}" in ran.out and "Traceback" not in ran.out


def test_second_ctrl_c_stops_at_once_and_keeps_the_last_whole_step(train, sending):
    ran = train(toy.config(), *sending("SIGINT", 7, times=2))
    assert ran.code == 130 and ran.last["global_step"] == 6


def test_ctrl_c_handler_is_given_back(train, sending):
    before = signal.getsignal(signal.SIGINT)
    train(toy.config(), "--max_steps", "1")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_sigusr1_writes_last_ckpt_and_training_goes_on(train, sending):
    ran = train(toy.config(lightning__modelcheckpoint__params={"every_n_train_steps": 1000}), *sending("SIGUSR1", 4))
    assert ran.code == 0 and "asked by a signal" in ran.out and "holds step 4" in ran.out and ran.last["global_step"] == 20
