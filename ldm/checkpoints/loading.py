"""Named tensors into a module, strictly: what may be missing is named by who loads, everything else is an error that lists it."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ldm.checkpoints.keys import Family, family, is_optional, listing, renamed, starts_with, under
from ldm.checkpoints.reading import read_state_dict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What came of a loading."""

    loaded: int                                               # tensors that found their place
    missed: list[str] = field(default_factory=list)           # of the module, left as initialised
    unexpected: list[str] = field(default_factory=list)       # of the file, without a place in the module

    def summary(self) -> str:
        """One line for a log."""
        parts = [f"{self.loaded} tensors"]
        if self.missed:
            parts.append(f"{len(self.missed)} left as initialised ({listing(self.missed, 3)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} not used ({listing(self.unexpected, 3)})")
        return ", ".join(parts)


def load_weights(module: nn.Module, path: str | Path, *, ignore_prefixes: Sequence[str] = (), may_miss: Sequence[str] = (),
                 may_be_unexpected: Sequence[str] = (), only_prefix: str | None = None, trust_pickle: bool = False) -> LoadReport:
    """Loads a checkpoint into a module, all of it or nothing.

    ignore_prefixes: keys of the file that are left out. may_miss: keys of the module that the file may lack. may_be_unexpected: keys of the
    file that the module may lack. only_prefix: load nothing but what lies below it (the prefix is taken off for a module that does not use it).
    Raises FileNotFoundError or ValueError: no checkpoint, shapes that differ, keys that are missing or unexpected without leave.
    """
    tensors = read_state_dict(path, trust_pickle=trust_pickle)
    return load_tensors(module, tensors, source=str(path), ignore_prefixes=ignore_prefixes, may_miss=may_miss,
                        may_be_unexpected=may_be_unexpected, only_prefix=only_prefix)


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, ignore_prefixes: Sequence[str] = (), may_miss: Sequence[str] = (),
                 may_be_unexpected: Sequence[str] = (), only_prefix: str | None = None) -> LoadReport:
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
    module.load_state_dict({key: value for key, value in given.items() if key in own}, strict=False)
    report = LoadReport(len(given) - len(unexpected), missed, unexpected)
    logger.info("loaded %s: %s", source, report.summary())
    return report


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
        faults.append(f"{len(missed)} keys are missing: {listing(missed)}")
    if unexpected:
        faults.append(f"{len(unexpected)} keys are unknown to the model: {listing(unexpected)}")
    return f"{source}: does not fit the model that the config builds ({'; '.join(faults)}). Nothing was loaded."


def advice(have: Family) -> str:
    """Which yaml fits a file of this kind."""
    if have.config is not None:
        return f"; the file fits {have.config}"
    if have.name == "Stable Diffusion 2":
        return "; no yaml here builds that, take a checkpoint of Stable Diffusion 1 (v1-4, v1-5)"
    if have.name.startswith("low-rank adapters"):
        return "; merge them into the base that they were trained on (scripts/export_weights.py), and take the result"
    return "; take the yaml that this checkpoint was trained with"
