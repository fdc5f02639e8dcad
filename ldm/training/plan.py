"""The first lines of a run: on what, which parameters at which rate, for how long, from what, to where."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import nn

LABEL_WIDTH = 14
UNNAMED = "parameters"


class Facts(NamedTuple):
    """What the plan is told, in words."""

    device: str
    rate: str
    steps: str
    base: str | None                 # weights that the model starts from
    resume_from: Path | None
    folder: Path
    needs: Sequence[tuple[str, str]] = ()   # labelled: memory, disk


class GroupLine(NamedTuple):
    """One group of an optimiser, in words."""

    name: str
    tensors: int
    values: int
    rate: float

    def __str__(self) -> str:
        return f"{self.name}: {self.tensors} tensor{'s' if self.tensors != 1 else ''}, {in_words(self.values)} values at {self.rate:.3g}"


def groups(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> list[GroupLine]:
    """What each group trains, named by the parts of the model that its parameters belong to; the rate without a schedule's factor."""
    owner = {id(parameter): name.partition(".")[0] for name, parameter in model.named_parameters()}
    lines = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            parts = dict.fromkeys(owner.get(id(parameter), UNNAMED) for parameter in group["params"])
            lines.append(GroupLine(" + ".join(parts), len(group["params"]), sum(p.numel() for p in group["params"]), group.get("initial_lr", group["lr"])))
    return lines


def regulariser(model: nn.Module) -> str:
    """What the model says of its regulariser; `off` for a model that has none."""
    describe = getattr(model, "describe", None)
    return describe() if callable(describe) else "off"


def pictures(data: Any) -> str:
    """What each data set holds."""
    parts = []
    for name, dataset in getattr(data, "datasets", {}).items():
        inner = getattr(dataset, "data", dataset)
        count = getattr(inner, "num_images", None)
        examples = f"{len(dataset)} examples an epoch" if hasattr(dataset, "__len__") else "a stream"
        of = f" of {count} picture{'s' if count != 1 else ''} in {inner.data_root}" if count is not None else ""
        parts.append(f"{name}: {examples}{of}")
    return "; ".join(parts)


def lines(model: pl.LightningModule, data: Any, facts: Facts, optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    """The plan, one labelled line a fact."""
    planned = groups(model, optimizers)
    trained = sum(line.values for line in planned)
    total = sum(parameter.numel() for parameter in model.parameters())
    labelled = [
        ("device", facts.device),
        ("model", f"{type(model).__name__}, {in_words(total)} parameters, {in_words(trained)} of them trained"),
        ("weights", facts.base or "none given: trained from nothing"),
        *([("resumed from", str(facts.resume_from))] if facts.resume_from else []),
        *[("trains", str(line)) for line in planned],
        ("learning rate", facts.rate),
        ("regulariser", regulariser(model)),
        ("data", pictures(data)),
        ("steps", facts.steps),
        *facts.needs,
        ("results", str(facts.folder)),
    ]
    return [f"{label:<{LABEL_WIDTH}} {text}" for label, text in labelled]


def batches_an_epoch(examples: int, devices: int, batch_size: int, limit: int | float | None) -> int:
    """Batches of each process in an epoch; limit: Lightning's limit_train_batches, a number of batches or a share."""
    batches = math.ceil(math.ceil(examples / devices) / batch_size)
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))


def in_words(count: int) -> str:
    """A count for a reader: 768, 12.3 k, 9.21 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
