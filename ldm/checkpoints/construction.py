"""Modules built without weights, for a file to bring them: none are drawn, no memory is taken for them, and none is copied.

    with weights_to_come():
        net = UNetModel(…)                    # parameters without data (device "meta"), buffers as ever
    load_weights(net, path)                   # `fill`: the file's own memory becomes the parameters
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

_to_come: ContextVar[bool] = ContextVar("weights_to_come", default=False)


@contextmanager
def weights_to_come(yes: bool = True) -> Iterator[None]:
    """Inside, parameters of modules that are built have no data; whoever builds them then loads a file that has all of them. yes: false does nothing."""
    if not yes:
        yield
        return
    token = _to_come.set(True)
    hook = register_module_parameter_registration_hook(_without_data)
    try:
        yield
    finally:
        hook.remove()
        _to_come.reset(token)


@contextmanager
def weights_at_hand() -> Iterator[None]:
    """Undoes `weights_to_come` for a part whose weights are there already, or that no file need bring."""
    token = _to_come.set(False)
    try:
        yield
    finally:
        _to_come.reset(token)


def _without_data(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if not _to_come.get() or parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives the module these of its tensors, by their names.

    One that has data is copied into, so whoever refers to it sees the new values. One that is still to come is replaced: by the given tensor
    itself, or by a copy where that has another format, is not contiguous, or shares memory with another one.
    """
    own = module.state_dict()
    replacing = apart({key: value.detach().to(own[key].dtype).contiguous() for key, value in tensors.items() if own[key].is_meta})
    module.load_state_dict({key: value for key, value in tensors.items() if not own[key].is_meta}, strict=False)
    with weights_at_hand():
        module.load_state_dict(replacing, strict=False, assign=True)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous ones, each with memory of its own: what overlaps with another is copied."""
    result, end = dict(tensors), 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            result[key] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return result
