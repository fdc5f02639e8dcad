"""What a training step costs: its time beside another model's in the same process, and its peak memory.

Models take turns step by step, so that whatever else the machine does meets all of them alike. There is no Trainer: steps are counted by hand,
on a batch of noise, since neither depends on what the pictures show.
"""
from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import default_collate
from tqdm import tqdm

from ldm.util import get_obj_from_str

FORGET_PEAK = Path("/proc/self/clear_refs")  # Linux alone
PEAK_STEPS = 4


class Trained:
    """A model as the training command would train it, and its optimiser.

    config: a section `model:`. pixels: side of the pictures. After construction it has taken no step; a bank has been made.
    """

    def __init__(self, config: DictConfig, base_checkpoint: Path, *, learning_rate: float, pixels: int):
        model_class = get_obj_from_str(config.target)
        without_trainer = {
            "steps_done": 0, "global_step": property(lambda model: model.steps_done), "training_items": lambda model: [item_of(pixels)] * 8,
        }  # fmt: skip
        counted = type(model_class.__name__, (model_class,), without_trainer)
        self.model = counted(**config.params, ckpt_path=str(base_checkpoint))
        self.model.learning_rate = learning_rate
        self.model.setup("fit")
        self.model.train()
        optimizer = self.model.configure_optimizers()
        self.optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer["optimizer"]

    def step(self, batch: Mapping[str, Any]) -> float:
        """One training step; its seconds."""
        start = time.perf_counter()
        loss, _ = self.model.shared_step(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.steps_done += 1
        return time.perf_counter() - start


def item_of(pixels: int) -> dict[str, Any]:
    """A picture of noise with a caption."""
    return {"image": torch.rand(pixels, pixels, 3) * 2 - 1, "caption": "a photo of a *"}


def batch_of(size: int, pixels: int) -> dict[str, Any]:
    """A training batch of such pictures."""
    return default_collate([item_of(pixels) for _ in range(size)])


def take_turns(
    trained: Mapping[str, Trained], batch: Mapping[str, Any], *, warm_up: int, rounds: int, progress: str | None = "steps"
) -> dict[str, list[float]]:
    """Seconds of each model's steps, round by round, after so many rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in trained}
    for k in tqdm(range(warm_up + rounds), desc=progress, disable=progress is None, leave=False):
        for name, one in trained.items():
            spent = one.step(batch)
            if k >= warm_up:
                seconds[name].append(spent)
    return seconds


def step_ratio(
    plain: DictConfig, other: DictConfig, base_checkpoint: Path, *, batch_size: int, learning_rate: float, pixels: int, rounds: int = 12,
    cycle: int = 1,
) -> tuple[float, float]:
    """(seconds of a plain step, those of the other over them): medians over the rounds. plain, other: sections `model:`. cycle: steps after which the
    other's repeat, the cheap among the dear; so many are taken together."""
    options = {"learning_rate": learning_rate, "pixels": pixels}
    trained = {name: Trained(config, base_checkpoint, **options) for name, config in (("plain", plain), ("other", other))}
    warm_up, cycles = -(-2 // cycle) * cycle, -(-rounds // cycle)
    seconds = take_turns(trained, batch_of(batch_size, pixels), warm_up=warm_up, rounds=cycles * cycle, progress=None)
    return statistics.median(seconds["plain"]), ratio_by_cycles(seconds["other"], seconds["plain"], cycle)


def ratio_by_cycles(seconds: Sequence[float], plain: Sequence[float], cycle: int) -> float:
    """One model's time over the plain one's: the median over whole cycles of so many steps."""
    starts = range(0, len(plain), cycle)
    return statistics.median(sum(seconds[i : i + cycle]) / sum(plain[i : i + cycle]) for i in starts)


def peak_bytes(config: DictConfig, base_checkpoint: Path, *, batch_size: int, learning_rate: float, pixels: int) -> int | None:
    """Peak resident memory of a model's training steps, in a process of its own; None where the system does not tell peaks."""
    if not FORGET_PEAK.exists():
        return None
    plain = OmegaConf.to_container(config, resolve=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_own_peak, plain, base_checkpoint, batch_size, learning_rate, pixels, torch.get_num_threads()).result()


def _own_peak(config: dict[str, Any], base_checkpoint: Path, batch_size: int, learning_rate: float, pixels: int, threads: int) -> int:
    torch.set_num_threads(threads)
    trained = Trained(OmegaConf.create(config), base_checkpoint, learning_rate=learning_rate, pixels=pixels)
    batch = batch_of(batch_size, pixels)
    trained.step(batch)
    FORGET_PEAK.write_text("5")  # that of building: what counts is held and used while training
    for _ in range(PEAK_STEPS):
        trained.step(batch)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
