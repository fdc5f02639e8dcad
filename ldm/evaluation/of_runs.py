"""From run folders to a page: what their configs say is found, measured and written."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from ldm.data.images import list_pictures, open_picture
from ldm.evaluation.attributes import DEFAULT_WEIGHTS, load_classifier
from ldm.evaluation.comparison import CharacterTest, Counts, Plan, compare, fresh_renders
from ldm.evaluation.models import Run, chosen_device, default_names, open_run, sampling_of, subjects, words_of
from ldm.evaluation.prompts import read_prompts
from ldm.evaluation.report import ReportFiles, to_batch, write_report
from ldm.evaluation.results_file import named_character
from ldm.training.compose import read_config

logger = logging.getLogger(__name__)

PICTURES_USED = 64


@dataclass(frozen=True)
class Question:
    """What is to be compared, and how. Paths and names that are None are found in the runs' own configs, or done without.

    sampling: steps, guidance_scale, batch_size, those not None. character: "SPLIT/NUMBER" of the drawn world.
    """

    base: Path
    runs: Sequence[Path]
    prompts: Path
    out: Path
    config: Path | None = None
    names: Sequence[str] = ()
    class_prompts: Path | None = None
    heldout_prompts: Path | None = None
    fresh_pictures: Path | None = None
    character: str | None = None
    classifiers: Path = DEFAULT_WEIGHTS
    trust_pickle: bool = False
    counts: Counts = Counts()
    first_seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None


def compare_runs(question: Question) -> ReportFiles:
    """Measures and writes the page. All that can be wrong with the words of the command is found before a model is loaded.

    Raises ValueError or FileNotFoundError that names what is wrong.
    """
    config = read_config(question.config) if question.config else None
    runs = [open_run(folder, config) for folder in question.runs]
    names = list(question.names) or default_names(runs)
    if len(names) != len(runs):
        raise ValueError(f"--names: {len(names)} names for {len(runs)} runs; give one each")
    if len(set(names)) != len(names):
        raise ValueError(f"--names: {', '.join(names)}; two runs of one name cannot be told apart on the page")
    if not question.base.is_file():
        raise FileNotFoundError(f"--base-checkpoint: no file {question.base} (looked from {Path.cwd()})")
    plan, concept = _plan(question, runs[0])
    compared = subjects(runs, question.base, names=names, device=chosen_device(question.device), trust_pickle=question.trust_pickle)
    settings = {"Base checkpoint": str(question.base), "Runs": "; ".join(str(run.folder) for run in runs)}
    return write_report(question.out, compare(compared, plan), plan, concept=concept, settings=settings)


def _plan(question: Question, run: Run) -> tuple[Plan, list[Image.Image]]:
    placeholder, class_word = words_of(run.config)
    prompts = read_prompts(question.prompts, placeholder=placeholder, class_word=class_word)
    if not any(prompt.kind in ("concept", "edit") for prompt in prompts):
        logger.warning("no prompt of %s contains the concept's word %r", question.prompts, placeholder)
    test = None
    if question.character is not None:
        if placeholder != "*":
            raise ValueError(f"--character: its prompts call the new character *, but these runs call it {placeholder!r}")
        test = CharacterTest(named_character(question.character), load_classifier(question.classifiers))
    concept = _concept_pictures(run)
    side = OmegaConf.select(run.config, "data.params.train.params.size")
    if question.fresh_pictures is not None:
        measured, fresh = [open_picture(path) for path in list_pictures(question.fresh_pictures)[:PICTURES_USED]], True
    else:
        measured, fresh = concept, False
    batch = to_batch(measured, side) if measured and side else None
    if test is not None and question.fresh_pictures is None:
        batch, fresh = fresh_renders(test.character), True

    def texts(path: Path | None, kind: str) -> list[str]:
        if path is None:
            return [prompt.text for prompt in prompts if prompt.kind == kind]
        return [prompt.text for prompt in read_prompts(path, placeholder=placeholder, class_word=class_word)]

    plan = Plan(
        prompts=prompts,
        class_prompts=texts(question.class_prompts, "class"),
        heldout_prompts=texts(question.heldout_prompts, "unlike"),
        sampling=sampling_of(run.config, **question.sampling),
        counts=question.counts,
        first_seed=question.first_seed,
        placeholder=placeholder,
        test=test,
        concept_pictures=batch,
        fresh_pictures=fresh,
    )
    return plan, concept


def _concept_pictures(run: Run) -> list[Image.Image]:
    """What the run was tuned on; without, where its folder is no longer there."""
    if run.pictures is None or not run.pictures.is_dir():
        logger.warning("%s: its pictures (%s) are not here, so the page shows none and measures no loss on them", run.folder, run.pictures)
        return []
    return [open_picture(path) for path in list_pictures(run.pictures)[:PICTURES_USED]]
