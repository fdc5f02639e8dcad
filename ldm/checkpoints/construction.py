"""Modules built without weights, for a file to bring them: none are drawn, and no memory is taken for them.

    with weights_to_come():
        net = UNetModel(…)                    # parameters without data (device "meta"), buffers as ever
    load_weights(net, path)                   # the file's own pages become the parameters
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

_to_come: ContextVar[bool] = ContextVar("weights_to_come", default=False)


@contextmanager
def weights_to_come(yes: bool = True) -> Iterator[None]:
    """Inside, parameters of modules that are built have no data; whoever builds them loads a file that has all of them.

    yes: false does nothing, or within another such block undoes it: parts whose weights are there already, or that no file need bring.
    """
    token = _to_come.set(yes)
    hook = register_module_parameter_registration_hook(_without_data) if yes else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        _to_come.reset(token)


def _without_data(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if not _to_come.get() or parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def lacks_data(module: nn.Module) -> bool:
    """Whether a parameter or buffer of the module is still to come."""
    return any(tensor.is_meta for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
