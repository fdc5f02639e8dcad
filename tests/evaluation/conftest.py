"""The commands, run in this process; a small model, and a pair of runs of the training command that started from it: made once, used by many tests."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ldm.checkpoints import save_weights
from ldm.data.characters import training_pictures
from ldm.evaluation.attributes import AttributeClassifier
from ldm.evaluation.command import run_command
from ldm.evaluation.results_file import named_character
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.run import main as training_command
from tests.evaluation import small_characters
from tests.evaluation.scripts import script


@pytest.fixture(scope="session")
def model() -> LatentDiffusion:
    return small_characters.random_model()


class Pair(NamedTuple):
    """Two runs by role, and what they started from."""

    base: Path
    pictures: Path
    runs: dict[str, Path]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    base, pictures = small_characters.write_base(folder / "base.safetensors"), folder / "pictures"
    training_pictures(named_character("dev/0"), pictures, count=2)
    runs = {}
    for role, config in small_characters.write_configs(folder).items():
        logs = folder / role
        words = ["--base", config, "-t", "--actual_resume", base, "--data_root", pictures, "--init_word", "character", "-l", logs, "--no-test"]
        assert training_command([str(word) for word in words]) == 0
        (runs[role],) = logs.iterdir()
    return Pair(base, pictures, runs)


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of classifiers that have learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifiers") / "classifiers.safetensors"
    save_weights(path, AttributeClassifier().state_dict())
    return path


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs a script in this process: its exit code, and what it said on both streams."""

    def run(name: str, *words: object) -> tuple[int, str]:
        module = script(name)
        monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *map(str, words)])
        code = run_command(module.main, module.parser())
        said = capfd.readouterr()
        return code, said.err + "\n" + said.out

    return run
