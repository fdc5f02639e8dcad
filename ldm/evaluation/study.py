"""The study on new characters: each tuned with and without the regulariser by the shipped configs, for several seeds, all measured alike.

Every row is written as soon as it is measured, finished training runs are found again: a stopped study goes on where it was.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from ldm.data.characters import NEW_CHARACTERS, Character, training_pictures
from ldm.evaluation.bench import Bench
from ldm.evaluation.comparison import DRIFT_SEED, READ_PROMPTS, Counts, Points, network_numbers
from ldm.evaluation.metrics import Draws, predicted_noise
from ldm.evaluation.models import chosen_device, load_run, open_run, sampling_of
from ldm.evaluation.prompts import read_prompts
from ldm.evaluation.results_file import ResultsFile, concept_name, make_row, settings_of_study
from ldm.evaluation.tuning import CHARACTER_CONFIGS, file_hash, tune
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.compose import read_config

MODELS = ("frozen", *CHARACTER_CONFIGS)
RUN_START_SECONDS = 30  # of a training run before its first step, and after its last


@dataclass(frozen=True)
class Study:
    """What is studied, and with which files. steps, guidance_scale, batch_size, device: None for what is shipped."""

    split: str
    characters: tuple[int, ...]
    seeds: tuple[int, ...]
    out: Path
    runs: Path
    base: Path
    classifiers: Path
    prompts: Path
    counts: Counts = Counts()
    steps: int | None = None
    guidance_scale: float | None = None
    batch_size: int | None = None
    device: str | None = None
    fresh: bool = False

    def characters_by_number(self) -> dict[int, Character]:
        """Raises ValueError for a number that the split does not have."""
        known = NEW_CHARACTERS[self.split]
        wrong = [number for number in self.characters if not 0 <= number < len(known)]
        if wrong:
            raise ValueError(f"--characters {wrong[0]}: split {self.split} has 0 … {len(known) - 1}")
        return {number: known[number] for number in self.characters}


def run_study(study: Study, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the rows that are missing; returns the split's summary.

    Raises ValueError or FileNotFoundError where something is missing, a training run fails, or the file holds rows measured otherwise.
    """
    characters = study.characters_by_number()
    config = read_config(CHARACTER_CONFIGS["unregularized"])
    rows = _Rows(study, config)
    results = ResultsFile(study.out)
    results.read()
    if study.fresh:
        results.forget(study.split)
    results.go_on_with(study.split, rows.settings())
    wanted = [(number, seed, model) for number in characters for seed in study.seeds for model in MODELS]
    missing = [(number, seed, model) for number, seed, model in wanted if not results.has((concept_name(characters[number]), seed, model))]
    say(f"{len(wanted)} rows asked for, {len(wanted) - len(missing)} of them are in {study.out}")
    if missing:
        rows.prepare()
        say(f"about {rows.estimate_minutes(missing):.0f} minutes for the other {len(missing)}, by the speed of this machine just now")
        for number, seed, model in tqdm(missing, desc="rows", unit="row"):
            results.add(rows.row(number, characters[number], seed, model))
    return results.summary()[study.split]


class _Rows:
    """How a row of this study is made; what all of them need is made once, by `prepare`."""

    def __init__(self, study: Study, config: DictConfig):
        self.study, self.config = study, config
        self.sampling = sampling_of(config, steps=study.steps, guidance_scale=study.guidance_scale, batch_size=study.batch_size)
        self.prompts = {name: [prompt.text for prompt in read_prompts(study.prompts / f"{name}.txt")] for name in ("class", "heldout")}
        self.device = chosen_device(study.device)

    def settings(self) -> dict[str, str]:
        """All that decides about a row beside character and seed."""
        return settings_of_study(
            base_hash=file_hash(self.study.base),
            config_hashes={role: file_hash(path) for role, path in CHARACTER_CONFIGS.items()},
            classifier_hash=file_hash(self.study.classifiers),
            sampling=self.sampling,
            counts=self.study.counts,
            prompts=[*self.prompts["class"], *self.prompts["heldout"]],
        )

    def prepare(self) -> None:
        """Loads what all rows need; draws on the frozen model are kept on disk."""
        study = self.study
        self.bench = Bench(self.config, study.base, study.classifiers, sampling=self.sampling, counts=study.counts, runs=study.runs, device=self.device)
        self.drift_class = self.bench.kept_points("class", self.prompts["class"], DRIFT_SEED)
        self.drift_heldout = self.bench.kept_points("heldout", self.prompts["heldout"], 2 * DRIFT_SEED)

    def estimate_minutes(self, missing: Sequence[tuple[int, int, str]]) -> float:
        """Minutes for these rows, from the time that one batch takes through the network now."""
        few = self.drift_class.draws
        size = min(self.sampling.batch_size, len(few.t))
        batch = Draws(few.prompts[:size], few.z_0[:size], few.t[:size], few.noise[:size])
        predicted_noise(self.bench.frozen, batch, batch_size=size)
        start = time.perf_counter()
        predicted_noise(self.bench.frozen, batch, batch_size=size)
        a_sample = (time.perf_counter() - start) / size
        guided = 2 if self.sampling.guidance_scale != 1.0 else 1
        sampled = len(READ_PROMPTS) * self.study.counts.samples * self.sampling.steps * guided
        compared = len(self.drift_class.draws.t) + len(self.drift_heldout.draws.t) + self.study.counts.loss_draws
        trained = self.config.lightning.trainer.max_steps * self.config.data.params.batch_size * 5  # forward and backward, first stage, probes
        seconds = 0.0
        for model in MODELS:
            rows = sum(kind == model for _, _, kind in missing)
            if model == "frozen":
                seconds += len({seed for _, seed, kind in missing if kind == model}) * sampled * a_sample + rows * compared * a_sample
            else:
                seconds += rows * ((sampled + compared + trained) * a_sample + RUN_START_SECONDS)
        return seconds / 60

    def row(self, number: int, character: Character, seed: int, model: str) -> dict[str, Any]:
        """Trains where needed, measures."""
        name = "frozen" if model == "frozen" else concept_name(character)
        network = self.bench.frozen if model == "frozen" else self._tuned(number, character, seed, model)
        points = Points(self.drift_class, self.drift_heldout, self.bench.loss_draws(character))
        numbers = network_numbers(network, points, self.sampling.batch_size)
        readings = self.bench.readings(network, READ_PROMPTS, seed, f"{name}, seed {seed}" + ("" if model == "frozen" else f", {model}"))
        return make_row(character, self.study.split, seed, model, network=numbers, readings=readings, counts=self.study.counts)

    def _tuned(self, number: int, character: Character, seed: int, model: str) -> LatentDiffusion:
        pictures = self.study.runs / "pictures" / f"{self.study.split}-{number}"
        training_pictures(character, pictures)
        name = f"{self.study.split}-{number}-seed{seed}-{model}"
        folder = tune(CHARACTER_CONFIGS[model], self.study.base, pictures, logdir=self.study.runs, name=name, seed=seed, reuse=True)
        return load_run(open_run(folder), self.study.base, device=self.device)
