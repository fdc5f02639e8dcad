"""The rivals on the small model of the regulariser's runs."""
from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.rivals.base_weights import BaseWeights
from ldm.rivals.output_preservation import OutputPreservation
from ldm.rivals.prior_preservation import PriorPreservation
from tests.regularization.tiny_runs import PARAMS


class Rival(NamedTuple):
    """A class that holds the network by a term."""

    target: type[LatentDiffusion]
    key: str                       # of the term's weight
    log: str
    params: dict[str, Any] = {}


PRIOR = Rival(PriorPreservation, "prior_weight", "train/loss_prior", {"samples": 3, "ddim_steps": 2, "batch_size": 2})
BASE = Rival(BaseWeights, "base_weight", "train/loss_base_weights")
OUTPUT = Rival(OutputPreservation, "output_weight", "train/loss_output")
HELD = {"prior": PRIOR, "base_weights": BASE, "output": OUTPUT}


def built(target: type[LatentDiffusion], base: str | None, **params: Any) -> LatentDiffusion:
    model = target(**copy.deepcopy({**PARAMS, **params}), ckpt_path=base)
    model.learning_rate = 5.0e-3
    return model


def held(rival: Rival, base: str | None, weight: float, **params: Any) -> LatentDiffusion:
    return built(rival.target, base, **{rival.key: weight, **rival.params, **params})


def started(model: LatentDiffusion) -> LatentDiffusion:
    """As a Trainer leaves it before the first step."""
    model.setup("fit")
    return model.train()


def moved(model: LatentDiffusion) -> LatentDiffusion:
    """Every weight of the network and of the text encoder a little aside, as if tuned."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in (model.model, model.cond_stage_model):
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def answer(model: LatentDiffusion, z_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    """The network's own answer (B, C, h, w), past the hooks of the model."""
    return model.model.diffusion_model(z_t, t, context=model.cond_stage_model.encode(prompts))
