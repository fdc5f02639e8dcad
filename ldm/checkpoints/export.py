"""From a training checkpoint to a file of weights alone: what other tools load, about as large as the base model.

A run that learnt low-rank adapters saved them without their base; here the two become one model of the base's own keys.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.adapters import adapters_in, has_adapters, merged
from ldm.checkpoints.keys import EMA, NOTES, TEXT_TOWER, WRAPPED_TEXT_TOWER, base_weights, is_adapter, with_averaged_weights
from ldm.checkpoints.reading import read_checkpoint, read_state_dict
from ldm.checkpoints.writing import ready_to_save, save_weights
from ldm.regularization.bank import hash_tensors

WORDS = "embedding_manager."


def export_weights(source: str | Path, out: str | Path, *, dtype: torch.dtype | None = None, averaged: bool = False, trust_pickle: bool = False,
                   adapter_strength: float | None = None, base: str | Path | None = None) -> int:
    """Writes the weights of a run (its folder) or checkpoint to `out`, .safetensors or .ckpt; returns how many tensors.

    dtype: of the networks' weights; the model's noise tables (keys without a dot) are kept as exact as they are.
    averaged: the exponential averages in the place of the weights, where the run kept some; otherwise they are left out.
    adapter_strength: of low-rank adapters, which are merged into their base (1 unless given). base: the file of that base; for a run, the one that it
    names unless given.
    Raises ValueError for a run whose checkpoint leaves its frozen networks out and has no adapters: its result is the embedding file.
    """
    source = Path(source)
    if source.is_dir():
        source = source / "checkpoints" / "last.ckpt"
    content = read_checkpoint(source, trust_pickle=trust_pickle)
    tensors = read_state_dict(source, trust_pickle=trust_pickle)
    if has_adapters(tensors):
        if averaged:
            raise ValueError(f"{source}: holds low-rank adapters, of which no averages are kept: leave --averaged out")
        strength = 1.0 if adapter_strength is None else adapter_strength
        tensors = with_merged_adapters(source, tensors, content.get(NOTES) or {}, strength, base, trust_pickle)
    elif adapter_strength is not None or base is not None:
        raise ValueError(f"{source}: holds no low-rank adapters: leave --adapter-strength and --base-checkpoint out")
    if "loops" in content and not any(key.startswith(("model.", "encoder.")) for key in tensors):
        raise ValueError(f"{source}: holds the learnt word but not the network, which stayed as it was: use embeddings.pt beside it with the base model")
    tensors = with_averaged_weights(tensors) if averaged else {key: value for key, value in tensors.items() if not key.startswith(EMA)}
    save_weights(out, {key: ready_to_save(value, dtype if "." in key else None) for key, value in tensors.items()})
    return len(tensors)


def with_merged_adapters(source: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], strength: float, base: str | Path | None,
                         trust_pickle: bool) -> dict[str, Tensor]:
    """The base's tensors with the adapters merged in, and the words that were learnt beside them.

    Raises ValueError where the base is not known, or is not the one that the run stood on.
    """
    if not math.isfinite(strength):
        raise ValueError(f"--adapter-strength is {strength}; expected a number such as 0.8")
    if base_weights(tensors):  # trained from nothing, so all is in one file
        own: Mapping[str, Tensor] = {key: value for key, value in tensors.items() if not is_adapter(key)}
    else:
        path = base or notes.get("base_path")
        if path is None:
            raise ValueError(f"{source}: holds low-rank adapters and no model. Name the model that they were trained on: --base-checkpoint MODEL")
        own = read_state_dict(path, trust_pickle=trust_pickle)
        check_base(own, str(path), source, notes.get("base_sha256"))
    words = {key: value for key, value in tensors.items() if key.startswith(WORDS)}
    return {**merged(own, adapters_in(tensors, own, str(source)), strength), **words}


def check_base(tensors: Mapping[str, Tensor], path: str, source: Path, expected: str | None) -> None:
    """Raises ValueError unless these are the weights of that hash, under whichever of the text tower's names; None: any will do."""
    weights = base_weights(tensors)
    unwrapped = {key.replace(WRAPPED_TEXT_TOWER, TEXT_TOWER, 1): value for key, value in weights.items()}
    wrapped = {key.replace(TEXT_TOWER, WRAPPED_TEXT_TOWER, 1): value for key, value in unwrapped.items()}
    if expected is not None and not any(hash_tensors(named) == expected for named in (weights, unwrapped, wrapped)):
        raise ValueError(f"{source}: its adapters were trained on weights with SHA-256 {expected}, and {path} holds others. "
                         "Name the run's own base: --base-checkpoint MODEL")
