"""Between the base and a tuned checkpoint: θ₀ + s (θ − θ₀).

Wortsman et al. 2021, WiSE-FT (arXiv 2109.01903), section 2: linear in weight space, after the run. Concept and prior are traded by s.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NETWORKS = ("model.", "cond_stage_model.")
AVERAGES = "model_ema."
COMPUTED = ".position_ids"  # in checkpoints of older libraries only


def interpolated(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], s: float) -> dict[str, Tensor]:
    """A state dict whose network and text encoder are a fraction s of the way from base to tuned; exactly these at s = 0 and 1.

    In tuned's dtype. All else, the concept's vectors above all, is as tuned and shared with it; averages are left out, for they are of other weights.
    Raises ValueError for s outside 0 to 1, and for networks whose tensors differ in name or shape.
    """
    if not 0 <= s <= 1:
        raise ValueError(f"s is {s}; expected a number from 0 (the base) to 1 (as tuned)")
    keys = [{key for key in tensors if key.startswith(NETWORKS) and not key.endswith(COMPUTED)} for tensors in (base, tuned)]
    alone = sorted(keys[0] ^ keys[1]) + [key for key in sorted(keys[0] & keys[1]) if base[key].shape != tuned[key].shape]
    if alone or not keys[0]:
        raise ValueError(f"base and tuned are not of one model: {len(alone)} tensors of the networks differ in name or shape ({', '.join(alone[:5])})")
    result = {key: value for key, value in tuned.items() if not key.startswith(AVERAGES)}
    return {key: torch.lerp(base[key].to(value), value, s) if key in keys[0] and value.is_floating_point() else value for key, value in result.items()}
