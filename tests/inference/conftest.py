"""The commands that draw, run in this process; small models with their configs, saved once."""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from ldm.checkpoints import save_weights
from ldm.checkpoints.embeddings import write_embeddings
from ldm.evaluation.command import run_command
from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.evaluation import small_characters
from tests.golden.case import REPOSITORY

STAR = 265  # CLIP's token of "*"


def script_of(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Small(NamedTuple):
    """A text-to-image model of 64-pixel pictures and 20 steps, on disk and in memory."""

    config: Path
    checkpoint: Path
    model: LatentDiffusion

    @property
    def words(self) -> list[str]:
        """What a command is told of it."""
        return ["--config", str(self.config), "--ckpt", str(self.checkpoint), "--device", "cpu"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(small_characters.config()))
    return Small(config, small_characters.write_base(folder / "model.safetensors"), small_characters.random_model())


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four vectors for "*", of the small model's width; its config says one."""
    path = tmp_path_factory.mktemp("words") / "embeddings.pt"
    write_embeddings(path, {"*": torch.tensor(STAR)}, {"*": torch.randn(4, 32, generator=torch.Generator().manual_seed(1))})
    return path


@pytest.fixture(scope="session")
def checkpoint_with_words(small: Small, words_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's weights and the words of `words_file` in one checkpoint, as a run saves them."""
    vectors = torch.load(words_file, weights_only=False)["string_to_param"]["*"].detach()
    state = {key: value for key, value in small.model.state_dict().items() if not key.startswith("embedding_manager.")}
    words = {"embedding_manager.string_to_param_dict.*": vectors, "embedding_manager.initial_embeddings.*": torch.zeros_like(vectors)}
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    save_weights(path, {**state, **words})
    return path


@pytest.fixture
def command(monkeypatch, capfd, caplog):
    """Runs a script in this process: its exit code, and what it said on both streams and in its log."""

    def run(path: str, *words: object) -> tuple[int, str]:
        module = script_of(path)
        monkeypatch.setattr(sys, "argv", [path, *map(str, words)])
        caplog.clear()
        code = run_command(module.main, module.parser())
        said = capfd.readouterr()
        return code, "\n".join([said.err, said.out, *caplog.messages])

    return run
