"""Yaml files and words of the command line become one config.

Later wins: configs saved by a resumed run (sorted) → --base from left to right → dotted words → flags that name a key.
"""
from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.util import accepted_parameters, get_obj_from_str

SETS = ("train", "validation", "test", "predict")
PERSONALIZATION = "model.params.personalization_config"
CONCEPT_FLAGS = ("placeholder_string", "init_word", "embedding_manager_ckpt")


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
    """The yaml files in order, then the `key=value` words.

    A mapping with another `target:` than the one that stands in its place replaces it whole, for the parameters of one class are none of another's;
    the sections at the top (model, data) keep theirs, since what stands there is most often swapped for its own subclass. A word that ends in
    `.target=`, or that names an entry of a list by its number, sets that key alone.
    """
    merged = OmegaConf.create()
    try:
        for config in map(read_config, paths):
            merged = _laid_over(merged, config)
        for word in dotted:
            merged = _with_word(merged, word)
    except OmegaConfBaseException as error:
        raise ValueError(f"the configs do not fit together: {' '.join(str(error).split())}") from error
    return merged


def _with_word(under: DictConfig, word: str) -> DictConfig:
    given, key = OmegaConf.from_dotlist([word]), word.partition("=")[0]
    try:
        return OmegaConf.merge(under, given) if key.rstrip("]").endswith("target") else _laid_over(under, given)
    except TypeError:  # a list where the word goes on: merging knows no entry of one
        value = OmegaConf.select(given, key)
    try:
        merged = copy.deepcopy(under)
        OmegaConf.update(merged, key, value, merge=False, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ValueError(f"{word}: {' '.join(str(error).split())}; an entry of a list is named by its number, from 0") from error
    return merged


def _laid_over(under: DictConfig, over: DictConfig) -> DictConfig:
    under = copy.deepcopy(under)
    for top in under:
        if isinstance(_written(under, top), DictConfig) and isinstance(_written(over, top), DictConfig):
            _empty_replaced(under[top], over[top])
    return OmegaConf.merge(under, over)


def _empty_replaced(under: DictConfig, over: DictConfig) -> None:
    """Empties the mappings below `under` in whose place `over` has one with another target."""
    for key in list(under):
        new = _written(over, key)
        if not isinstance(new, DictConfig) or OmegaConf.is_missing(under, key) or not isinstance(under[key], DictConfig):
            continue
        if under[key].get("target") is not None and new.get("target") not in (None, under[key].get("target")):
            under[key] = {}
        elif isinstance(_written(under, key), DictConfig):
            _empty_replaced(under[key], new)


def _written(config: DictConfig, key: Any) -> Any:
    """What stands there itself; None for nothing, and for a reference to another key."""
    return None if key not in config or OmegaConf.is_interpolation(config, key) else config[key]


def section(config: DictConfig, dotted: str) -> DictConfig | None:
    """The mapping at a dotted key, None where there is none."""
    found = OmegaConf.select(config, dotted)
    return found if isinstance(found, DictConfig) else None


def write_flags(config: DictConfig, opt: argparse.Namespace) -> None:
    """Puts the flags that stand for a key into that key, and the learnt word into the captions.

    Raises ValueError where a flag has no section to go to.
    """
    files = f" (configs: {', '.join(map(str, opt.base))})" if opt.base else ""
    if section(config, "model") is None:
        raise ValueError(f"the config has no section model{files}; give one with --base FILE.yaml")
    if opt.actual_resume:
        OmegaConf.update(config, "model.params.ckpt_path", opt.actual_resume, force_add=True)
    for flag in CONCEPT_FLAGS:
        if getattr(opt, flag) and section(config, PERSONALIZATION) is None:
            raise ValueError(f"--{flag}: the config has no {PERSONALIZATION}{files}, so this model learns no word. Add that section, or leave the flag out.")
    write_concept(config, opt)
    if opt.data_root:
        names = data_sets(config)
        if not names:
            raise ValueError(f"--data_root: the config has no data.params.train{files} to write it into")
        for name in names:
            OmegaConf.update(config, f"data.params.{name}.params.data_root", opt.data_root, force_add=True)


def write_concept(config: DictConfig, opt: argparse.Namespace) -> None:
    """The concept's flags go into the personalisation; its first placeholder becomes the word of captions that name none themselves."""
    manager = f"{PERSONALIZATION}.params"
    if opt.embedding_manager_ckpt:
        OmegaConf.update(config, f"{manager}.embedding_manager_ckpt", opt.embedding_manager_ckpt, force_add=True)
    if opt.init_word:
        words = list(OmegaConf.select(config, f"{manager}.initializer_words") or [])
        OmegaConf.update(config, f"{manager}.initializer_words", [opt.init_word, *words[1:]], force_add=True)
    if opt.placeholder_string:
        OmegaConf.update(config, f"{manager}.placeholder_strings", [opt.placeholder_string], force_add=True)
    words = OmegaConf.select(config, f"{manager}.placeholder_strings") if section(config, PERSONALIZATION) is not None else None
    for name in data_sets(config) if words else ():
        key = f"data.params.{name}.params.placeholder_token"
        if takes_placeholder(config, name) and (opt.placeholder_string or OmegaConf.select(config, key) is None):
            OmegaConf.update(config, key, words[0], force_add=True)


def takes_placeholder(config: DictConfig, name: str) -> bool:
    """Whether this data set writes captions round a placeholder. An unknown target is reported elsewhere."""
    try:
        accepted = accepted_parameters(get_obj_from_str(str(OmegaConf.select(config, f"data.params.{name}.target"))))
    except (ValueError, ImportError):
        return False
    return accepted is not None and "placeholder_token" in accepted


def data_sets(config: DictConfig) -> list[str]:
    """Names of the data sets of the config (train, validation, …)."""
    return [name for name in SETS if section(config, f"data.params.{name}") is not None]


def split(config: DictConfig) -> tuple[DictConfig, DictConfig]:
    """(model and data, lightning): the two configs that a run saves."""
    lightning = section(config, "lightning") or OmegaConf.create()
    project = OmegaConf.create({key: value for key, value in config.items() if key != "lightning"})
    return project, lightning


def as_plain(config: Any) -> Any:
    """Dictionaries and lists, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
