"""Reads the attributes of a picture of the drawn world: which body, colour, eyes … does it show?

A small convolutional network with one head an attribute, trained on fresh renders only, never on reconstructions or samples.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ldm.checkpoints import load_weights
from ldm.data.characters import VALUES, Scene, random_scene, render

logger = logging.getLogger(__name__)

DEFAULT_WEIGHTS = Path("assets/characters/classifiers.safetensors")


class AttributeClassifier(nn.Module):
    """Logits for each attribute of `ldm.data.characters.VALUES`.

    Input: (B, 3, 64, 64) in [-1, 1]. Output: attribute → (B, number of its values).
    """

    def __init__(self, width: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 3 * width, 4 * width):
            layers += [nn.Conv2d(channels, out, 4, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            channels = out
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 4 * 4, 8 * width), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, len(values)) for name, values in VALUES.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.trunk(pictures)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor, batch_size: int = 64) -> list[dict[str, str | None]]:
        """The likeliest value of each attribute, a dictionary a picture.

        What a picture cannot have is None: a thing has no eyes, and only a hat has a hat_colour.
        """
        device = next(self.parameters()).device
        found = []
        for chunk in pictures.split(batch_size):
            logits = self(chunk.to(device).float())
            columns = {name: [VALUES[name][i] for i in logits[name].argmax(dim=1).tolist()] for name in VALUES}
            found += [_possible({name: columns[name][k] for name in VALUES}) for k in range(len(chunk))]
        return found


def _possible(values: dict[str, str]) -> dict[str, str | None]:
    possible: dict[str, str | None] = dict(values)
    if values["kind"] != "character":
        possible.update(dict.fromkeys(("body", "eyes", "mouth", "headwear", "hat_colour", "accessory")))
    elif values["headwear"] != "hat":
        possible["hat_colour"] = None
    return possible


def load_classifier(path: Path = DEFAULT_WEIGHTS) -> AttributeClassifier:
    """The shipped classifier, in fp32 and eval mode."""
    classifier = AttributeClassifier()
    load_weights(classifier, path)
    return classifier.float().eval().requires_grad_(False)


def targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Attribute → (B,) index of its value, −100 (ignored by cross-entropy) where a scene has none."""
    return {
        name: torch.tensor([values.index(value) if (value := scene.attributes()[name]) is not None else -100 for scene in scenes])
        for name, values in VALUES.items()
    }


def rendered_batch(rng: np.random.Generator, size: int) -> tuple[Tensor, list[Scene]]:
    """Fresh renders with every value there is: (size, 3, 64, 64) in [-1, 1], and what they show."""
    scenes = [random_scene(rng, reserved=True) for _ in range(size)]
    pictures = np.stack([np.asarray(render(scene, rng), dtype=np.float32) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1.0, scenes


def train_classifier(*, steps: int = 700, batch_size: int = 64, learning_rate: float = 2e-3, seed: int = 0) -> AttributeClassifier:
    """A classifier trained on fresh renders; pictures are softened and noised at random, so that it reads shapes and not single pixels."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 1))
    classifier = AttributeClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for _ in tqdm(range(steps), desc="attribute classifier"):
        pictures, scenes = rendered_batch(rng, batch_size)
        loss = torch.stack([F.cross_entropy(logits, targets_of) for logits, targets_of in _pairs(classifier(_softened(pictures, rng)), targets(scenes))]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return classifier.eval()


def _pairs(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(logits[name], wanted[name]) for name in VALUES if (wanted[name] >= 0).any()]


def _softened(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    if rng.random() < 0.5:
        small = int(rng.integers(32, 60))
        pictures = F.interpolate(F.interpolate(pictures, size=small, mode="bilinear", antialias=True), size=64, mode="bilinear")
    return pictures + float(rng.uniform(0.0, 0.1)) * torch.randn_like(pictures)


def accuracy(read: Sequence[dict[str, str | None]], scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """Attribute → value → share of the scenes with that value in which it was read; under "all" the share over all values.

    An attribute that none of the scenes has is left out.
    """
    result: dict[str, dict[str, float]] = {}
    for name in VALUES:
        hits: dict[str, list[bool]] = {}
        for found, scene in zip(read, scenes, strict=True):
            wanted = scene.attributes()[name]
            if wanted is not None:
                hits.setdefault(wanted, []).append(found[name] == wanted)
        every = [right for rights in hits.values() for right in rights]
        if every:
            result[name] = {value: sum(rights) / len(rights) for value, rights in hits.items()} | {"all": sum(every) / len(every)}
    return result
