"""What a run will need, in words for its plan: memory at the peak, checkpoints on the disk. Worked out before the model takes any memory."""
from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from ldm.training import disk, memory, tracing
from ldm.training.disk import in_gib
from ldm.training.memory import GIB, Need
from ldm.training.optimizers import optimizers_of
from ldm.training.random_state import isolated
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)


class Sketch(NamedTuple):
    """The model as it can be had without its memory."""

    model: pl.LightningModule | None
    why_not: str                   # where it is None
    process: int | None            # bytes of this process with all libraries and no model


def sketch(config: Mapping[str, Any]) -> Sketch:
    """The twin of a config's model. Leaves all chance as it was."""
    try:
        with isolated():
            model = tracing.twin(config)
    except Exception as error:  # noqa: BLE001 (what is wrong with the model is said when it is built; a forecast never stops a run)
        return Sketch(None, reason(error), memory.resident())
    return Sketch(model, "", memory.resident())


def built_without_memory(config: Mapping[str, Any]) -> nn.Module:
    """The model of a config for a dry run: its files are read and must fit, its weights are nowhere."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        return instantiate_from_config(config)


class Forecast(NamedTuple):
    """Lines for the plan, and what a check needs."""

    lines: list[tuple[str, str]]
    need: Need | None
    files: disk.Files | None
    shortage: str | None           # a warning


def forecast(drawn: Sketch, *, model: pl.LightningModule, batch: Callable[[], Any], precision: str, base: Any, callbacks: Iterable[Callback], folder: Path,
             device: torch.device, processes: int) -> Forecast:
    """What this run needs.

    model: the one that will train (rates are taken from it); batch: gives one of its batches, None if it is not known; base: the checkpoint that it starts
    from; precision, callbacks, folder, device: the run's; processes: of this machine that train together.
    """
    twin, why_not, need, state = drawn.model, drawn.why_not, None, None
    before = memory.resident() or 0
    on_disk = disk.saved_weights(twin if twin is not None else model, base if twin is not None else None)
    if twin is not None:
        twin.learning_rate = getattr(model, "learning_rate", None)
        try:
            need = memory.estimate(twin, batch() if hasattr(twin, "shared_step") else None, precision)
            state = need.optimizer
        except Exception as error:  # noqa: BLE001 (see above)
            why_not = reason(error)
            logger.debug("no estimate of memory", exc_info=True)
    rehearsed = (memory.resident() or 0) - before              # what torch loads for it, which stays
    process = (drawn.process or 0) + max(0, rehearsed)
    if state is None:
        state = disk.state_bytes(optimizers_of(model.configure_optimizers()))
    files = disk.files(on_disk, state, callbacks)
    lines = memory_lines(need, why_not, device, process, processes)
    shortage = None
    room = memory.available(device) if need is not None else None
    if room is not None:
        wanted = total(need, device, process) * (processes if device.type == "cpu" else 1)
        if wanted > room:
            where = "the card" if device.type == "cuda" else "this machine"
            shortage = f"memory: about {in_gib(wanted)} will be needed and {where} has {in_gib(room)} free: {saving(need)}"
    return Forecast([*lines, disk_line(files, folder)], need, files, shortage)


def total(need: Need, device: torch.device, process: int) -> int:
    """Bytes at the peak on the device: of the process on a CPU, of the card on a GPU."""
    return need.on_a_card() if device.type == "cuda" else need.peak + process


def memory_lines(need: Need | None, why_not: str, device: torch.device, process: int, processes: int) -> list[tuple[str, str]]:
    """What the peak is made of."""
    if need is None:
        return [("memory", f"not estimated ({why_not})")]
    parts = [("weights", need.weights), ("gradients", need.gradients), ("optimiser's state", need.optimizer), ("the locality term's", need.kept_by_term),
             ("activations", need.rest)]
    said = [f"{name} {size / GIB:.2f}" for name, size in parts if size >= 0.005 * GIB]
    if device.type == "cuda":
        return [("memory", f"about {in_gib(need.on_a_card())} of the card at most: {', '.join(said)}, the rest CUDA's own and the optimiser's step")]
    each = f" in each of {processes} processes" if processes > 1 else ""
    said.append(f"interpreter and libraries {process / GIB:.2f}")
    return [
        ("memory", f"about {in_gib(need.peak + process)} at most{each} (RSS), {need.when}: {', '.join(said)} GiB"),
        ("on a GPU", f"the same run needs about {in_gib(need.on_a_card())} of the card"),
    ]


def disk_line(files: disk.Files, folder: Path) -> tuple[str, str]:
    """How large the checkpoints are and what they take together."""
    if not files.at_once:
        return "disk", "no checkpoints are kept"
    what = f"weights {in_gib(files.weights)}, optimiser's state {in_gib(files.optimizer)}"
    best = f", {files.best} of the best beside it" if files.best else ""
    more = ", and every ten-thousandth step's, which stays" if files.endless else ""
    room = f"{in_gib(files.at_once)} while one is written, {in_gib(disk.free_at(folder))} free"
    return "disk", f"last.ckpt about {in_gib(files.size)} ({what}){best}{more}; {room}"


def saving(need: Need) -> str:
    """What a user can do about too little memory."""
    advice = []
    if need.optimizer + need.gradients > need.weights // 2:
        advice.append("train fewer parameters (model.params.adapter_config), or with an optimiser that remembers less (model.params.optimizer_config)")
    if need.kept_by_term > need.weights // 2:
        advice.append("a teacher that keeps no second network (teacher_config: CachedTeacher, with adapters AdapterOff), or FrozenCopy with dtype: bfloat16")
    if need.rest > need.weights // 2:
        advice.append("a smaller data.params.batch_size, or use_checkpoint: true under unet_config.params")
    return "; ".join(advice) or "close other programs, or take a larger machine"


def reason(error: BaseException) -> str:
    """The first line of an error's text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no text'])[0][:160]}"
