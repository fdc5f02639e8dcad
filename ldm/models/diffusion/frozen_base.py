"""Checkpoints of runs that learn words or adapters and leave the networks as they were: all but the frozen weights, and what says which those are.

The base is loaded again when such a run goes on; its hash shows that it is the same one.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.checkpoints import hash_tensors
from ldm.checkpoints.keys import NETWORKS, base_weights, is_adapter

# The averages of weights that do not move are those weights.
LEFT_OUT = (*NETWORKS, "model_ema.")


def base_hash(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of the networks' weights, whatever else is in `state_dict`."""
    return hash_tensors(base_weights(state_dict))


def without_base(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a run that stands on a frozen base has learnt and counted itself."""
    return {key: value for key, value in state_dict.items() if not _of_base(key)}


def with_base(saved: Mapping[str, Tensor], present: Mapping[str, Tensor], notes: Mapping[str, Any], present_hash: str) -> dict[str, Tensor]:
    """The saved state, filled up with the present weights of the networks.

    notes: `base_path` and `base_sha256` as saved. Raises ValueError where the present weights are not those that the run stood on.
    """
    if notes["base_sha256"] != present_hash:
        raise ValueError(
            f"this run was trained on {notes['base_path']} (SHA-256 of its weights {notes['base_sha256']}), but the weights loaded now have {present_hash}. "
            f"Give the base checkpoint of the run: --actual_resume {notes['base_path']}"
        )
    return {**{key: value for key, value in present.items() if _of_base(key)}, **saved}


def _of_base(key: str) -> bool:
    return key.startswith(LEFT_OUT) and not is_adapter(key)
