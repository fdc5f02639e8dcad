"""Yaml files and words of the command line become one config.

Later wins: configs saved by a resumed run (sorted) → --base from left to right → dotted words → flags that name a key.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SETS = ("train", "validation", "test", "predict")


def read_config(path: str | Path) -> DictConfig:
    """One yaml file. Raises FileNotFoundError or ValueError, each naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path} (looked from {Path.cwd()})")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"config: {path} is not readable as yaml: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"config: {path} holds a {type(config).__name__}, expected keys such as model: and data:")
    return config


def merge(paths: Iterable[str | Path], dotted: Sequence[str]) -> DictConfig:
    """The yaml files in order, then the `key=value` words."""
    configs = [read_config(path) for path in paths]
    try:
        return OmegaConf.merge(*configs, OmegaConf.from_dotlist(list(dotted)))
    except OmegaConfBaseException as error:
        raise ValueError(f"the configs do not fit together: {' '.join(str(error).split())}") from error


def section(config: DictConfig, dotted: str) -> DictConfig | None:
    """The mapping at a dotted key, None where there is none."""
    found = OmegaConf.select(config, dotted)
    return found if isinstance(found, DictConfig) else None


def write_flags(config: DictConfig, opt: argparse.Namespace) -> None:
    """Puts the flags that stand for a key into that key.

    Raises ValueError where a flag has no section to go to.
    """
    if section(config, "model") is None:
        raise ValueError("the config has no section model: (give one with --base FILE.yaml)")
    params = "model.params"
    if opt.actual_resume:
        OmegaConf.update(config, f"{params}.ckpt_path", opt.actual_resume, force_add=True)
    if opt.placeholder_string or opt.init_word or opt.embedding_manager_ckpt:
        write_concept(config, opt)
    if opt.data_root:
        for name in data_sets(config, "--data_root"):
            OmegaConf.update(config, f"data.params.{name}.params.data_root", opt.data_root, force_add=True)


def write_concept(config: DictConfig, opt: argparse.Namespace) -> None:
    """--placeholder_string, --init_word and --embedding_manager_ckpt go into the personalisation, and into the captions."""
    if section(config, "model.params.personalization_config") is None:
        flag = next(f"--{name}" for name in ("placeholder_string", "init_word", "embedding_manager_ckpt") if getattr(opt, name))
        raise ValueError(f"{flag}: the config has no model.params.personalization_config, so this model learns no word. Add that section or leave the flag out.")
    manager = "model.params.personalization_config.params"
    if opt.embedding_manager_ckpt:
        OmegaConf.update(config, f"{manager}.embedding_manager_ckpt", opt.embedding_manager_ckpt, force_add=True)
    if opt.placeholder_string:
        OmegaConf.update(config, f"{manager}.placeholder_strings", [opt.placeholder_string], force_add=True)
        if section(config, "data.params") is not None:
            for name in data_sets(config, "--placeholder_string"):
                OmegaConf.update(config, f"data.params.{name}.params.placeholder_token", opt.placeholder_string, force_add=True)
    if opt.init_word:
        words = list(OmegaConf.select(config, f"{manager}.initializer_words") or [])
        OmegaConf.update(config, f"{manager}.initializer_words", [opt.init_word, *words[1:]], force_add=True)


def data_sets(config: DictConfig, flag: str) -> list[str]:
    """Names of the data sets of the config (train, validation, …).

    Raises ValueError, naming the flag that needs them, where there are none.
    """
    names = [name for name in SETS if section(config, f"data.params.{name}") is not None]
    if not names:
        raise ValueError(f"{flag}: the config has no data.params.train to write it into")
    return names


def split(config: DictConfig) -> tuple[DictConfig, DictConfig]:
    """(model and data, lightning): the two configs that a run saves."""
    lightning = section(config, "lightning") or OmegaConf.create()
    project = OmegaConf.create({key: value for key, value in config.items() if key != "lightning"})
    return project, lightning


def as_plain(config: Any) -> Any:
    """Dictionaries and lists, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
