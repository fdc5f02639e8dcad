"""How a condition reaches the network: the ways in, and the shapes a condition takes between a batch and the network.

A condition is a tensor, a list of tensors, or a dict `{"c_concat": [...], "c_crossattn": [...]}`; before it is encoded also a list of texts or a
whole batch. Ways in (`conditioning_key`): concat joins c_concat (B, C', h, w) to the latents' channels; crossattn attends to c_crossattn
(B, L, d); hybrid does both; adm adds an embedding of c_crossattn to the timestep's; None ignores it.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.util import instantiate_from_config

CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm")
# Keys of a batch whose entry is handed to the encoder as it is; anything else that is a tensor is a picture.
_RAW_KEYS = ("caption", "coordinates_bbox")
_WHOLE_BATCH_KEYS = ("class_label",)


def _as_list(tensors: Tensor | Sequence[Tensor] | None, name: str, key: str | None) -> list[Tensor]:
    if tensors is None:
        raise ValueError(f"conditioning_key {key!r} needs {name}, which was not given")
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


class DiffusionWrapper(nn.Module):
    """The denoising network behind its way in.

    diff_model_config: `target` and `params` of a network `f(x, t, context=…, y=…)`; conditioning_key: see the head of this file.
    Raises ValueError for another key.
    """

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            raise ValueError(f"conditioning_key is {conditioning_key!r}; it must be one of {', '.join(map(repr, CONDITIONING_KEYS))}")
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(
        self, x: Tensor, t: Tensor, c_concat: Sequence[Tensor] | None = None, c_crossattn: Sequence[Tensor] | None = None
    ) -> Tensor:
        """x (B, C, h, w), t (B,) -> the network's answer, the shape of x. Raises ValueError where the key's condition is missing."""
        key, inputs = self.conditioning_key, {}
        if key in ("concat", "hybrid"):
            x = torch.cat([x, *_as_list(c_concat, "c_concat", key)], dim=1)
        if key in ("crossattn", "hybrid"):
            inputs["context"] = torch.cat(_as_list(c_crossattn, "c_crossattn", key), dim=1)
        if key == "adm":
            inputs["y"] = _as_list(c_crossattn, "c_crossattn", key)[0]
        return self.diffusion_model(x, t, **inputs)


def as_keywords(cond: Any, conditioning_key: str | None) -> dict[str, Any]:
    """The condition as DiffusionWrapper's keyword arguments: a dict as it is, a tensor or a list under the name that the key reads."""
    if isinstance(cond, Mapping):
        return dict(cond)
    tensors = cond if isinstance(cond, list) else [cond]
    return {"c_concat" if conditioning_key == "concat" else "c_crossattn": tensors}


def raw_condition(batch: Mapping[str, Any], cond_key: str, picture: Callable[[str], Tensor]) -> Any:
    """What the condition's encoder is given of a batch: texts and boxes as they are, the whole batch for class labels, else a picture.

    picture: a key -> (B, C, H, W), called only where batch[cond_key] is one. Raises ValueError where the batch has no such entry.
    """
    if cond_key in _WHOLE_BATCH_KEYS:
        return batch
    if cond_key not in batch:
        raise ValueError(f"cond_stage_key is {cond_key!r}, but a batch has only {', '.join(sorted(batch))}")
    entry = batch[cond_key]
    if cond_key in _RAW_KEYS or is_text(entry):
        return entry
    return picture(cond_key)


def is_text(cond: Any) -> bool:
    """Whether `cond` is a list of texts."""
    return isinstance(cond, (list, tuple)) and len(cond) > 0 and all(isinstance(text, str) for text in cond)


def moved(cond: Any, device: torch.device) -> Any:
    """Every tensor in `cond` on `device`."""
    return _map_tensors(cond, lambda tensor: tensor.to(device))


