"""Runs of several processes: what has to be said again to torch's DistributedDataParallel when other parameters begin to train."""
from __future__ import annotations

import gc

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


def reduce_what_trains_now(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Makes the processes share the gradients of exactly the parameters that require one now.

    DistributedDataParallel looks once, when it is made, and then waits for a gradient of each: one that stands still since would never come, and the
    others' would not be averaged. Under another strategy, or before it is made, there is nothing to do.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = pl_module
        gc.collect()                                           # with the old one go its hooks at the parameters
        strategy.configure_ddp()
