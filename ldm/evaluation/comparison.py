"""Several models side by side: the frozen one first, then the runs that started from it, all at equal draws.

One model is in memory at a time; what the frozen one gives (draws, its predictions) is kept and used for the others.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.data.characters import Character, render
from ldm.evaluation.attributes import AttributeClassifier
from ldm.evaluation.curves import Curve, read_curves
from ldm.evaluation.metrics import (
    Draws,
    Reading,
    attribute_frequencies,
    background_rate,
    denoising_loss,
    drift,
    hat_rate,
    picture_draws,
    predicted_noise,
    prior_draws,
    reserved_traits,
    trait_rate,
)  # fmt: skip
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.sampling import Sampling, sample_pictures
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.prompts import imagenet_templates_small

logger = logging.getLogger(__name__)

CLASS_PROMPT = "a character"
CONCEPT_PROMPT = "*"
HAT_PROMPT = "* wearing a red hat"
BACKGROUND_PROMPT = "* in a forest"
READ_PROMPTS = (CLASS_PROMPT, CONCEPT_PROMPT, HAT_PROMPT, BACKGROUND_PROMPT)

DRIFT_SEED = 7_000_000  # far from the seeds that samples are drawn with
FRESH_SEED = 880_001  # training pictures are rendered with seed 0


@dataclass(frozen=True)
class Subject:
    """A model to be looked at. role: "frozen", "unregularized", "regularized", or "run" for a run of another kind."""

    name: str
    role: str
    load: Callable[[], LatentDiffusion]
    folder: Path | None = None


@dataclass(frozen=True)
class Counts:
    """How many draws each number rests on."""

    samples: int = 64  # a prompt that classifiers read
    shown: int = 4  # pictures a prompt on the page
    drift_draws: int = 256  # a prompt, each its own (z_0, t, noise)
    loss_draws: int = 256


@dataclass(frozen=True)
class CharacterTest:
    """What can be read from samples where the concept is a character of the drawn world."""

    character: Character
    classifier: AttributeClassifier


@dataclass(frozen=True)
class Plan:
    """What is measured and shown. Seeds of samples: first_seed, first_seed + 1, …

    concept_pictures: (N, 3, H, W) in [-1, 1], for the denoising loss; fresh_pictures: whether they are others than the run was trained on.
    """

    prompts: Sequence[Prompt]
    class_prompts: Sequence[str]
    heldout_prompts: Sequence[str]
    sampling: Sampling = Sampling()
    counts: Counts = Counts()
    first_seed: int = 0
    placeholder: str = "*"
    test: CharacterTest | None = None
    concept_pictures: Tensor | None = None
    fresh_pictures: bool = False


@dataclass(frozen=True)
class DriftPoints:
    """Draws on one group of prompts, and what the frozen model predicts there."""

    draws: Draws
    frozen_noise: Tensor


@dataclass(frozen=True)
class Points:
    """Where models are compared. Groups without prompts, and a loss without pictures, are None."""

    drift_class: DriftPoints | None = None
    drift_heldout: DriftPoints | None = None
    loss: Draws | None = None


@dataclass
class Result:
    """One model's numbers and pictures. samples: prompt → (shown, 3, H, W) in [-1, 1]; readings: prompt → what classifiers read in all samples."""

    name: str
    role: str
    run: str | None
    numbers: dict[str, float]
    frequencies: dict[str, dict[str, float]] | None = None
    samples: dict[str, Tensor] = field(default_factory=dict)
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


def compare(subjects: Sequence[Subject], plan: Plan) -> list[Result]:
    """Results in the order of `subjects`, the first of which must be the frozen model.

    Raises ValueError where it is not.
    """
    if not subjects or subjects[0].role != "frozen":
        raise ValueError("a comparison begins with the frozen model: it draws the points at which the others are measured")
    counts = {prompt.text: plan.counts.shown for prompt in plan.prompts}
    if plan.test is not None:
        counts |= dict.fromkeys(READ_PROMPTS, max(plan.counts.samples, plan.counts.shown))
    points, results = None, []
    for subject in subjects:
        model = subject.load()
        if points is None:
            points = make_points(model, plan)
        result = Result(subject.name, subject.role, str(subject.folder) if subject.folder else None, network_numbers(model, points))
        pictures = sample_by_prompt(model, counts, plan.sampling, plan.first_seed, progress=f"{subject.name}: samples")
        if plan.test is not None:
            result.readings = {prompt: plan.test.classifier.read(drawn) for prompt, drawn in pictures.items()}
            result.numbers |= character_numbers(result.readings, plan.test.character)
            result.frequencies = attribute_frequencies(result.readings[CLASS_PROMPT])
        result.samples = {prompt.text: pictures[prompt.text][: plan.counts.shown] for prompt in plan.prompts}
        result.curves = read_curves(subject.folder) if subject.folder else {}
        results.append(result)
        del model
    return results


