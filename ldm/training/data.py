"""The data module that yaml files call `main.DataModuleFromConfig`: data sets from `target:`/`params:`, loaders in a reproducible order."""
from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ldm.data.base import Txt2ImgIterableBaseDataset
from ldm.training.order import EpochSampler, SeededDataset
from ldm.util import instantiate_from_config


class WrappedDataset(Dataset):
    """Makes a `Dataset` of anything with a length and items."""

    def __init__(self, dataset: Any):
        self.data = dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, idx: int) -> Any:
        return self.data[idx]


def worker_init_fn(_: int) -> None:
    """For streamed data sets: each worker reads its part of the records and draws with numpy and random from a stream of its own."""
    worker = torch.utils.data.get_worker_info()
    if isinstance(worker.dataset, Txt2ImgIterableBaseDataset) and worker.dataset.valid_ids is not None:
        worker.dataset.sample_ids = worker.dataset.valid_ids[worker.id :: worker.num_workers]
    seed = (torch.initial_seed() + worker.id) % 2**32
    np.random.seed(seed)
    random.seed(seed)


class DataModuleFromConfig(pl.LightningDataModule):
    """Data sets by `target:` under train, validation, test and predict.

    Batches are `{"image": (B, H, W, 3) float32 in [-1, 1], "caption": B strings}` for the data sets of this project.
    """

    def __init__(self, batch_size, train=None, validation=None, test=None, predict=None, wrap=False, num_workers=None,
                 shuffle_test_loader=False, use_worker_init_fn=False, shuffle_val_dataloader=False):
        super().__init__()
        self.batch_size = batch_size
        given = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.dataset_configs = {name: config for name, config in given.items() if config is not None}
        self.num_workers = num_workers if num_workers is not None else batch_size * 2
        self.use_worker_init_fn = use_worker_init_fn
        self.wrap = wrap
        self.data_seed = torch.initial_seed()
        if train is not None:
            self.train_dataloader = self._train_dataloader
        if validation is not None:
            self.val_dataloader = lambda: self._val_dataloader(shuffle=shuffle_val_dataloader)
        if test is not None:
            self.test_dataloader = lambda: self._test_dataloader(shuffle=shuffle_test_loader)
        if predict is not None:
            self.predict_dataloader = self._predict_dataloader

    def prepare_data(self) -> None:
        """Builds each data set once, on one process: what has to be fetched is fetched here."""
        if hasattr(self, "datasets"):
            return
        for config in self.dataset_configs.values():
            instantiate_from_config(config)

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "datasets"):
            return
        self.datasets = {name: instantiate_from_config(config) for name, config in self.dataset_configs.items()}
        if self.wrap:
            self.datasets = {name: WrappedDataset(dataset) for name, dataset in self.datasets.items()}

    def _train_dataloader(self) -> DataLoader:
        return self._loader("train", shuffle=True, follow_training=True)

    def _val_dataloader(self, shuffle: bool = False) -> DataLoader:
        return self._loader("validation", shuffle=shuffle)

    def _test_dataloader(self, shuffle: bool = False) -> DataLoader:
        return self._loader("test", shuffle=shuffle)

    def _predict_dataloader(self, shuffle: bool = False) -> DataLoader:
        return self._loader("predict", shuffle=shuffle)

    def state_dict(self) -> dict[str, Any]:
        return {"data_seed": self.data_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.data_seed = state_dict["data_seed"]

    def _loader(self, name: str, *, shuffle: bool, follow_training: bool = False) -> DataLoader:
        dataset = self.datasets[name]
        common = {"batch_size": self.batch_size, "num_workers": self.num_workers, "generator": torch.Generator().manual_seed(self.data_seed % 2**63)}
        if isinstance(dataset, IterableDataset):
            return DataLoader(dataset, worker_init_fn=worker_init_fn, **common)
        progress = self._progress(len(dataset)) if follow_training else {}
        sampler = EpochSampler(len(dataset), self.data_seed, self.batch_size, shuffle=shuffle, **self._place(), **progress)
        return DataLoader(SeededDataset(dataset), sampler=sampler, worker_init_fn=worker_init_fn if self.use_worker_init_fn else None, **common)

    def _place(self) -> dict[str, int]:
        return {"rank": self.trainer.global_rank, "replicas": self.trainer.world_size} if self.trainer is not None else {}

    def _progress(self, examples: int) -> dict[str, Any]:
        """How far the training loop is, for the sampler; nothing outside a Trainer."""
        if self.trainer is None:
            return {}
        batches = math.ceil(math.ceil(examples / self.trainer.world_size) / self.batch_size)
        limit = self.trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
        loop = self.trainer.fit_loop.epoch_loop
        return {"batches_done": lambda: loop.batch_progress.total.processed, "batches_per_epoch": batches}