def first(cond: Any, n: int) -> Any:
    """The condition of the first n samples of a batch."""
    if isinstance(cond, (list, tuple)) and any(not isinstance(part, Tensor) for part in cond):
        return cond[:n]  # one text, or one whatever, a sample
    if isinstance(cond, Mapping):
        return {key: first(part, n) for key, part in cond.items()}
    return _map_tensors(cond, lambda tensor: tensor[:n])


def size(cond: Any) -> int | None:
    """Number of samples that `cond` is for; None if it is no condition at all."""
    if isinstance(cond, Mapping):
        return size(next(iter(cond.values()), None))
    if isinstance(cond, (list, tuple)) and cond and isinstance(cond[0], Tensor):
        cond = cond[0]
    return None if cond is None else len(cond)


def stacked(a: Any, b: Any) -> Any:
    """One condition for a batch that holds a's samples and then b's. Raises ValueError for conditions of different build."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.cat([a, b])
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return {key: stacked(a[key], b[key]) for key in a}
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [stacked(x, y) for x, y in zip(a, b, strict=True)]
    raise ValueError(f"guidance needs two conditions of the same build, got {_build(a)} and {_build(b)}")


def takes_manager(encode: Callable[..., Any]) -> bool:
    """Whether an encoder's method takes `embedding_manager`, by which placeholders enter."""
    parameters = inspect.signature(encode).parameters.values()
    return any(p.name == "embedding_manager" or p.kind is p.VAR_KEYWORD for p in parameters)


def halvings(first_stage_config: Any) -> int:
    """How often a first stage halves the sides of a picture, read from its config: once a level but the last, 0 without levels."""
    settings = (first_stage_config.get("params") or {}).get("ddconfig") or {}
    return max(len(settings.get("ch_mult", ())) - 1, 0)


def check_picture_size(size: Sequence[int], num_downs: int, image_size: int) -> None:
    """Raises ValueError unless pictures of `size` (H, W) become latents with a side of `image_size` after so many halvings."""
    factor = 2**num_downs
    pixels = "×".join(map(str, size))
    if any(side % factor for side in size):
        raise ValueError(f"pictures are {pixels}, but the first stage needs sides that are multiples of {factor}: change the data's size")
    sides = [side // factor for side in size]
    if image_size not in sides:
        raise ValueError(
            f"model.params.image_size is {image_size}, but pictures of {pixels} pixels become latents of {'×'.join(map(str, sides))}: image_size is the side "
            f"of the latents, so set it to {sides[0]}, or change the data's size to {image_size * factor}"
        )


def rescaled_boxes(bboxes: Tensor, crop_coordinates: Sequence[float]) -> Tensor:
    """Boxes of a whole picture as boxes of a crop of it, cut off at its right and lower edge.

    bboxes: (N, 4) x, y, width, height; crop_coordinates: the same four; all as fractions of the whole picture. Returns (N, 4) fractions of the crop.
    """
    left, top, width, height = crop_coordinates
    x = ((bboxes[:, 0] - left) / width).clamp(0.0, 1.0)
    y = ((bboxes[:, 1] - top) / height).clamp(0.0, 1.0)
    return torch.stack([x, y, torch.minimum(bboxes[:, 2] / width, 1.0 - x), torch.minimum(bboxes[:, 3] / height, 1.0 - y)], dim=1)


def _map_tensors(cond: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(cond, Tensor):
        return function(cond)
    if isinstance(cond, Mapping):
        return {key: _map_tensors(part, function) for key, part in cond.items()}
    if isinstance(cond, (list, tuple)):
        return [_map_tensors(part, function) for part in cond]
    return cond


def _build(cond: Any) -> str:
    if isinstance(cond, Mapping):
        return "{" + ", ".join(f"{key}: {_build(part)}" for key, part in cond.items()) + "}"
    if isinstance(cond, (list, tuple)):
        return "[" + ", ".join(map(_build, cond)) + "]"
    return f"tensor {tuple(cond.shape)}" if isinstance(cond, Tensor) else type(cond).__name__