def make_points(frozen: LatentDiffusion, plan: Plan) -> Points:
    """The draws at which all models are compared, and the frozen model's predictions there."""
    pictures = plan.concept_pictures
    return Points(
        drift_class=drift_points(frozen, plan.class_prompts, plan, seed=DRIFT_SEED, progress="frozen: draws on class prompts"),
        drift_heldout=drift_points(frozen, plan.heldout_prompts, plan, seed=2 * DRIFT_SEED, progress="frozen: draws on held-out prompts"),
        loss=None if pictures is None else picture_draws(frozen, pictures, concept_captions(plan.placeholder), plan.counts.loss_draws, seed=FRESH_SEED),
    )


def drift_points(frozen: LatentDiffusion, prompts: Sequence[str], plan: Plan, *, seed: int, progress: str) -> DriftPoints | None:
    """Draws on a group of prompts, None for no prompts."""
    if not prompts:
        return None
    # without guidance: that is the distribution which the network itself defines
    unguided = Sampling(plan.sampling.steps, 1.0, plan.sampling.batch_size)
    draws = prior_draws(frozen, prompts, plan.counts.drift_draws, unguided, seed=seed, progress=progress)
    return DriftPoints(draws, predicted_noise(frozen, draws, batch_size=plan.sampling.batch_size))


def network_numbers(model: LatentDiffusion, points: Points, batch_size: int = 64) -> dict[str, float]:
    """Drift on both groups of prompts, and the denoising loss; those of them that have points."""
    numbers = {}
    for name, group in (("drift_class", points.drift_class), ("drift_heldout", points.drift_heldout)):
        if group is not None:
            numbers[name] = drift(model, group.draws, group.frozen_noise, batch_size=batch_size)
    if points.loss is not None:
        numbers["denoising_loss"] = denoising_loss(model, points.loss, batch_size=batch_size)
    return numbers


def character_numbers(readings: Mapping[str, Sequence[Reading]], character: Character) -> dict[str, float]:
    """Trait rates and edit rates from what was read in the samples of `READ_PROMPTS`."""
    traits = reserved_traits(character)
    return {
        "trait_rate_class": trait_rate(readings[CLASS_PROMPT], traits),
        "trait_rate_concept": trait_rate(readings[CONCEPT_PROMPT], traits),
        "edit_hat": hat_rate(readings[HAT_PROMPT]),
        "edit_background": background_rate(readings[BACKGROUND_PROMPT]),
    }


def sample_by_prompt(model: LatentDiffusion, counts: Mapping[str, int], sampling: Sampling, first_seed: int, *, progress: str | None) -> dict[str, Tensor]:
    """Prompt → (count, 3, H, W) in [-1, 1]; picture k of every prompt starts from the noise of seed first_seed + k."""
    pairs = [(prompt, first_seed + k) for prompt, count in counts.items() for k in range(count)]
    drawn = sample_pictures(model, pairs, sampling, progress=progress)
    return dict(zip(counts, drawn.split(list(counts.values())), strict=True))


def concept_captions(placeholder: str) -> list[str]:
    """The captions of a concept's training, every template once."""
    return [template.format(placeholder) for template in dict.fromkeys(imagenet_templates_small)]


def fresh_renders(character: Character, count: int = 64) -> Tensor:
    """Pictures of a character that no run is trained on, dressed as in its training pictures; (count, 3, 64, 64) in [-1, 1]."""
    pictures = [np.asarray(render(character, np.random.default_rng((FRESH_SEED, k))), dtype=np.float32) for k in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1.0
