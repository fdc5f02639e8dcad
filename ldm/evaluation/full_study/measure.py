"""A row of the full study: the arm's run is trained where it has one, loaded, and measured; several rows at a time in processes of their own."""
from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ldm.evaluation.bench import Bench
from ldm.evaluation.comparison import DRIFT_SEED
from ldm.evaluation.demonstration import WITHOUT_PREVIEWS
from ldm.evaluation.full_study.arms import EARLY_PARTS, UNREGULARIZED, Arm
from ldm.evaluation.full_study.plan import FullStudy, Job, PromptLists, Stage
from ldm.evaluation.full_study.rows import Row, full_row
from ldm.evaluation.metrics import denoising_loss, drift_by_prompt
from ldm.evaluation.models import chosen_device, load_run, open_run, sampling_of
from ldm.evaluation.nats import nats_by_prompt
from ldm.evaluation.tuning import tune
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.rivals.interpolation import interpolated
from ldm.training.compose import read_config

NATS_DRAWS = 32
PICTURES = 5  # of a character, as `training_pictures` draws
KEEP_PARTS = "lightning.callbacks.metrics_over_trainsteps_checkpoint.params.every_n_train_steps"
WITHOUT_EXTRAS = (*WITHOUT_PREVIEWS, "lightning.trainer.limit_val_batches=0")  # a run's own validation is not what is compared


class RowMaker:
    """Makes the rows of one stage in this process."""

    def __init__(self, study: FullStudy, stage: Stage):
        self.study, self.stage = study, stage
        config = read_config(study.configs[False, 1])
        sampling = sampling_of(config, steps=stage.steps, batch_size=study.batch_size)
        self.prompts = PromptLists.read(study.prompts)
        self.bench = Bench(
            config, study.base, study.classifiers, sampling=sampling, counts=stage.counts, runs=study.runs, device=chosen_device(study.device)
        )  # fmt: skip
        self.points = self.bench.kept_points("full", self.prompts.for_drift, DRIFT_SEED)
        nats = {"trajectories": stage.trajectories, "draws": NATS_DRAWS}
        self.chains = self.bench.kept_chains(self.prompts.texts["nats"], **nats) if stage.trajectories else None

    def row(self, job: Job, cost: Mapping[str, float | None]) -> Row:
        """Trains where needed, measures."""
        network, trained = (self.bench.frozen, None) if job.arm.method == "frozen" else self._tuned(job)
        start, size = time.perf_counter(), self.bench.sampling.batch_size
        drift = drift_by_prompt(network, self.points.draws, self.points.frozen_noise, batch_size=size)
        loss = denoising_loss(network, self.bench.loss_draws(job.character), batch_size=size)
        readings = self.bench.readings(network, self.prompts.for_samples, job.seed, None)
        nats = None
        if self.chains is not None:
            found = nats_by_prompt(network, self.chains, batch_size=size)
            nats = {prompt: {"mean": one.mean, "standard_error": one.standard_error, "upper_bound": one.upper_bound} for prompt, one in found.items()}
        seconds = {"train": trained, "measure": time.perf_counter() - start}
        return full_row(job, self.prompts, drift=drift, loss=loss, readings=readings, nats=nats, cost=cost, seconds=seconds, digest=self.study.digest(job.arm))

    def _tuned(self, job: Job) -> tuple[LatentDiffusion, float | None]:
        """The arm's network, and the seconds that its own run took; None where it has none, or it was there."""
        own = job.arm.source == job.arm and not has_run(self.study, job)
        start = time.perf_counter()
        folder = trained(self.study, job)
        seconds = time.perf_counter() - start if own else None
        return self._network(job.arm, folder), seconds

    def _network(self, arm: Arm, folder: Path) -> LatentDiffusion:
        run, base, device = open_run(folder), self.study.base, self.bench.device
        if arm.method == "early_stopping":
            steps = early_step(read_config(self.study.config_of(arm)), self.study, arm.strength)
            (checkpoint,) = (folder / "checkpoints" / "trainstep_checkpoints").glob(f"*step={steps:09d}.ckpt")
            return load_run(run, base, device=device, checkpoint=checkpoint)
        network = load_run(run, base, device=device)
        if arm.method == "interpolation":
            network.load_state_dict(interpolated(self.bench.frozen.state_dict(), network.state_dict(), arm.strength))
        return network


