"""The characters model whose every draw belongs to the example and not to the process that makes it, so that runs of one and of two processes can
be compared; as a script the training command, which knows it as `ldm.repeatable_for_tests.Repeatable`.

    python tests/training/repeatable.py MAIN'S WORDS          LDM_GRADIENTS=FOLDER: rank 0 leaves gradients_STEP.pt there, each rank its peak
"""
from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regularized import RegularizedLatentDiffusion
from ldm.regularization.latents import Latents
from ldm.regularization.types import NoisyLatents

MODULE = "ldm.repeatable_for_tests"


def peak_in_kib() -> int:
    """The most memory of this program (`getrusage` would tell of whatever started it, too); 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


class InTurn(Latents):
    """The stored probes, in their order: of each round a process takes its own part, one process alone all of it."""

    def __init__(self, entries: NoisyLatents, rank: int, world: int):
        self.entries, self.rank, self.world, self.drawn = entries, rank, world, 0

    def draw(self, model: Any, batch: Any, n: int, conditioning: Any, chance: Any) -> NoisyLatents:
        first = (self.drawn * self.world + self.rank) * n
        rows = [row % len(self.entries.t) for row in range(first, first + n)]
        self.drawn += 1
        e = self.entries
        return e._replace(z_t=e.z_t[rows].to(batch.z_t), t=e.t[rows].to(batch.t), choice=e.choice.select(rows), frozen=e.frozen[rows].to(batch.z_t))


class FromExamples:
    """Timestep and noise of an example follow from its latents; the posterior's mode is its latents."""

    def get_first_stage_encoding(self, posterior: Any) -> Tensor:
        return self.scale_factor * posterior.mode()

    def draw_t(self, x: Tensor) -> Tensor:
        return torch.stack([torch.randint(0, self.num_timesteps, (), generator=self.chance_of(z)) for z in x])

    def p_losses(self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None) -> Any:
        noise = torch.stack([torch.randn(z.shape, generator=self.chance_of(z)).to(z) for z in x_start])
        return super().p_losses(x_start, cond, t, noise=noise)

    def chance_of(self, z: Tensor) -> torch.Generator:
        # rounded: a convolution of two pictures need not give the last bits of two convolutions
        return torch.Generator().manual_seed(int(z.double().mean() * 1e4) + 10**6 * self.global_step + 10**9)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        folder = os.environ.get("LDM_GRADIENTS")
        if folder and self.global_rank == 0:
            named = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}
            torch.save(named, Path(folder) / f"gradients_{self.global_step}.pt")

    def on_train_end(self) -> None:
        super().on_train_end()
        if os.environ.get("LDM_GRADIENTS"):
            (Path(os.environ["LDM_GRADIENTS"]) / f"rank_{self.global_rank}.txt").write_text(f"{peak_in_kib()} {self.device}")


class Repeatable(FromExamples, RegularizedLatentDiffusion):
    """With the term."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.regularizer.on and not isinstance(self.regularizer._source, InTurn):
            self.regularizer._source = InTurn(self.regularizer._source._entries, self.global_rank, self.trainer.world_size)


class RepeatablePlain(FromExamples, LatentDiffusion):
    """Without it."""


def install() -> None:
    """Makes the classes resolvable as targets in this process."""
    module = types.ModuleType(MODULE)
    module.Repeatable, module.RepeatablePlain = Repeatable, RepeatablePlain
    sys.modules[MODULE] = module


if __name__ == "__main__":
    from ldm.training.run import main

    install()
    sys.exit(main())
