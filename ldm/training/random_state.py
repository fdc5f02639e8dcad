"""Chance: captured for a checkpoint, restored from one, and fenced off where something draws that must not disturb training."""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture(devices: bool = True) -> dict[str, Any]:
    """The states of torch, numpy and random, as tensors and plain values (readable with `weights_only=True`)."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, next_gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "random": (version, list(words), next_gauss),
    }
    if devices and torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts back what `capture` returned; cards that are not there any more are left out."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["random"]
    random.setstate((version, tuple(words), next_gauss))
    if "cuda" in state and torch.cuda.is_available():
        for device, card in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(card.cpu(), device)


@contextmanager
def isolated(devices: bool = False) -> Iterator[None]:
    """Whatever is drawn inside leaves the states outside as they were. devices: the cards' generators too."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cards = torch.cuda.get_rng_state_all() if devices and torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])
        random.setstate(state[2])
        if cards is not None:
            torch.cuda.set_rng_state_all(cards)
