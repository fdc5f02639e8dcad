"""Pictures of one concept with captions that name it: the examples of textual inversion (Gal et al. 2022, arXiv 2208.01618).

Chance enters an item in this order: which kind of template (NumPy, only with a word of each picture's own), which template
(`random`), mirrored or not (torch).
"""
from __future__ import annotations

import difflib
import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import RandomHorizontalFlip

from ldm.data.images import INTERPOLATIONS, list_pictures, prepare_picture, to_model_range
from ldm.prompts import imagenet_dual_templates_small, imagenet_templates_small, imagenet_templates_smallest, per_img_token_list

__all__ = [
    "PersonalizedBase",
    "imagenet_dual_templates_small",
    "imagenet_templates_small",
    "imagenet_templates_smallest",
    "per_img_token_list",
]

# Decoding a phone's JPEG costs more than a training step of a small model; resized, that many pictures take 50 MB at 512 × 512.
PICTURES_KEPT = 64


class PersonalizedBase(Dataset):
    """The pictures of a folder, each time with a caption drawn from templates.

    Item: {"caption": str, "image": (H, W, 3) float32 in [-1, 1]}; H = W = size if a size is given.

    data_root: folder of the pictures. size: pixels; pictures are stretched to a square unless `center_crop` cuts one out first.
    repeats: how often an epoch of the training set (`set: train`) shows each picture; any other set shows each once.
    interpolation: linear, bilinear, bicubic or lanczos. flip_p: probability of a mirrored picture.
    placeholder_token: the word that stands for the concept in captions. coarse_class_text: words put before it.
    per_image_tokens: with probability `mixing_prob` the caption also holds a letter of that picture's own, at most 21 pictures.

    Raises FileNotFoundError or ValueError for a folder without usable pictures and for settings that cannot be meant.
    """

    caption_templates: Sequence[str] = imagenet_templates_small
    two_word_templates: Sequence[str] = imagenet_dual_templates_small

    def __init__(
        self,
        data_root: str,
        size: int | None = None,
        repeats: int = 100,
        interpolation: str = "bicubic",
        flip_p: float = 0.5,
        set: str = "train",
        placeholder_token: str = "*",
        per_image_tokens: bool = False,
        center_crop: bool = False,
        mixing_prob: float = 0.25,
        coarse_class_text: str | None = None,
    ):
        self.data_root = data_root
        self.size = _positive("size", size) if size is not None else None
        self.interpolation = _interpolation(interpolation)
        self.placeholder_token = _one_word(placeholder_token)
        self.per_image_tokens = per_image_tokens
        self.center_crop = center_crop
        self.mixing_prob = mixing_prob
        self.coarse_class_text = coarse_class_text
        self.flip = RandomHorizontalFlip(p=flip_p)

        self.image_paths = [str(path) for path in list_pictures(data_root)]
        self.num_images = len(self.image_paths)
        self._length = self.num_images * (_positive("repeats", repeats) if set == "train" else 1)
        if per_image_tokens and self.num_images >= len(per_img_token_list):
            raise ValueError(
                f"per_image_tokens: {data_root} has {self.num_images} pictures, but there are letters for {len(per_img_token_list) - 1}; "
                "use fewer pictures or per_image_tokens: false"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        picture = self._picture(i % self.num_images)
        return {"caption": self._caption(i % self.num_images), "image": to_model_range(self.flip(picture))}

    def _picture(self, index: int) -> Image.Image:
        path = self.image_paths[index]
        if self.size is None:
            return prepare_picture(path, size=None, centre_crop=self.center_crop, interpolation=self.interpolation)
        return _prepared(path, Path(path).stat().st_mtime_ns, self.size, self.center_crop, self.interpolation)

    def _caption(self, index: int) -> str:
        word = f"{self.coarse_class_text} {self.placeholder_token}" if self.coarse_class_text else self.placeholder_token
        if self.per_image_tokens and np.random.uniform() < self.mixing_prob:
            return random.choice(self.two_word_templates).format(word, per_img_token_list[index])
        return random.choice(self.caption_templates).format(word)


@functools.lru_cache(maxsize=PICTURES_KEPT)
def _prepared(path: str, modified_ns: int, size: int, centre_crop: bool, interpolation: Image.Resampling) -> Image.Image:
    """The same picture is shown hundreds of times; its date is part of the key, so that an edited file is read anew."""
    return prepare_picture(path, size=size, centre_crop=centre_crop, interpolation=interpolation)


def _positive(name: str, value: int) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"{name} is {value}; it must be a whole number of at least 1")
    return int(value)


def _interpolation(name: str) -> Image.Resampling:
    if name not in INTERPOLATIONS:
        near = difflib.get_close_matches(str(name), INTERPOLATIONS, n=1)
        raise ValueError(f"interpolation is {name!r}; it must be one of {', '.join(INTERPOLATIONS)}" + (f"; did you mean {near[0]}?" if near else ""))
    return INTERPOLATIONS[name]


def _one_word(placeholder: str | Sequence[str]) -> str:
    """The bare symbol, also from a yaml list that holds it: captions must not show brackets and quotes."""
    words = [placeholder] if isinstance(placeholder, str) else list(placeholder)
    if len(words) != 1 or not isinstance(words[0], str) or not words[0].strip():
        raise ValueError(f"placeholder_token is {placeholder!r}; it must be one word, for example '*'")
    return words[0]
