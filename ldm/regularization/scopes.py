"""Temporary states of a model; each is as it was before when its `with` block ends, however it ends."""
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, Optional

from torch import Tensor, nn


@contextmanager
def replaced(module: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, these stand in the places of the module's own parts."""
    own = {name: getattr(module, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(module, name, part)
        yield
    finally:
        for name, part in own.items():
            setattr(module, name, part)


@contextmanager
def method_replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Inside, this stands in the place of the module's method."""
    own = vars(module).get(name)  # where someone else stands there already
    setattr(module, name, method)
    try:
        yield
    finally:
        delattr(module, name)
        if own is not None:
            setattr(module, name, own)


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Inside, every part is in eval mode."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def undisturbed(manager: Optional[nn.Module], edit_tokens: Optional[Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside, the embedding manager works on copies, its vectors need no gradient, and what it counts is put back at the end."""
    if manager is None:
        assert edit_tokens is None, "token embeddings can be edited only through an embedding manager"
        yield
        return
    forward, counter = manager.forward, getattr(manager, "progressive_counter", None)
    vectors = [p for p in manager.parameters() if p.requires_grad]

    def on_copies(tokenized_text: Tensor, embedded_text: Tensor) -> Tensor:
        embedded = forward(tokenized_text.clone(), embedded_text.clone())
        return embedded if edit_tokens is None else edit_tokens(embedded)

    try:
        for vector in vectors:
            vector.requires_grad_(False)
        with method_replaced(manager, "forward", on_copies):
            yield
    finally:
        for vector in vectors:
            vector.requires_grad_(True)
        if counter is not None:
            manager.progressive_counter = counter
