"""Low-rank adapters: a few weights beside a frozen layer, W x + (α / r) · B A x, that train in its stead.

Hu et al. 2021 (arXiv 2106.09685), by the library `peft`. B begins at zero, so a network with new adapters is the network without them.
Off, the frozen network is back: no second copy of it is needed to compare with.
A state dict keeps the base's own keys; those of an adapter are `<layer>.lora_A.weight` (r, in), `<layer>.lora_B.weight` (out, r) and
`<layer>.alpha`. They say all that a merge needs (`ldm.checkpoints.adapters`).
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
NAME = "default"  # peft's, for the only adapter of a layer; no part of our keys


class Size(NamedTuple):
    """Adapters of one network. key: how `adapter_config.params` call their layers, for messages."""

    rank: int
    alpha: float
    layers: tuple[str, ...]
    key: str


class LowRankAdapters:
    """Adapters on layers of the UNet and, with a text_rank, of the text encoder (`adapter_config`).

    rank, alpha: r and α of the UNet's, α = r unless given; layers: last parts of the names of its layers, by default the projections of the
    attention in its transformer blocks. text_rank, text_alpha, text_layers: the text encoder's likewise; rank 0, the default, is none.
    dropout: of what enters an adapter, while training.
    Raises ValueError for numbers that make no adapter, and where peft is not installed.
    """

    def __init__(
        self, rank: int = 4, alpha: float | None = None, dropout: float = 0.0, layers: Sequence[str] = UNET_ATTENTION,
        text_rank: int = 0, text_alpha: float | None = None, text_layers: Sequence[str] = CLIP_ATTENTION,
    ):
        _peft()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"adapter_config.params.dropout is {dropout}; expected a number in [0, 1)")
        self.dropout = float(dropout)
        self.sizes = {"model": _size("", rank, alpha, layers, least=1)}
        if text_rank:
            self.sizes["cond_stage_model"] = _size("text_", text_rank, text_alpha, text_layers, least=0)
        self.keys: frozenset[str] = frozenset()
        self._layers: dict[str, list[Any]] = {}

    @property
    def of_text(self) -> bool:
        """Whether the text encoder has some too."""
        return "cond_stage_model" in self.sizes

    def attach(self, networks: Mapping[str, nn.Module]) -> None:
        """Put adapters into these networks, whose weights are those to stand on, and freeze everything else in them.

        networks: by their names in the model, `model` and `cond_stage_model`. Raises ValueError for layers that are not there.
        """
        peft = _peft()
        keys = []
        for name, size in self.sizes.items():
            network = networks[name]
            _check_layers(network, size)
            network.requires_grad_(False)
            config = peft.LoraConfig(r=size.rank, lora_alpha=size.alpha, lora_dropout=self.dropout, target_modules=list(size.layers), bias="none")
            peft.inject_adapter_in_model(config, network, adapter_name=NAME)
            adapted = {path: layer for path, layer in network.named_modules() if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)}
            for path, layer in adapted.items():
                layer.register_state_dict_post_hook(_to_plain_keys)
                layer.register_load_state_dict_pre_hook(_from_plain_keys)
                keys += [f"{name}.{path}.{own}" for own in ("lora_A.weight", "lora_B.weight", "alpha")]
            self._layers[name] = list(adapted.values())
        self.keys = frozenset(keys)

    def parameters_of(self, network: nn.Module) -> list[nn.Parameter]:
        """The adapters' weights in this network, in the order of its parameters."""
        own = {id(parameter) for layer in self._all() for part in (layer.lora_A, layer.lora_B) for parameter in part.parameters()}
        return [parameter for parameter in network.parameters() if id(parameter) in own]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the networks are those that they started from."""
        layers = [layer for layer in self._all() if not layer.disable_adapters]
        # peft switches gradients with the adapters; who trains is said elsewhere
        trained = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter, required in trained:
                parameter.requires_grad_(required)

    def _all(self) -> list[Any]:
        return [layer for layers in self._layers.values() for layer in layers]


def _size(prefix: str, rank: int, alpha: float | None, layers: Sequence[str], least: int) -> Size:
    key = f"adapter_config.params.{prefix}"
    if int(rank) != rank or rank < least:
        raise ValueError(f"{key}rank is {rank}; expected a whole number of at least {least}")
    if alpha is not None and alpha <= 0:
        raise ValueError(f"{key}alpha is {alpha}; expected a number above 0, or none at all for alpha = rank")
    if isinstance(layers, str) or not layers:
        raise ValueError(f"{key}layers is {layers!r}; expected a list of names")
    return Size(int(rank), float(rank if alpha is None else alpha), tuple(layers), f"{key}layers")


def _check_layers(network: nn.Module, size: Size) -> None:
    names = [name for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    lost = [layer for layer in size.layers if not any(f".{name}".endswith(f".{layer}") for name in names)]
    if lost:
        ends = sorted({".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in names})
        raise ValueError(f"{size.key}: no linear layer or convolution is named {', '.join(lost)}; there are {', '.join(ends) or 'none'}")


def _to_plain_keys(layer: Any, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Base weights under the names that they have without adapters."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        plain = key.removeprefix(prefix).removeprefix("base_layer.").replace(f".{NAME}.", ".")
        state_dict[prefix + plain] = state_dict.pop(key)
    state_dict[f"{prefix}alpha"] = torch.tensor(float(layer.lora_alpha[NAME]))


def _from_plain_keys(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_to_plain_keys`. Raises ValueError for adapters of another alpha: their product would be weighed otherwise than it was trained."""
    alpha: Tensor | None = state_dict.pop(f"{prefix}alpha", None)
    if alpha is not None and float(alpha) != float(layer.lora_alpha[NAME]):
        raise ValueError(f"{prefix}alpha is {float(alpha):g} in the file and {layer.lora_alpha[NAME]:g} by adapter_config: give the run's own alpha")
    for key in [key for key in state_dict if key.startswith(prefix)]:
        own = key.removeprefix(prefix)
        kind, _, rest = own.partition(".")
        state_dict[prefix + (f"{kind}.{NAME}.{rest}" if kind in ("lora_A", "lora_B") else f"base_layer.{own}")] = state_dict.pop(key)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("adapter_config needs the library peft, which is not installed: pip install -e '.[lora]'") from error
    return peft
