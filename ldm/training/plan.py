"""The first lines of a run: on what, which parameters at which rate, for how long, from what, to where."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import nn

LABEL_WIDTH = 14
ADAM_BYTES_PER_VALUE, ADAM_8BIT_BYTES_PER_VALUE = 8, 2         # two moments
UNNAMED = "parameters"


class Facts(NamedTuple):
    """What the plan is told, in words."""

    device: str
    rate: str
    steps: str
    base: str | None                 # weights that the model starts from
    resume_from: Path | None
    folder: Path


class GroupLine(NamedTuple):
    """One group of an optimiser, in words."""

    name: str
    tensors: int
    values: int
    rate: float

    def __str__(self) -> str:
        return f"{self.name}: {self.tensors} tensor{'s' if self.tensors != 1 else ''}, {in_words(self.values)} values at {self.rate:.3g}"


def optimizers_of(configured: Any) -> list[torch.optim.Optimizer]:
    """The optimisers in whatever `configure_optimizers` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        return [configured]
    if isinstance(configured, Mapping):
        return [configured["optimizer"]]
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], (list, tuple)):
        return list(configured[0])
    return [optimizer for item in configured or () for optimizer in optimizers_of(item)]


def groups(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> list[GroupLine]:
    """What each group trains, named by the parts of the model that its parameters belong to; the rate without a schedule's factor."""
    owner = {id(parameter): name.partition(".")[0] for name, parameter in model.named_parameters()}
    lines = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            parts = dict.fromkeys(owner.get(id(parameter), UNNAMED) for parameter in group["params"])
            lines.append(GroupLine(" + ".join(parts), len(group["params"]), sum(p.numel() for p in group["params"]), group.get("initial_lr", group["lr"])))
    return lines


def checkpoint_bytes(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """About how large last.ckpt will be: the weights, and what the optimisers keep of each trained value."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return weights + sum(state_bytes(optimizer) * p.numel() for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that an optimiser keeps of a trained value; of one that is not known here as of Adam."""
    if isinstance(optimizer, torch.optim.SGD):
        return 4 if any(group["momentum"] for group in optimizer.param_groups) else 0
    if isinstance(optimizer, torch.optim.Adafactor):
        return 0                                               # a row and a column of each matrix
    return ADAM_8BIT_BYTES_PER_VALUE if type(optimizer).__name__.endswith("8bit") else ADAM_BYTES_PER_VALUE


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
    optimizers = list(optimizers)
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
        ("last.ckpt", f"about {checkpoint_bytes(model, optimizers) / 2**20:,.0f} MiB: weights and the optimiser's state"),
        ("results", str(facts.folder)),
    ]
    return [f"{label:<{LABEL_WIDTH}} {text}" for label, text in labelled]


def in_words(count: int) -> str:
    """A count for a reader: 768, 12.3 k, 9.21 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
