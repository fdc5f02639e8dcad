"""What a step would hold in memory, counted without the memory: the model's own code runs on tensors that have shapes and dtypes and no numbers.

The model is built on torch's meta device, its tensors are made to look like the CPU's (torch's FakeTensorMode: kernels are chosen, and autocast
casts, as they would for real ones), and every storage that an operation makes is counted from its making to its last reference. So activations
kept for the backward pass, gradient checkpointing, gradients and the optimiser's state count as they come and go. What a kernel needs inside
itself is not seen.
"""
from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from ldm.util import instantiate_from_config

# Of a model's section: files, and what would be done to a network that really runs.
NOT_OF_A_TWIN = ("ckpt_path", "embedding_manager_ckpt", "compile")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages made inside it: `live` of those that are still there, `peak` the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def restart(self) -> None:
        """Begin to look for the peak anew, from what is live."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:  # a number is asked for where there are only shapes
            return args[0].dtype.is_floating_point and 1.0 or 1
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes and size:
            self._sizes[key] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


@contextmanager
def tracing() -> Iterator[LiveBytes]:
    """Inside, tensors are made without memory, and counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        yield live


def twin(config: Mapping[str, Any]) -> nn.Module:
    """The model of a config on the meta device: all its shapes and dtypes, no memory, and none of the files that it would start from."""
    with torch.device("meta"), said_nothing("ldm"):
        return instantiate_from_config(without_files(config))


def without_files(config: Any) -> Any:
    """A copy of a config without the files that weights would be read from, and without compilation."""
    if isinstance(config, Mapping):
        return {key: without_files(value) for key, value in config.items() if key not in NOT_OF_A_TWIN}
    return [without_files(value) for value in config] if isinstance(config, list) else deepcopy(config)


def made_fake(model: nn.Module) -> nn.Module:
    """The same module, its tensors those of a CPU without memory; call it inside `tracing`, before anything is counted."""
    known: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            known[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return known[id(tensor)]

    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = fake(tensor)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = fake(tensor)
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[name] = fake(value)
        if isinstance(module, pl.LightningModule):
            module._device = torch.device("cpu")                # `to` would move tensors, of which torch makes new ones here
    return model


def fake_batch(batch: Any) -> Any:
    """A batch whose tensors have no memory."""
    return tree_map(lambda value: torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value, batch)


def bytes_of(tensors: Any) -> int:
    """Bytes of these tensors, one that occurs twice counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in tensors}.values())


@contextmanager
def said_nothing(name: str) -> Iterator[None]:
    """Inside, this part of the library logs errors only: it will say the same again of the model itself."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
