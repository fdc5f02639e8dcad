"""Named tensors into a module, strictly: what may be missing is named by who loads, everything else is an error that lists it.

A module that was built without weights (`construction`) takes the file's own memory: of a mapped file its pages, which are read when they are
first used and copied when they are first written (MAP_PRIVATE), so the file never changes. Such a file may be replaced by another one of its
name, as every writer here does; one that is overwritten or cut in place changes under the model that is mapped on it.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoints.construction import fill
from ldm.checkpoints.keys import Family, by_group, counted, family, is_optional, listing, renamed, starts_with, under
from ldm.checkpoints.reading import read_state_dict

logger = logging.getLogger(__name__)

# What becomes of a group of keys that a model has and its file has not.
OF_MISSED = {"model_ema": "averages begin at the weights loaded", "embedding_manager": "words begin at their init words", "": "computed from the config"}
# Of a group that the file has and the model has no place for.
OF_UNEXPECTED = {
    "model_ema": "the config keeps no averages (use_ema: false)",
    "embedding_manager": "the words of the file, for a config that has these placeholders (or --embedding_manager_ckpt)",
}


@dataclass(frozen=True)
class LoadReport:
    """What came of a loading."""

    loaded: int                                               # tensors that found their place
    missed: list[str] = field(default_factory=list)           # of the module, left as initialised
    unexpected: list[str] = field(default_factory=list)       # of the file, without a place in the module

    def summary(self) -> str:
        """One line for a log: by group, with what becomes of it."""
        parts = [f"{self.loaded} tensors"]
        if self.missed:
            parts.append(f"{len(self.missed)} left as initialised ({_fates(self.missed, OF_MISSED)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} not used ({_fates(self.unexpected, OF_UNEXPECTED)})")
        return ", ".join(parts)


def _fates(keys: Iterable[str], known: Mapping[str, str]) -> str:
    groups = by_group(keys)
    return "; ".join(counted(name, members, 3) + (f": {known[name]}" if name in known else "") for name, members in groups.items())


def load_weights(module: nn.Module, path: str | Path, *, ignore_prefixes: Sequence[str] = (), may_miss: Sequence[str] = (),
                 may_be_unexpected: Sequence[str] = (), only_prefix: str | None = None, computed: Sequence[str] = (),
                 trust_pickle: bool = False) -> LoadReport:
    """Loads a checkpoint into a module, all of it or nothing.

    ignore_prefixes: keys of the file that are left out. may_miss: keys of the module that the file may lack. may_be_unexpected: keys of the
    file that the module may lack. only_prefix: load nothing but what lies below it (the prefix is taken off for a module that does not use it).
    computed: keys of tensors that the module has computed, which a file that holds no more than their rounded values does not make coarser.
    Raises FileNotFoundError or ValueError: no checkpoint, shapes that differ, keys that are missing or unexpected without leave.
    """
    tensors = read_state_dict(path, trust_pickle=trust_pickle)
    return load_tensors(module, tensors, source=str(path), ignore_prefixes=ignore_prefixes, may_miss=may_miss,
                        may_be_unexpected=may_be_unexpected, only_prefix=only_prefix, computed=computed)


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, ignore_prefixes: Sequence[str] = (), may_miss: Sequence[str] = (),
                 may_be_unexpected: Sequence[str] = (), only_prefix: str | None = None, computed: Sequence[str] = ()) -> LoadReport:
    """`load_weights` for tensors already read; `source` names them in messages."""
    own = module.state_dict()
    given = {key: value for key, value in tensors.items() if not (ignore_prefixes and starts_with(key, ignore_prefixes))}
    if only_prefix is not None:
        given = under(given, only_prefix, own)
        if not given:
            raise ValueError(f"{source}: no key begins with {only_prefix}")
        # the rest of the module is not what this loading is about
        may_miss = (*may_miss, *(key for key in own if not key.startswith(only_prefix))) if any(key.startswith(only_prefix) for key in own) else may_miss
    given = renamed(given, own)
    unexpected = [key for key in given if key not in own]
    missed = [key for key in own if key not in given]
    misshapen = [key for key in given if key in own and own[key].shape != given[key].shape]
    refused_unexpected = [key for key in unexpected if not is_optional(key) and not starts_with(key, may_be_unexpected)]
    refused_missed = [key for key in missed if not is_optional(key) and not starts_with(key, may_miss)]
    if misshapen or refused_missed or refused_unexpected:
        raise ValueError(misfit(source, own, given, misshapen, refused_missed, refused_unexpected))
    rounded = {key for key in computed if key in given and key in own and is_rounded(given[key], own[key])}
    fill(module, {key: value for key, value in given.items() if key in own and key not in rounded})
    report = LoadReport(len(given) - len(unexpected), missed, unexpected)
    logger.info("loaded %s: %s", source, report.summary())
    return report


def is_rounded(given: Tensor, own: Tensor) -> bool:
    """Whether `given` is `own` in a coarser format."""
    coarser = given.is_floating_point() and given.element_size() < own.element_size()
    return coarser and torch.allclose(given.float(), own.to(given.dtype).float(), rtol=1e-2, atol=1e-3)


def misfit(source: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor], misshapen: Sequence[str], missed: Sequence[str],
           unexpected: Sequence[str]) -> str:
    """Why these tensors do not fit this module, in one sentence where their kinds differ."""
    have, want = (family({key: value.shape for key, value in tensors.items()}) for tensors in (given, own))
    if (have.name, have.width) != (want.name, want.width):
        return f"{source}: holds {have}, but the config builds {want}{advice(have)}. Nothing was loaded."
    faults = []
    if misshapen:
        shapes = [f"{key} is {list(given[key].shape)} in the file and {list(own[key].shape)} in the model" for key in misshapen]
        faults.append(f"{len(misshapen)} shapes differ: {listing(shapes, 3)}")
    if missed:
        faults.append(f"{len(missed)} keys are missing: {grouped(missed)}")
    if unexpected:
        faults.append(f"{len(unexpected)} keys are unknown to the model: {grouped(unexpected)}")
    return f"{source}: does not fit the model that the config builds ({'; '.join(faults)}). Nothing was loaded."


def grouped(keys: Iterable[str]) -> str:
    """The keys by the part of the model that they belong to; where there is but one part, as they are."""
    groups = by_group(keys)
    return "; ".join(counted(name, members) for name, members in groups.items()) if len(groups) > 1 else listing(next(iter(groups.values())))


def advice(have: Family) -> str:
    """Which yaml fits a file of this kind."""
    if have.config is not None:
        return f"; the file fits {have.config}"
    if have.name == "Stable Diffusion 2":
        return "; no yaml here builds that, take a checkpoint of Stable Diffusion 1 (v1-4, v1-5)"
    if have.name.startswith("low-rank adapters"):
        return "; merge them into the base that they were trained on (scripts/export_weights.py), and take the result"
    return "; take the yaml that this checkpoint was trained with"
