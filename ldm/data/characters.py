"""The drawn world as data sets: pictures with captions, cached latents with captions, and the pictures of a new character.

What exists is said in `character_world`, how it looks in `character_drawing`, in which words in `character_captions`.
"""
from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch.utils.data import Dataset

from ldm.data.character_captions import random_caption
from ldm.data.character_drawing import WORLD, render
from ldm.data.character_world import NEW_CHARACTERS, RESERVED, VALUES, Character, Scene, Thing, dressed, is_held_out, random_scene
from ldm.prompts import imagenet_templates_small

__all__ = [
    "NEW_CHARACTERS", "RESERVED", "VALUES", "WORLD", "Character", "CharacterDataset", "CharacterLatents", "Scene", "Thing",
    "dressed", "is_held_out", "random_scene", "render", "training_pictures",
]  # fmt: skip

SPLIT_SEEDS = {"train": 0, "val": 1, "test": 2}


class CharacterDataset(Dataset):
    """Pictures of the drawn world with captions in natural words.

    Item: {"image": (size, size, 3) float32 in [-1, 1], HWC; "caption": str}. The picture of an index is always the same
    (its scene and rendering come from a generator seeded by seed, set and index); captions are drawn anew from Python's `random`.

    length: pictures in the set. reserved: with reserved traits and held-out combinations.
    crop: side of a random crop round the face, for the cheap first part of first-stage training; None for whole pictures.
    empty_caption: probability of the caption "". things: share of pictures without a character.
    """

    def __init__(
        self,
        length: int = 24_000,
        *,
        size: int = WORLD,
        set: Literal["train", "val", "test"] = "train",
        seed: int = 0,
        reserved: bool = False,
        crop: int | None = None,
        empty_caption: float = 0.0,
        things: float = 0.25,
    ):
        if set not in SPLIT_SEEDS:
            raise ValueError(f"set is {set!r}; it must be one of {', '.join(SPLIT_SEEDS)}")
        if crop is not None and not 0 < crop <= size:
            raise ValueError(f"crop is {crop}; it must lie between 1 and the picture size, {size}")
        self.length, self.size, self.set, self.seed = length, size, set, seed
        self.reserved, self.crop, self.empty_caption, self.things = reserved, crop, empty_caption, things

    def __len__(self) -> int:
        return self.length

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLIT_SEEDS[self.set], index))

    def scene(self, index: int) -> Scene:
        """What picture `index` shows."""
        return random_scene(self._generator(index), reserved=self.reserved, things=self.things)

    def picture(self, index: int) -> Image.Image:
        """Picture `index`, whole."""
        rng = self._generator(index)
        return render(random_scene(rng, reserved=self.reserved, things=self.things), rng, size=self.size)

    def caption(self, index: int) -> str:
        """A caption for picture `index`, drawn by chance."""
        if random.random() < self.empty_caption:
            return ""
        return random_caption(self.scene(index), random, imagenet_templates_small)

    def __getitem__(self, index: int) -> dict:
        picture = self.picture(index)
        if self.crop is not None:
            picture = _face_crop(picture, self.crop)
        return {"image": np.asarray(picture, dtype=np.float32) / 127.5 - 1.0, "caption": self.caption(index)}


def _face_crop(picture: Image.Image, side: int) -> Image.Image:
    """A square near the middle of the picture, where faces are; now and then from anywhere."""
    free = picture.width - side
    if random.random() < 0.3:
        left, top = random.randint(0, free), random.randint(0, free)
    else:
        left, top = (min(max(round(random.gauss(0.5 * free, 0.22 * free)), 0), free) for _ in range(2))
    return picture.crop((left, top, left + side, top + side))


class CharacterLatents(Dataset):
    """The posterior of a first stage over a `CharacterDataset`, read from a file, with captions drawn anew each time.

    The file (.safetensors) holds `mean` and `std`, (N, h, w, C), and in its metadata the length, size, set, seed, reserved and things of the data
    set that was encoded. Item: {"image": a sample of the posterior, (h, w, C) float32, unscaled; "caption": str}.
    """

    def __init__(self, path: str, *, empty_caption: float = 0.1):
        if not Path(path).is_file():
            raise FileNotFoundError(f"latents: no file {path} (looked from {Path.cwd()}); scripts/encode_characters.py writes it")
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            self.mean, self.std = file.get_tensor("mean"), file.get_tensor("std")
        self.source = CharacterDataset(
            int(about["length"]), size=int(about["size"]), set=about["set"], seed=int(about["seed"]), reserved=about["reserved"] == "True",
            empty_caption=empty_caption, things=float(about["things"]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        mean, std = self.mean[index].float(), self.std[index].float()
        return {"image": (mean + std * torch.randn_like(mean)).numpy(), "caption": self.source.caption(index)}


def training_pictures(character: Character, folder: Path, *, count: int = 5, size: int = WORLD, seed: int = 0) -> list[Path]:
    """Draws `count` pictures of a character into `folder` (made if absent) as 0.png, 1.png …; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(count):
        path = folder / f"{k}.png"
        render(character, np.random.default_rng((seed, k)), size=size).save(path)
        paths.append(path)
    return paths
