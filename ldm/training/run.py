"""One run, in the order in which things happen: words → config → checks → model, data, Trainer → plan → fit → test → results."""
from __future__ import annotations

import argparse
import logging
import math
import os
import pdb
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.utilities.model_helpers import is_overridden
from tqdm.contrib.logging import logging_redirect_tqdm

from ldm.checkpoints.reading import trusting_pickles
from ldm.training import arguments, compose, disk, forecast, memory, plan, preflight
from ldm.training.assembly import build_trainer
from ldm.training.devices import check_precision, chosen_devices, device_name
from ldm.training.model import set_learning_rate
from ldm.training.optimizers import optimizers_of
from ldm.training.run_folder import RunFolder, is_first, new_run, resumed_run
from ldm.training.validation import check_config
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

INTERRUPTED = 130                                              # the shell's code for a command stopped by Ctrl-C
# Said by Lightning of things that are done on purpose here, or that the plan says better.
NOT_WORTH_SAYING = ("dataloader is not resumable", "does not have many workers", "Checkpoint directory .* exists and is not empty",
                    "isinstance\\(treespec, LeafSpec\\)", "GPU available but not used", "is smaller than the logging interval", "module\\(s\\) in eval mode")
LIMITS, NO_LIMIT = ("max_steps", "max_epochs", "max_time"), (None, -1)


class Run(NamedTuple):
    """All that is known of a run before anything is built."""

    folder: RunFolder
    project: DictConfig                                        # model and data
    lightning: DictConfig
    trainer: dict[str, Any]                                    # arguments of the Trainer, its device chosen
    resume_from: Path | None
    steps_done: int = 0                                        # of a resumed run


class Stopped(Exception):
    """Ctrl-C while training; the text says how to go on."""


