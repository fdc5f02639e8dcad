"""What the tests of runs share: the toy as a target, and a command that runs in this process."""
from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ldm.training.run import main
from tests.training import toy


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    """The toys are targets during a test, and what a run changes in the process is put back."""
    toy.install()
    toy.ToyData.seen.clear()
    levels = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric")}
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    sys.modules.pop(toy.MODULE, None)


class Ran(NamedTuple):
    """What a command left."""

    code: int
    out: str                       # what it said, on both streams
    folder: Path | None            # of the run, None if it made none

    @property
    def last(self) -> dict:
        return torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def train(tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> Callable[..., Ran]:
    """Runs the training command on a config (a dictionary) with further words, in this process."""
    count = iter(range(1000))

    def run(plain: dict | None, *words: str) -> Ran:
        caplog.clear()
        caplog.set_level(logging.INFO)
        logs = tmp_path / f"logs{next(count)}"
        base = ["-b", toy.write(tmp_path / f"toy{next(count)}.yaml", plain), "-l", str(logs)] if plain is not None else []
        code = main([*base, "-t", *words])
        captured = capfd.readouterr()
        made = sorted(logs.iterdir()) if logs.exists() else []
        return Ran(code, captured.out + captured.err + caplog.text, made[0] if made else None)

    return run
