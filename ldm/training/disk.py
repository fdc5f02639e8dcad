"""How large a run's checkpoints will be, how many of them there are at once, and whether the disk has room for them."""
from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_iter

from ldm.training.checkpointing import LastCheckpoint
from ldm.training.tracing import bytes_of

MIB = 2**20


class Files(NamedTuple):
    """Bytes of a run's checkpoints."""

    weights: int                   # in each
    optimizer: int                 # its state, in those from which a run goes on
    last: bool                     # whether last.ckpt is kept
    best: int                      # how many checkpoints stand beside it at once, at most
    endless: bool                  # whether some are kept for ever: their number grows

    @property
    def size(self) -> int:
        """Of one from which a run goes on."""
        return self.weights + self.optimizer

    @property
    def at_once(self) -> int:
        """The most at once: a new file is written whole before the one that it replaces goes."""
        kept = self.best + self.last
        return self.size * (kept + 1) if kept else 0


def files(weights: Iterable[Tensor], state: int, callbacks: Iterable[Callback]) -> Files:
    """What checkpoints with these weights hold, and how many of them these callbacks keep. state: bytes of the optimiser's state."""
    callbacks = list(callbacks)
    tops = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    monitored = [callback for callback in tops if callback.save_top_k > 0 and callback.monitor is not None]
    return Files(
        weights=bytes_of(weights),
        optimizer=state,
        last=any(isinstance(callback, LastCheckpoint) and callback.enabled for callback in callbacks),
        best=sum(callback.save_top_k for callback in monitored),
        endless=any(callback.save_top_k == -1 for callback in tops),
    )


def saved_weights(model: pl.LightningModule, base: Any) -> list[Tensor]:
    """The tensors that a training checkpoint of this model holds, by its own hook, which leaves a frozen base out.

    model: a twin, which is told the base that it would stand on; with base None any model, with all its tensors.
    """
    checkpoint: dict[str, Any] = {"state_dict": dict(model.state_dict())}
    if base is not None:
        model.base_checkpoint, model._hash_of_base = str(base), "of no interest for a size"
        model.on_save_checkpoint(checkpoint)
    return [value for value in tree_iter(checkpoint["state_dict"]) if isinstance(value, Tensor)]


def state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Bytes of what these optimisers remember; of ones that have not stepped yet, of what AdamW would."""
    total = 0
    for optimizer in optimizers:
        held = [value for value in tree_iter(optimizer.state) if isinstance(value, Tensor)]
        total += bytes_of(held) if held else 2 * bytes_of(p for group in optimizer.param_groups for p in group["params"])
    return total


def free_at(folder: Path) -> int:
    """Bytes free where the folder lies or will lie."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def check_room(needed: Files, folder: Path) -> None:
    """Raises ValueError where the checkpoints do not fit on the disk, before an hour of training finds out."""
    present = sum(path.stat().st_size for path in (folder / "checkpoints").glob("*.ckpt")) if folder.is_dir() else 0
    free = free_at(folder)
    if needed.at_once > free + present:
        kept = " and ".join([*(["last.ckpt"] if needed.last else []), *([f"{needed.best} of the best"] if needed.best else [])])
        raise ValueError(
            f"not enough room for the checkpoints at {folder}: {in_gib(needed.at_once)} are needed ({kept}, and a new one beside them while it is written; "
            f"{in_gib(needed.size)} each), {in_gib(free)} are free. Make room, choose another place with --logdir, or keep fewer: "
            "lightning.modelcheckpoint.params.save_top_k=0 keeps last.ckpt alone."
        )


def in_gib(size: int) -> str:
    """1.23 GiB; 45.6 MiB; 7 KiB."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size / 1024:.0f} KiB"
