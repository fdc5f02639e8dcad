"""What the network is asked for, and how a batch of its errors becomes one number.

L = w_simple mean(l / e^s_t + s_t) + w_elbo mean(vlb_t l) + w_embedding mean(R)
l: a sample's mean error (B,) · s_t: learnt log-variance of step t (0 unless learnt) · vlb_t: its weight in the variational bound ·
R: how far the concept's vectors are from where they began. Ho et al. 2020 (arXiv 2006.11239), section 3.4.
"""
from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

_ERRORS = {"l1": F.l1_loss, "l2": F.mse_loss}


class Weights(NamedTuple):
    """What each part of the loss counts."""

    simple: float = 1.0
    elbo: float = 0.0
    embedding: float = 0.0


def target_of(parameterization: str, x_0: Tensor, eps: Tensor) -> Tensor:
    """What a network of this parameterization should answer: the noise or the data. Raises ValueError for another name."""
    targets = {"eps": eps, "x0": x_0}
    if parameterization not in targets:
        raise ValueError(f"parameterization is {parameterization!r}; it must be eps or x0")
    return targets[parameterization]


def error(prediction: Tensor, target: Tensor, loss_type: str, mean: bool = True) -> Tensor:
    """|target - prediction| ("l1") or its square ("l2"), averaged over everything or, without `mean`, entry by entry.

    Raises ValueError for another `loss_type`.
    """
    if loss_type not in _ERRORS:
        raise ValueError(f"loss_type is {loss_type!r}; it must be l1 or l2")
    return _ERRORS[loss_type](prediction, target, reduction="mean" if mean else "none")


def total(
    per_sample: Tensor, vlb_t: Tensor, weights: Weights, *, logvar_t: Tensor | None = None, embedding_distance: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its parts under the names in which they are logged.

    per_sample, vlb_t: (B,); logvar_t: (B,) or None where there is none; embedding_distance: a matrix, used only where it is weighted.
    `loss_gamma`, only where there is a log-variance, is the first term of the sum before its weight; the others are as in the formula above.
    """
    simple, vlb = per_sample.mean(), (vlb_t * per_sample).mean()
    gamma = simple if logvar_t is None else (per_sample / logvar_t.exp() + logvar_t).mean()
    loss = weights.simple * gamma + weights.elbo * vlb
    parts = {"loss_simple": simple, "loss_vlb": vlb, **({} if logvar_t is None else {"loss_gamma": gamma})}
    if weights.embedding > 0 and embedding_distance is not None:
        parts["loss_emb_reg"] = embedding_distance.mean()
        loss = loss + weights.embedding * parts["loss_emb_reg"]
    return loss, {**parts, "loss": loss}
