"""The denoising network compiled by `torch.compile`, asked for by the key `model.params.compile`: the same network under the same keys, quicker.

It is compiled at its first call, which then takes minutes for a large one; another batch size or resolution may compile it again.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_network(network: nn.Module, wanted: bool | Mapping[str, Any]) -> None:
    """Compile `network` in place, at its first call. wanted: true, or arguments of `torch.compile` (`{mode: reduce-overhead}`); false: nothing.

    Raises ValueError for anything else, and where this machine lacks what compiling needs.
    """
    options = _options(wanted)
    if options is None:
        return
    if options.get("backend", "inductor") == "inductor":
        _check_tools()
    try:
        network.compile(**options)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"model.params.compile is {wanted!r}, which torch.compile refuses: {error}") from error


def _options(wanted: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    if isinstance(wanted, bool):
        return {} if wanted else None
    if not isinstance(wanted, Mapping):
        raise ValueError(f"model.params.compile is {wanted!r}; expected true, false or arguments of torch.compile, as in {{mode: reduce-overhead}}")
    return dict(OmegaConf.to_container(OmegaConf.create(dict(wanted)), resolve=True))


def _check_tools() -> None:
    named = os.environ.get("CXX")
    if not any(map(shutil.which, (named,) if named else COMPILERS)):
        looked_for = f"CXX names {named}, which is not there" if named else f"none of {', '.join(COMPILERS)} is on the PATH"
        raise ValueError(f"model.params.compile: torch.compile needs a C++ compiler, and {looked_for}. Install one (CXX may name it), or set compile: false")
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise ValueError("model.params.compile: on a GPU torch.compile needs the package triton, which is not installed. Install it, or set compile: false")
