"""Low-rank adapters as named tensors: found in a file, whatever its layout, and merged into the weights that they were trained on.

    W' = W + s · (α / r) · B A        (Hu et al. 2021, arXiv 2106.09685; s the strength)

Three layouts of names are read. A layer is called as its weight in the base is, without `.weight`:
    `<layer>.lora_A.weight`, `<layer>.lora_B.weight`, `<layer>.alpha`                              runs of this project
    `lora_unet_<layer of the UNet, _ for .>.lora_down.weight`, `….lora_up.weight`, `….alpha`        kohya's scripts; α = r where it is missing
    the same with the layers' names in diffusers (`down_blocks_0_attentions_1_…`)                  kohya's scripts, Stable Diffusion 1
with `lora_te_` for the text encoder's layers.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from ldm.checkpoints.keys import ADAPTER_A, ADAPTER_ALPHA, ADAPTER_B, TEXT_TOWER, WRAPPED_TEXT_TOWER, listing, other_name

UNET = "model.diffusion_model."
KOHYA_UNET, KOHYA_TEXT = "lora_unet_", "lora_te_"
KOHYA_A, KOHYA_B = ".lora_down.weight", ".lora_up.weight"
KNOWN = "this project's runs (….lora_A.weight) and kohya's scripts (lora_unet_….lora_down.weight, lora_te_…)"
DOWNSAMPLER = re.compile(re.escape(UNET) + r"input_blocks\.(\d+)\.0\.op\.weight")
BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.1\.")


class Adapter(NamedTuple):
    """B A, and its α."""

    A: Tensor  # (r, in), or (r, in, kh, kw) of a convolution
    B: Tensor  # (out, r), or (out, r, 1, 1)
    alpha: float


def merged(base: Mapping[str, Tensor], adapters: Mapping[str, Adapter], strength: float = 1.0) -> dict[str, Tensor]:
    """All tensors of the base under its own keys and in its own formats, those of adapted layers W'.

    adapters: by the key of the weight that each belongs to. The sum is made in fp32.
    """
    return {key: _merged(key, weight, adapters[key], strength) if key in adapters else weight for key, weight in base.items()}


def _merged(key: str, weight: Tensor, adapter: Adapter, strength: float) -> Tensor:
    rank = len(adapter.A)
    down, up = adapter.A.flatten(1), adapter.B.flatten(1)  # (r, ·), (out, r)
    if up.shape[1] != rank or len(up) * down.shape[1] != weight.numel() or len(up) != len(weight):
        raise ValueError(f"the adapter of {key}, {list(adapter.B.shape)} by {list(adapter.A.shape)}, does not fit the base's weight {list(weight.shape)}: "
                         "take the base that it was trained on")
    product = (up.float() @ down.float()).view(weight.shape)
    return (weight.float() + strength * adapter.alpha / rank * product).to(weight.dtype)


def has_adapters(tensors: Iterable[str]) -> bool:
    """Whether these are the keys of low-rank adapters, of a layout that is read or of another."""
    return any("lora" in key.lower() for key in tensors)


def adapters_in(tensors: Mapping[str, Tensor], base: Iterable[str], source: str) -> dict[str, Adapter]:
    """The adapters of a file by the base's keys that they belong to. source: names the file in messages.

    Raises ValueError for a layout that is not known, and for layers that the base does not have.
    """
    weights = [key for key in base if key.endswith(".weight")]
    kohya = any(key.endswith(KOHYA_A) for key in tensors)
    ends = (KOHYA_A, KOHYA_B, ADAPTER_ALPHA) if kohya else (ADAPTER_A, ADAPTER_B, ADAPTER_ALPHA)
    A, B, alpha = ({key.removesuffix(end): value for key, value in tensors.items() if key.endswith(end)} for end in ends)
    strange = sorted(key for key in tensors if "lora" in key.lower() and not key.endswith(ends))
    if not A or A.keys() != B.keys() or strange:
        raise ValueError(f"{source}: low-rank adapters in a layout that is not known here ({listing(strange or sorted(tensors), 3)}). Known: {KNOWN}.")
    names = kohya_names(weights) if kohya else own_names(A, set(weights))
    lost = sorted(layer for layer in A if layer not in names)
    if lost:
        raise ValueError(f"{source}: {len(lost)} of {len(A)} adapted layers are not in the base: {listing(lost, 3)}. Is it an adapter of another model?")
    return {names[layer]: Adapter(A[layer], B[layer], float(alpha.get(layer, len(A[layer])))) for layer in A}


def own_names(layers: Iterable[str], weights: set[str]) -> dict[str, str]:
    """What our runs call a layer → the key of its weight, which the base's file may know by another name."""
    return {layer: key for layer in layers for key in (f"{layer}.weight", other_name(f"{layer}.weight", weights)) if key in weights}


def kohya_names(weights: Iterable[str]) -> dict[str, str]:
    """What kohya's files call a layer → the key of its weight: with our names of the UNet's blocks, and with diffusers' where the two are known to meet."""
    weights = list(weights)
    first = next((int(match[1]) for match in map(DOWNSAMPLER.fullmatch, weights) if match), None)  # the first level's blocks, then its downsampler
    names = {}
    for key in weights:
        layer = key.removesuffix(".weight")
        if layer.startswith(UNET):
            layer = layer.removeprefix(UNET)
            for name in (layer, *([diffusers_name(layer, first)] if first else [])):
                names[KOHYA_UNET + name.replace(".", "_")] = key
        elif layer.startswith(TEXT_TOWER):
            tower = "text_model." + layer.removeprefix(WRAPPED_TEXT_TOWER).removeprefix(TEXT_TOWER)
            names[KOHYA_TEXT + tower.replace(".", "_")] = key
    return names


def diffusers_name(layer: str, blocks: int) -> str:
    """diffusers' name of a layer inside one of the UNet's transformers; any other layer's own name.

    blocks: input blocks a level, its downsampler included. Ours are counted through: input block 0 is the first convolution, then a level
    has as many as it has residual blocks, and one downsampler; output blocks have one residual block more a level, and no block for the upsampler.
    """
    if layer.startswith("middle_block.1."):
        return layer.replace("middle_block.1.", "mid_block.attentions.0.", 1)
    match = BLOCK.match(layer)
    if match is None:
        return layer
    level, place = divmod(int(match[2]) - (match[1] == "input"), blocks)
    return f"{'down' if match[1] == 'input' else 'up'}_blocks.{level}.attentions.{place}.{layer[match.end():]}"
