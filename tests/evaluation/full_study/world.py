"""Rows of the full study, made up: each arm with an identity and how many decades less it drifts than the unregularised run."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ldm.data.characters import VALUES
from ldm.evaluation.full_study.arms import FROZEN, UNREGULARIZED, Arm

CONCEPTS = ("a", "b", "c", "d")
PLAIN_DRIFT = {"a": 0.1, "b": 0.05, "c": 0.2, "d": 0.1}


def made_row(arm: Arm, concept: str = "a", seed: int = 0, *, identity: float = 1.0, decades: float = 0.0, stage: str = "screen") -> dict[str, Any]:
    """A row whose off-pattern and in-pattern drift are the concept's own unregularised one, less by so many decades."""
    drift = 0.0 if arm == FROZEN else PLAIN_DRIFT.get(concept, 0.1) * 10**-decades
    return {
        "concept": concept, "seed": seed, "model": arm.name, "trait_rate_class": 0.1, "trait_rate_concept": identity, "drift_class": drift,
        "drift_heldout": drift, "denoising_loss": 0.02, "edit_hat": 0.7, "edit_background": 0.9, "split": "dev" if stage == "screen" else "later",
        "method": arm.method, "conditioning": arm.conditioning, "latents": arm.latents, "strength": arm.strength, "phases": arm.phases, "every": arm.every,
        "teacher": arm.teacher, "attribute_frequencies_class": {name: dict.fromkeys(values, 1 / len(values)) for name, values in VALUES.items()},
        "drift_in_pattern": drift / 2, "drift_off_pattern": drift, "leak_in_pattern": 0.2, "leak_off_pattern": 0.3, "step_ratio": 2.0, "memory_ratio": 1.1,
        "nats": None if stage == "screen" else {"a house": {"mean": 1.0, "standard_error": 0.1, "upper_bound": 1.2}}, "train_seconds": 60.0,
        "measure_seconds": 30.0, "stage": stage, "arm_sha256": arm.name,
    }  # fmt: skip


def made_rows(arms: Iterable[tuple[Arm, float, float]], *, stage: str = "screen", concepts: Iterable[str] = CONCEPTS) -> list[dict[str, Any]]:
    """(arm, identity, decades) → a row for each concept; the unregularised and the frozen arm are added."""
    known = [(FROZEN, 0.0, 0.0), (UNREGULARIZED, 1.0, 0.0), *arms]
    return [made_row(arm, concept, identity=identity, decades=decades, stage=stage) for arm, identity, decades in known for concept in concepts]
