"""A model and a data set small enough that a whole run takes a fraction of a second; yaml files know them as `ldm.toy_for_tests.…`."""
from __future__ import annotations

import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset

MODULE = "ldm.toy_for_tests"


class Toy(pl.LightningModule):
    """Regression with dropout and noise: two runs agree only if all chance agrees."""

    def __init__(self, width: int = 8, monitor: str | None = "val/loss", fail_at: int | None = None, ckpt_path: str | None = None,
                 personalization_config: Any = None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1))
        self.fail_at = fail_at
        if monitor is not None:
            self.monitor = monitor

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        noisy = batch["x"] + 0.1 * torch.randn_like(batch["x"]) + random.random() + np.random.rand()
        return ((self.net(noisy) - batch["y"]) ** 2).mean()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.fail_at is not None and self.global_step == self.fail_at:
            raise RuntimeError("the toy breaks here")
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["x"]))
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch["x"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, slowing), "interval": "step"}}

    def log_images(self, batch: dict[str, torch.Tensor], split: str = "train", **_: Any) -> dict[str, torch.Tensor]:
        return {"inputs": torch.rand(6, 3, 8, 8) * 2 - 1}


def slowing(step: int) -> float:
    return 1.0 / (1.0 + 0.05 * step)


class ToyData(Dataset):
    """Points whose noise is drawn from all three sources of chance."""

    seen: list[int] = []

    def __init__(self, data_root: str | None = None, examples: int = 20, placeholder_token: str = "*"):
        self.examples = examples

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ToyData.seen.append(index)
        x = torch.tensor([index / self.examples, random.random(), float(np.random.rand())]) + 0.1 * torch.rand(3)
        return {"x": x, "y": x.sum(0, keepdim=True)}


def install() -> None:
    """Makes the toys resolvable as targets in this process."""
    module = types.ModuleType(MODULE)
    for thing in (Toy, ToyData):
        setattr(module, thing.__name__, thing)
    sys.modules[MODULE] = module


def config(**changes: Any) -> dict[str, Any]:
    """A whole config of the toy; `changes` are dotted keys with `__` for the dots."""
    plain: dict[str, Any] = {
        "model": {"base_learning_rate": 0.01, "target": f"{MODULE}.Toy", "params": {}},
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {
                "batch_size": 3,
                "num_workers": 0,
                "train": {"target": f"{MODULE}.ToyData", "params": {}},
                "validation": {"target": f"{MODULE}.ToyData", "params": {"examples": 4}},
            },
        },
        "lightning": {
            "modelcheckpoint": {"params": {"every_n_train_steps": 5}},
            "callbacks": {"image_logger": {"params": {"disabled": True}}},
            "trainer": {"max_steps": 20},
        },
    }
    for key, value in changes.items():
        place = plain
        *path, last = key.split("__")
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return plain


def write(path: Path, plain: dict[str, Any]) -> str:
    """The config as a yaml file; returns its path."""
    path.write_text(yaml.safe_dump(plain))
    return str(path)
