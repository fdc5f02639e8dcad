"""A step of a tiny model, and one in a random direction."""
from __future__ import annotations

import torch

from tests.regularization.tiny_runs import batch_of


def step_of(model, size: int = 2, seed: int = 3):
    torch.manual_seed(seed)
    return model.shared_step(batch_of(size))


def move(module: torch.nn.Module, by: float = 0.05) -> None:
    """A step in a random direction."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
