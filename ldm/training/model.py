"""A model from its config and weights, and what its Trainer tells it."""
from __future__ import annotations

import logging

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from ldm.util import count_params, instantiate_from_config

logger = logging.getLogger(__name__)


def load_model_from_config(config: DictConfig, ckpt: str, verbose: bool = False) -> pl.LightningModule:
    """The model of `config.model` with the weights of `ckpt` (once, on the CPU, mapped where the file's format lets them be), in evaluation mode.

    verbose: log how many parameters it has. Raises as `ldm.checkpoints.load_weights`.
    """
    section = OmegaConf.merge(config.model, {"params": {"ckpt_path": str(ckpt)}})
    model = instantiate_from_config(OmegaConf.to_container(section, resolve=True))
    if verbose:
        count_params(model, verbose=True)
    return model.eval()


def set_learning_rate(model: pl.LightningModule, base: float, *, batch_size: int, devices: int, accumulate: int, scale: bool) -> str:
    """Sets `model.learning_rate`; returns the rate and how it came about, in words.

    scale: accumulate_grad_batches × devices × batch size × base, otherwise the base rate itself.
    """
    if not scale:
        model.learning_rate = base
        return f"{base:.3g}: the base rate (--scale_lr false)"
    model.learning_rate = accumulate * devices * batch_size * base
    factors = f"{accumulate} accumulated × {devices} device{'s' if devices > 1 else ''} × {batch_size} batch size × {base:.3g} base_learning_rate"
    return f"{model.learning_rate:.3g} = {factors} (--scale_lr)"
