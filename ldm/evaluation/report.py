"""Writes a comparison to a folder: report.html, report.json, report.png."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoints import atomic_write
from ldm.data.images import to_model_range
from ldm.evaluation.comparison import Plan, Result
from ldm.evaluation.montage import one_look
from ldm.evaluation.page import Page, html
from ldm.evaluation.verdict import MEASURES, verdict


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written, and its verdict in words."""

    page: Path
    numbers: Path
    picture: Path
    verdict: list[str]


def write_report(out: Path, results: Sequence[Result], plan: Plan, *, concept: Sequence[Image.Image], settings: dict[str, str]) -> ReportFiles:
    """Writes the three files whole or not at all, the page last.

    concept: the pictures that the runs were tuned on. settings: what else the page should say about how it was made.
    """
    sentences = verdict(results, fresh_pictures=plan.fresh_pictures)
    described = {**settings_of(plan), **settings}
    page = Page(results, plan.prompts, sentences, concept, described, plan.test)
    files = ReportFiles(out / "report.html", out / "report.json", out / "report.png", sentences)
    picture = one_look(results, plan.prompts, headline=sentences[0], concept=concept, test=plan.test)
    with atomic_write(files.picture) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    with atomic_write(files.numbers) as temporary:
        temporary.write_text(json.dumps(numbers_of(results, plan, sentences, described), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_write(files.page) as temporary:
        temporary.write_text(html(page), encoding="utf-8")
    return files


def numbers_of(results: Sequence[Result], plan: Plan, sentences: Sequence[str], settings: dict[str, str]) -> dict[str, Any]:
    """Everything that the page states, as plain values."""
    return {
        "verdict": list(sentences),
        "models": [
            {"name": result.name, "role": result.role, "run": result.run, "numbers": result.numbers, "attribute_frequencies_class": result.frequencies,
             "curves": result.curves}
            for result in results
        ],
        "prompts": [prompt._asdict() for prompt in plan.prompts],
        "measures": [{"key": measure.key, "name": measure.name, "better": measure.good, "meaning": measure.meaning} for measure in MEASURES],
        "settings": settings,
    }  # fmt: skip


def settings_of(plan: Plan) -> dict[str, str]:
    """How the numbers were had, in words."""
    counts, sampling = plan.counts, plan.sampling
    said = {
        "Sampling": f"DDIM, {sampling.steps} steps, η = 0, guidance {sampling.guidance_scale:g}; seeds from {plan.first_seed} on, the same for every model",
    }
    if plan.class_prompts or plan.heldout_prompts:
        said["Drift"] = (
            f"mean squared difference of predicted noise, {counts.drift_draws} draws of (latent, timestep, noise) a prompt, equal for all models; "
            "latents drawn by the frozen model without guidance; each network with its own text encoder"
        )
        said["Class prompts"] = "; ".join(plan.class_prompts) or "none"
        said["Held-out prompts"] = "; ".join(plan.heldout_prompts) or "none"
    if plan.concept_pictures is not None:
        fresh, used = "fresh pictures of the concept, none of which a run was tuned on", "the training pictures themselves (no others are at hand)"
        kind = fresh if plan.fresh_pictures else used
        said["Denoising loss"] = f"{counts.loss_draws} draws on {kind}, training captions, equal for all models"
    if plan.test is not None:
        said["Traits and edits"] = f"read by attribute classifiers, trained on renders alone, in {counts.samples} samples a prompt"
    return said


def to_batch(pictures: Sequence[Image.Image], side: int) -> Tensor:
    """(N, 3, side, side) in [-1, 1], each squeezed to a square as the training data are."""
    arrays = [to_model_range(picture.resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
