"""The bench on which a study measures: the frozen model, the classifiers and the points of measurement, made once for all its rows."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from ldm.checkpoints import save_weights
from ldm.data.characters import Character
from ldm.evaluation.attributes import AttributeClassifier, load_classifier
from ldm.evaluation.comparison import FRESH_SEED, Counts, DriftPoints, Plan, concept_captions, drift_points, fresh_renders, sample_by_prompt
from ldm.evaluation.metrics import Draws, Reading, noised_draws, picture_draws, predicted_noise
from ldm.evaluation.models import DECIDE_ABOUT_SAMPLES, load_frozen
from ldm.evaluation.nats import Chains, chains_by_prompt
from ldm.evaluation.sampling import Sampling
from ldm.evaluation.tuning import file_hash
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.regularization.drift import FrozenChain

SEEDS_APART = 10_000  # samples of seed s are drawn with s · SEEDS_APART, s · SEEDS_APART + 1, …


class Bench:
    """Loads what all rows need. runs: the folder where draws on the frozen model are kept."""

    def __init__(self, config: DictConfig, base: Path, classifiers: Path, *, sampling: Sampling, counts: Counts, runs: Path, device: torch.device):
        self.config, self.base, self.sampling, self.counts, self.runs, self.device = config, base, sampling, counts, runs, device
        self.classifier: AttributeClassifier = load_classifier(classifiers)
        self.frozen: LatentDiffusion = load_frozen(config, base, device=device)
        self._loss_draws: dict[Character, Draws] = {}
        self._frozen_readings: dict[int, dict[str, list[Reading]]] = {}

    def _place(self, name: str, prompts: Sequence[str], *decisive: object) -> Path:
        """Of what is kept of the frozen model: how runs are tuned does not matter, so a config with another rate finds it again."""
        frozen = [self.config.model.params.get(key) for key in DECIDE_ABOUT_SAMPLES]
        key = hashlib.sha256("\n".join([*prompts, *map(str, (file_hash(self.base), *decisive, *frozen))]).encode()).hexdigest()[:16]
        return self.runs / f"{name}-{key}.safetensors"

    def kept_points(self, name: str, prompts: Sequence[str], seed: int) -> DriftPoints:
        """Draws on a group of prompts, from disk if they were made before, and the frozen model's answers there."""
        path = self._place(f"draws-{name}", prompts, self.sampling.steps, self.counts.drift_draws, seed)
        if path.is_file():
            z_0 = load_file(path)["z_0"]
            of_draw = [prompt for prompt in prompts for _ in range(self.counts.drift_draws)]
            draws = noised_draws(of_draw, z_0, timesteps=self.frozen.num_timesteps, seed=seed)
            return DriftPoints(draws, predicted_noise(self.frozen, draws, batch_size=self.sampling.batch_size))
        plan = Plan((), (), (), self.sampling, self.counts)
        points = drift_points(self.frozen, prompts, plan, seed=seed, progress=f"frozen: draws on {name} prompts")
        assert points is not None, "read_prompts returns at least one"
        save_weights(path, {"z_0": points.draws.z_0})
        return points

    def kept_chains(self, prompts: Sequence[str], *, trajectories: int, draws: int) -> Chains:
        """The frozen model's sampling chains for drift in nats, from disk if they were made before."""
        path = self._place("chains", prompts, trajectories, draws)
        if path.is_file():
            tensors = load_file(path)
            return {prompt: FrozenChain(*(tensors[f"{k}.{name}"] for name in FrozenChain._fields[:-1]), draws) for k, prompt in enumerate(prompts)}
        chains = chains_by_prompt(
            self.frozen, prompts, trajectories=trajectories, draws=draws, batch_size=self.sampling.batch_size, progress="frozen: chains"
        )  # fmt: skip
        save_weights(path, {f"{k}.{name}": getattr(chain, name) for k, chain in enumerate(chains.values()) for name in FrozenChain._fields[:-1]})
        return chains

    def loss_draws(self, character: Character) -> Draws:
        """Points for the denoising loss on fresh pictures of a character."""
        if character not in self._loss_draws:
            pictures, captions = fresh_renders(character), concept_captions("*")
            self._loss_draws[character] = picture_draws(self.frozen, pictures, captions, self.counts.loss_draws, seed=FRESH_SEED)
        return self._loss_draws[character]

    def readings(self, network: LatentDiffusion, prompts: Sequence[str], seed: int, progress: str | None) -> dict[str, list[Reading]]:
        """Prompt → what the classifiers read in its samples; the frozen model is asked once a seed."""
        frozen = network is self.frozen
        if frozen and seed in self._frozen_readings:
            return self._frozen_readings[seed]
        drawn = sample_by_prompt(network, dict.fromkeys(prompts, self.counts.samples), self.sampling, seed * SEEDS_APART, progress=progress)
        read = {prompt: self.classifier.read(pictures) for prompt, pictures in drawn.items()}
        if frozen:
            self._frozen_readings[seed] = read
        return read
