"""What the full study is asked to do: its stages, its files, and the jobs that become rows."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.data.characters import NEW_CHARACTERS, Character
from ldm.evaluation.comparison import READ_PROMPTS, Counts
from ldm.evaluation.full_study.arms import CONFIGS, Arm
from ldm.evaluation.models import sampling_of
from ldm.evaluation.prompts import read_prompts
from ldm.evaluation.results_file import Key, concept_name, settings_of_study
from ldm.evaluation.tuning import file_hash
from ldm.regularization.bank import hash_facts
from ldm.training.compose import merge, read_config

LISTS = ("class", "heldout", "in_pattern", "off_pattern", "leak_in_pattern", "leak_off_pattern", "nats")
DRIFT_LISTS = LISTS[:4]


@dataclass(frozen=True)
class Stage:
    """One pass over characters and seeds. split: of `NEW_CHARACTERS`; steps: of sampling; trajectories: of drift in nats, 0 for none."""

    name: str
    split: str
    characters: tuple[int, ...]
    seeds: tuple[int, ...]
    counts: Counts
    steps: int
    trajectories: int = 0

    def character(self, number: int) -> Character:
        """Raises ValueError for a number that the split does not have."""
        known = NEW_CHARACTERS[self.split]
        if not 0 <= number < len(known):
            raise ValueError(f"--{self.name}-characters {number}: split {self.split} has 0 … {len(known) - 1}")
        return known[number]


@dataclass(frozen=True)
class Job:
    """What becomes a row."""

    stage: Stage
    number: int
    seed: int
    arm: Arm

    @property
    def character(self) -> Character:
        return self.stage.character(self.number)

    @property
    def key(self) -> Key:
        return concept_name(self.character), self.seed, self.arm.name

    def run_name(self, arm: Arm) -> str:
        """Of the training run of an arm for this character and seed."""
        return f"{self.stage.split}-{self.number}-seed{self.seed}-{arm.name.replace('/', '-')}"


@dataclass(frozen=True)
class PromptLists:
    """The lists of a folder by their names in `LISTS`."""

    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> PromptLists:
        """Raises FileNotFoundError or ValueError for a list that is not there or empty."""
        return cls({name: [prompt.text for prompt in read_prompts(folder / f"{name}.txt")] for name in LISTS})

    @property
    def for_drift(self) -> list[str]:
        return list(dict.fromkeys(text for name in DRIFT_LISTS for text in self.texts[name]))

    @property
    def for_samples(self) -> list[str]:
        return list(dict.fromkeys([*READ_PROMPTS, *self.texts["leak_in_pattern"], *self.texts["leak_off_pattern"]]))


SCREEN = Stage("screen", "dev", (0, 2), (0,), Counts(samples=16, drift_draws=16, loss_draws=256), steps=25)
FINALS = Stage("finals", "later", (0, 1, 2, 3), (0, 1, 2), Counts(samples=64, drift_draws=64, loss_draws=256), steps=50, trajectories=32)
HOURS = 10.0


@dataclass(frozen=True)
class FullStudy:
    """What is studied, with which files.

    workers: rows made at a time, each by a process of its own. hours: above which the screen is thinned. only: patterns of arms' names, for a trial;
    (frozen and unregularised are always there). train_steps: of each run's phases, for a trial; None for the configs' own. keep_runs: run folders
    stay once their rows are there (a hundred megabytes each).
    """

    out: Path
    runs: Path
    base: Path
    classifiers: Path
    prompts: Path
    screen: Stage = SCREEN
    finals: Stage = FINALS
    configs: dict[tuple[bool, int], Path] = field(default_factory=lambda: dict(CONFIGS))
    workers: int = 2
    hours: float = HOURS
    only: tuple[str, ...] = ()
    train_steps: int | None = None
    cost_rounds: int = 12
    batch_size: int | None = None
    device: str | None = None
    keep_runs: bool = False
    fresh: bool = False

    def config_of(self, arm: Arm) -> Path:
        return self.configs[arm.ours, arm.phases]

    def pictures(self, job: Job) -> Path:
        return self.runs / "pictures" / f"{job.stage.split}-{job.number}"

    def settings(self, stage: Stage) -> dict[str, str]:
        """All that decides about a row of a stage beside character, seed and what the arm is."""
        prompts = PromptLists.read(self.prompts)
        names = {(False, 1): "plain", (True, 1): "regularized", (False, 2): "plain_two_phase", (True, 2): "regularized_two_phase"}
        shared = settings_of_study(
            base_hash=file_hash(self.base),
            config_hashes={names[which]: hash_facts(_without_term(path)) for which, path in self.configs.items()},
            classifier_hash=file_hash(self.classifiers),
            sampling=sampling_of(read_config(self.configs[False, 1]), steps=stage.steps, batch_size=self.batch_size),
            counts=stage.counts,
            prompts=[text for texts in prompts.texts.values() for text in texts],
        )
        steps = "as the configs say" if self.train_steps is None else f"{self.train_steps} a phase"
        return {**shared, "training_steps": steps, "trajectories": str(stage.trajectories)}

    def digest(self, arm: Arm) -> str:
        """SHA-256 of what sets an arm's runs apart from others with these settings: of ours the whole term, of a rival what the training command is
        told. A row with another one was measured of another arm. Raises KeyError for an arm that no longer is one."""
        told = arm.overrides()
        return hash_facts(OmegaConf.to_container(merge([self.config_of(arm)], told).model.params.regularization_config) if arm.ours else told)

    def wanted(self, arms: Iterable[Arm]) -> list[Arm]:
        """Those that the patterns let through."""
        always = ("frozen", "unregularized")
        return [arm for arm in arms if not self.only or arm.method in always or any(fnmatchcase(arm.name, pattern) for pattern in self.only)]


def _without_term(path: Path) -> dict[str, Any]:
    """A config but for its term, which belongs to the arms."""
    content = OmegaConf.to_container(read_config(path))
    content["model"]["params"].pop("regularization_config", None)
    return content
