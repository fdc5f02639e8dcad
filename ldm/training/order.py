"""Which example comes when, and with which chance: a pure function of the seed and of the number of batches already trained on.

Every example is drawn under its own seed, so the numbers do not depend on the workers, the training's own chance is not touched by loading,
and a resumed run goes on in the middle of an epoch with the very example that was next.
"""
from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ldm.training.random_state import isolated


class SeededIndex(NamedTuple):
    """Which example to load, and the seed of its own draws (caption, flip)."""

    index: int
    seed: int


class SeededDataset(Dataset):
    """Loads each example under the seed that came with its index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: SeededIndex) -> Any:
        with isolated():
            random.seed(place.seed)
            np.random.seed(place.seed)
            torch.random.default_generator.manual_seed(place.seed)
            return self.dataset[place.index]


class EpochSampler(Sampler[SeededIndex]):
    """The order of an epoch, from the batch on which training stands.

    length: examples of the data set; seed: of all epochs; batches_done: batches trained on since the start of the run, all epochs;
    batches_per_epoch: as the loop counts them. With several processes each takes every `replicas`-th example, padded so that all get as many.
    """

    def __init__(self, length: int, seed: int, batch_size: int, *, shuffle: bool, batches_done: Callable[[], int] = lambda: 0,
                 batches_per_epoch: int | None = None, rank: int = 0, replicas: int = 1):
        self.length, self.seed, self.batch_size, self.shuffle = length, seed, batch_size, shuffle
        self.rank, self.replicas = rank, replicas
        self.share = math.ceil(length / replicas)
        self.batches_done = batches_done
        self.batches_per_epoch = batches_per_epoch or math.ceil(self.share / batch_size)

    def __len__(self) -> int:
        return self.share

    def __iter__(self) -> Iterator[SeededIndex]:
        epoch, batch = divmod(self.batches_done(), self.batches_per_epoch)
        yield from self.epoch(epoch)[batch * self.batch_size :]

    def epoch(self, number: int) -> list[SeededIndex]:
        """All examples of one epoch that this process sees, in order."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        seeds = torch.randint(2**32, (self.length,), generator=generator)
        padded = torch.arange(self.share * self.replicas) % max(self.length, 1)
        mine = padded[self.rank :: self.replicas]
        return [SeededIndex(*pair) for pair in zip(order[mine].tolist(), seeds[mine].tolist(), strict=True)]
