"""From a training checkpoint to a file of weights alone: what other tools load, about as large as the base model."""
from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoints.keys import EMA, with_averaged_weights
from ldm.checkpoints.reading import read_checkpoint, read_state_dict
from ldm.checkpoints.writing import save_weights


def export_weights(source: str | Path, out: str | Path, *, dtype: torch.dtype | None = None, averaged: bool = False, trust_pickle: bool = False) -> int:
    """Writes the weights of a run (its folder) or checkpoint to `out`, .safetensors or .ckpt; returns how many tensors.

    averaged: the exponential averages in the place of the weights, where the run kept some; otherwise they are left out.
    Raises ValueError for a run whose checkpoint leaves its frozen networks out: its result is the embedding file.
    """
    source = Path(source)
    if source.is_dir():
        source = source / "checkpoints" / "last.ckpt"
    content = read_checkpoint(source, trust_pickle=trust_pickle)
    tensors = read_state_dict(source, trust_pickle=trust_pickle)
    if "loops" in content and not any(key.startswith(("model.", "encoder.")) for key in tensors):
        raise ValueError(f"{source}: holds the learnt word but not the network, which stayed as it was: use embeddings.pt beside it with the base model")
    tensors = with_averaged_weights(tensors) if averaged else {key: value for key, value in tensors.items() if not key.startswith(EMA)}
    save_weights(out, tensors, dtype=dtype)
    return len(tensors)
