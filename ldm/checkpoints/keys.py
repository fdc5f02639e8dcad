"""Names of tensors: which may be absent anywhere, which go by two names, and what a set of names says about the model it belongs to."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Stored by older libraries and computed by today's; the training loss of a first stage is of no use to who samples.
POSITION_IDS = "position_ids"
OPTIONAL_PREFIXES = ("first_stage_model.loss.",)

NETWORKS = ("model.", "cond_stage_model.", "first_stage_model.")
# Of a layer's low-rank adapter, below the layer's name.
ADAPTER_A, ADAPTER_B, ADAPTER_ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
# Plain values beside the state dict of a training checkpoint.
NOTES = "latent_diffusion"

# transformers < 5 wraps the text tower once more than today's
TEXT_TOWER, WRAPPED_TEXT_TOWER = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."

EMA = "model_ema."
EMA_COUNTERS = ("decay", "num_updates")
CROSS_ATTENTION_INPUT = "attn2.to_k.weight"


class Family(NamedTuple):
    """What kind of model a set of tensors belongs to."""

    name: str
    width: int | None                # of the text encoding that cross-attention reads, None without cross-attention
    config: str | None               # a yaml of this repository that builds it

    def __str__(self) -> str:
        return f"{self.name} (text encoding {self.width} wide)" if self.width else self.name


def is_optional(key: str) -> bool:
    """Whether a checkpoint may lack this key, or have it without need."""
    return key.rpartition(".")[2] == POSITION_IDS or key.startswith(OPTIONAL_PREFIXES)


def is_adapter(key: str) -> bool:
    """Whether the key is of a low-rank adapter."""
    return key.endswith((ADAPTER_A, ADAPTER_B, ADAPTER_ALPHA))


def base_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The networks' own weights, whatever else is there: no adapters, and nothing that a checkpoint may lack or have without need."""
    return {key: value for key, value in tensors.items() if key.startswith(NETWORKS) and not is_adapter(key) and not is_optional(key)}


def starts_with(key: str, prefixes: Iterable[str]) -> bool:
    """Whether the key begins with one of the prefixes."""
    return key.startswith(tuple(prefixes))


def renamed(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the names that the model uses, where it knows one by another name."""
    wanted = set(wanted)
    return {key if key in wanted else other_name(key, wanted): value for key, value in tensors.items()}


def other_name(key: str, wanted: set[str]) -> str:
    """The name by which the model knows `key`; `key` itself if by none."""
    if key.startswith(WRAPPED_TEXT_TOWER):
        candidate = TEXT_TOWER + key.removeprefix(WRAPPED_TEXT_TOWER)
    else:
        candidate = WRAPPED_TEXT_TOWER + key.removeprefix(TEXT_TOWER)
    return candidate if candidate in wanted else key


def under(tensors: Mapping[str, Tensor], prefix: str, wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors below a prefix; it is taken off where the model has no name that begins with it."""
    keep = any(key.startswith(prefix) for key in wanted)
    return {key if keep else key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def with_averaged_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with each averaged copy (`model_ema.…`) in the place of the weight it averages, and no copies left.

    A copy is stored under the weight's name without its dots, below `model.` in a diffusion model and as it is in a first stage.
    Raises ValueError where there are no averaged weights, or one belongs to no weight.
    """
    copies = {key.removeprefix(EMA): value for key, value in tensors.items() if key.startswith(EMA)}
    copies = {key: value for key, value in copies.items() if key not in EMA_COUNTERS}
    if not copies:
        raise ValueError(f"no averaged weights: no key begins with {EMA}")
    plain = {key: value for key, value in tensors.items() if not key.startswith(EMA)}
    owners = {key.removeprefix("model.").replace(".", ""): key for key in plain if key.startswith("model.")} or {key.replace(".", ""): key for key in plain}
    strangers = sorted(set(copies) - set(owners))
    if strangers:
        raise ValueError(f"averaged weights that belong to no weight: {listing([EMA + key for key in strangers])}")
    return {**plain, **{owners[key]: value for key, value in copies.items()}}


def family(shapes: Mapping[str, torch.Size]) -> Family:
    """What these names and shapes are, as far as that is easily said."""
    width = next((shape[1] for key, shape in shapes.items() if key.endswith(CROSS_ATTENTION_INPUT)), None)
    if any(key.startswith(("down_blocks.", "unet.down_blocks.", "mid_block.")) for key in shapes):
        return Family("a model in diffusers' layout", width, None)
    if any("lora_" in key for key in shapes) and width is None:
        return Family("low-rank adapters, no model", width, None)
    if any(key.startswith("cond_stage_model.model.") for key in shapes) or width == 1024:
        return Family("Stable Diffusion 2", width, None)
    if width == 1280:
        return Family("the 1.4-billion text-to-image model of latent diffusion", width, "configs/latent-diffusion/txt2img-1p4B-finetune.yaml")
    if width == 768:
        return Family("Stable Diffusion 1", width, "configs/stable-diffusion/v1-finetune.yaml")
    if width is None and not any("diffusion_model." in key for key in shapes) and any("encoder.conv_in" in key for key in shapes):
        return Family("a first stage", None, None)
    return Family("a latent diffusion model", width, None)


def by_group(keys: Iterable[str]) -> dict[str, list[str]]:
    """The keys by their first name: model, first_stage_model, …; "" for tensors of the model itself, its noise tables."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.partition(".")[0] if "." in key else "", []).append(key)
    return groups


def counted(name: str, keys: Sequence[str], shown: int = 2) -> str:
    """A group in words: its name, how many keys, and the first few of them."""
    return f"{name or 'tables and numbers'} {len(keys)} ({listing(keys, shown)})"


def listing(keys: Iterable[str], shown: int = 5) -> str:
    """The first few keys, and how many more there are."""
    keys = list(keys)
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + rest