def has_run(study: FullStudy, job: Job) -> bool:
    """Whether the run that a row is made of was finished before."""
    return (study.runs / job.run_name(job.arm.source) / "run.json").is_file()


def trained(study: FullStudy, job: Job) -> Path:
    """The folder of the run that a row is made of, trained now if it is not there. Raises ValueError where the training command fails."""
    arm = job.arm.source
    logdir = study.runs / job.run_name(arm)
    logdir.mkdir(parents=True, exist_ok=True)
    words, said = run_words(study, arm), logdir / "said.txt"
    return tune(study.config_of(arm), study.base, study.pictures(job), logdir=logdir, name="run", seed=job.seed, overrides=words, reuse=True, log=said)


def run_words(study: FullStudy, arm: Arm) -> list[str]:
    """What the training command is told beside the config of an arm that has a run."""
    config = read_config(study.config_of(arm))
    words = [*WITHOUT_EXTRAS, *arm.overrides()]
    if study.train_steps is not None:
        words += _shortened(config, study.train_steps, arm.phases)
    if arm == UNREGULARIZED:
        words.append(f"{KEEP_PARTS}={part_of_run(config, study)}")
    return words


def part_of_run(config: DictConfig, study: FullStudy) -> int:
    """Steps after which the unregularised run's weights are kept each time."""
    return max(1, (study.train_steps or config.lightning.trainer.max_steps) // EARLY_PARTS)


def early_step(config: DictConfig, study: FullStudy, share: float) -> int:
    """The step after which a run is stopped early."""
    return round(share * EARLY_PARTS) * part_of_run(config, study)


def _shortened(config: DictConfig, steps: int, phases: int) -> list[str]:
    words = [f"lightning.trainer.max_steps={steps * phases}"]
    if phases == 2:  # the swap comes at the start of an epoch
        repeats = max(1, steps * config.data.params.batch_size // PICTURES)
        words += [f"lightning.callbacks.mode_swap.params.swap_step={steps}", f"data.params.train.params.repeats={repeats}"]
    return words


def make_rows(maker: RowMaker, jobs: Iterable[Job], costs: Mapping[str, Mapping[str, float | None]]) -> Iterator[tuple[Job, Row | ValueError]]:
    """Rows as they are done, in any order where there are several workers; in the place of a row whose run failed, what was wrong with it.

    maker: in this process; it has drawn what all share. Raises ValueError where the system ends a worker.
    """
    study = maker.study
    jobs = list(jobs)
    if study.workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, _row_or_error(lambda job=job: maker.row(job, costs.get(job.arm.kind, {})))
        return
    threads = max(1, (os.cpu_count() or 1) // study.workers)
    pool = ProcessPoolExecutor(
        study.workers, mp_context=multiprocessing.get_context("spawn"), initializer=_open_worker, initargs=(study, maker.stage, threads)
    )  # fmt: skip
    try:
        waiting: dict[Future[Row], Job] = {pool.submit(_row, job, dict(costs.get(job.arm.kind, {}))): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting[done], _row_or_error(done.result)
    except BrokenProcessPool as error:
        raise ValueError(f"a process that made a row was ended from outside (for lack of memory?): {error} Try again with fewer --workers.") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _row_or_error(made: Callable[[], Row]) -> Row | ValueError:
    try:
        return made()
    except ValueError as error:
        return error


_worker: dict[str, Any] = {}


def _open_worker(study: FullStudy, stage: Stage, threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the training commands that it starts
    torch.set_num_threads(threads)
    _worker["maker"] = RowMaker(study, stage)


def _row(job: Job, cost: Mapping[str, float | None]) -> Row:
    return _worker["maker"].row(job, cost)
