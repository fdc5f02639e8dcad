"""The optimisers of a model, in whatever form it names them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def optimizers_of(configured: Any) -> list[torch.optim.Optimizer]:
    """The optimisers in whatever `configure_optimizers` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        return [configured]
    if isinstance(configured, Mapping):
        return [configured["optimizer"]]
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], (list, tuple)):
        return list(configured[0])
    return [optimizer for item in configured or () for optimizer in optimizers_of(item)]