def main(argv: list[str] | None = None) -> int:
    """The training command; returns its exit code. An error is one message on stderr; `--debug` shows where it arose."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quieten()
    debug = False
    try:
        opt, dotted = arguments.parse(argv)
        debug = opt.debug
        with trusting_pickles(opt.trust_pickle):
            execute(opt, prepare(opt, dotted))
    except (KeyboardInterrupt, Stopped) as stop:
        sys.stderr.write(f"\nstopped{f': {stop}' if str(stop) else ' before the first step; nothing was written'}\n")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the border between the program and its user)
        if debug:
            raise
        sys.stderr.write(f"\nerror: {in_one_message(error)}\n")
        return 1
    return 0


def prepare(opt: argparse.Namespace, dotted: list[str]) -> Run:
    """Words → config, checked. Raises before anything is built or written."""
    if opt.name and opt.resume:
        raise ValueError("-n names a new run and -r goes on with an old one: give one of them (a resumed run keeps its name)")
    if opt.resume:
        folder = resumed_run(opt.resume)
    else:
        folder = new_run(opt.logdir, data_root=opt.data_root, base=opt.base, name=opt.name, postfix=opt.postfix, datadir_in_name=opt.datadir_in_name)
    given_trainer = {name: getattr(opt, name) for name in arguments.nondefault_trainer_args(opt)}
    resume_from = given_trainer.pop("resume_from_checkpoint", None) or folder.resume_from
    steps_done = preflight.steps_done(resume_from) if resume_from is not None else 0
    config = compose.merge([*folder.saved_configs, *opt.base], dotted)
    compose.write_flags(config, opt)
    check_config(config)
    preflight.check(config, folder)
    project, lightning = compose.split(config)
    trainer = chosen_devices({**compose.as_plain(lightning.get("trainer") or {}), **given_trainer})
    check_precision(trainer)
    if opt.train and all(trainer.get(limit) in NO_LIMIT for limit in LIMITS):
        raise ValueError("nothing says how long to train: give --max_steps N (or lightning.trainer.max_steps in the config)")
    lightning = OmegaConf.merge(lightning, {"trainer": given_trainer})
    return Run(folder, project, lightning, trainer, resume_from, steps_done)


def execute(opt: argparse.Namespace, run: Run) -> None:
    """Builds, says the plan, trains, tests, and says where the results are."""
    seed_everything(opt.seed, verbose=False)
    config = compose.as_plain(run.project.model)
    drawn = forecast.sketch(config) if is_first() else None    # the first process says the plan for all
    model = forecast.built_without_memory(config) if opt.dry_run else instantiate_from_config(config)
    data = instantiate_from_config(compose.as_plain(run.project.data))
    data.setup()
    trainer = build_trainer(run.folder, run.project, run.lightning, run.trainer, getattr(model, "monitor", None))
    rate = set_learning_rate(model, run.project.model.base_learning_rate, batch_size=run.project.data.params.batch_size,
                             devices=trainer.num_devices * trainer.num_nodes, accumulate=trainer.accumulate_grad_batches, scale=opt.scale_lr)
    needed = say_plan(opt, run, trainer, model, data, rate, drawn)
    if needed is not None:
        disk.check_room(needed.files, run.folder.path)
    if opt.dry_run:
        logger.info("dry run: nothing was trained or written")
        return
    run.folder.create()
    debugging = opt.debug and not opt.resume                   # then the folder ends elsewhere
    ends_in = run.folder.path.parent / "debug_runs" / run.folder.path.name if debugging else run.folder.path
    try:
        if opt.train:
            fit(trainer, model, data, run, ends_in)
        if not opt.no_test:
            test(trainer, model, data, trained=opt.train)
    except Exception:
        if opt.debug and sys.stdin.isatty():
            pdb.post_mortem()
        raise
    finally:
        if debugging and trainer.is_global_zero:
            ends_in.parent.mkdir(parents=True, exist_ok=True)
            os.rename(run.folder.path, ends_in)
    if opt.train:
        say_results(replace(run.folder, path=ends_in), trainer.global_step)


def fit(trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, run: Run, ends_in: Path) -> None:
    """Trains. Raises Stopped, naming the folder in which the run ends, where Ctrl-C ended it."""
    if hasattr(model, "take_over"):                            # a first stage with a discriminator steps its two optimisers itself
        model.take_over(trainer)
    try:
        with logging_redirect_tqdm():
            trainer.fit(model, data, ckpt_path=run.resume_from, weights_only=True)
    except SystemExit as end:                                  # how Lightning leaves after a KeyboardInterrupt
        if not trainer.interrupted:
            raise
        last = run.folder.checkpoints / "last.ckpt"
        if not last.exists():
            raise Stopped(f"before the first step; {ends_in} holds no checkpoint") from end
        raise Stopped(f"at step {trainer.global_step}; go on with: python main.py -t -r {ends_in}") from end


def test(trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, *, trained: bool) -> None:
    """Tests where there is something to test with, and says so where there is not."""
    if "test" not in getattr(data, "datasets", {}):
        logger.info("no test: the config has no data.params.test")
    elif not is_overridden("test_step", model):
        logger.info("no test: %s has no test_step", type(model).__name__)
    else:
        trainer.test(model, data)


def say_plan(opt: argparse.Namespace, run: Run, trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, rate: str,
             drawn: forecast.Sketch | None) -> forecast.Forecast | None:
    """Logs the first lines; returns what a run that trains will need."""
    batch_size, base = run.project.data.params.batch_size, OmegaConf.select(run.project, "model.params.ckpt_path")
    needed, device = None, trainer.strategy.root_device
    if opt.train and drawn is not None:
        needed = forecast.forecast(
            drawn, model=model, batch=lambda: memory.example_batch(data, batch_size), precision=str(trainer.precision), base=base, callbacks=trainer.callbacks,
            folder=run.folder.path, device=device, processes=trainer.num_devices,
        )  # fmt: skip
    facts = plan.Facts(
        device=device_name(device, trainer.num_devices),
        rate=rate,
        steps=steps_in_words(run, trainer, data, batch_size),
        base=base,
        resume_from=run.resume_from,
        folder=run.folder.path,
        needs=needed.lines if needed is not None else (),
    )
    optimizers = optimizers_of(model.configure_optimizers()) if opt.train else []
    for line in plan.lines(model, data, facts, optimizers):
        logger.info("%s", line)
    if needed is not None and needed.shortage:
        logger.warning("%s", needed.shortage)
    return needed


def steps_in_words(run: Run, trainer: pl.Trainer, data: Any, batch_size: int) -> str:
    """The limits, what that is in epochs, and what a step sees."""
    limits = [f"{key} {run.trainer[key]}" for key in LIMITS if run.trainer.get(key) not in NO_LIMIT]
    done = f", {run.steps_done} of them done" if run.steps_done else ""
    devices = trainer.num_devices * trainer.num_nodes
    accumulated, dataset = trainer.accumulate_grad_batches, getattr(data, "datasets", {}).get("train")
    epochs = ""
    if hasattr(dataset, "__len__") and len(dataset):
        batches = plan.batches_an_epoch(len(dataset), devices, batch_size, trainer.limit_train_batches)
        an_epoch = max(1, math.ceil(batches / accumulated))
        steps = run.trainer.get("max_steps")
        epochs = f" ({an_epoch} steps an epoch)" if steps in NO_LIMIT else f" ({steps / an_epoch:.3g} epochs of {an_epoch} steps)"
    seen = f"{accumulated} × {batch_size}" + (f" × {devices}" if devices > 1 else "")
    return f"{', '.join(limits) or 'no limit'}{epochs}{done}; a step sees {seen} examples"


def say_results(folder: RunFolder, steps: int) -> None:
    """Logs that the run is over and what it left."""
    logger.info("finished after %d steps. Results in %s:", steps, folder.path)
    for path, what in (
        (folder.checkpoints / "last.ckpt", "the model, to go on with or to sample from"),
        (folder.checkpoints / "embeddings.pt", "the learnt word"),
        (folder.path / "images", "previews"),
        (folder.path / "metrics.jsonl", "what was logged, a line a step"),
    ):
        if path.exists():
            logger.info("  %-28s %s", path.relative_to(folder.path), what)


def quieten() -> None:
    """Lets pass by what the plan says better; other processes than the first keep to warnings."""
    for name in ("pytorch_lightning", "lightning_fabric", "ldm.data.images"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in NOT_WORTH_SAYING:
        warnings.filterwarnings("ignore", message=f".*{pattern}")
    if int(os.environ.get("LOCAL_RANK", 0)):
        logging.getLogger("ldm").setLevel(logging.WARNING)


def in_one_message(error: BaseException) -> str:
    """The error's text; for kinds that are not meant for a user, with the kind and how to see more."""
    text = str(error).strip()
    if text.startswith("Caught "):                             # a loader's worker wraps the text of the traceback round the cause
        text = text.splitlines()[-1].partition(": ")[2] or text
    if isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError)) and text:
        return text
    return f"{type(error).__name__}: {text or 'no text'} (--debug shows where)"
