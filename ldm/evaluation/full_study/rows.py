"""Rows of the full study: those of the study, and which arm they are of, what it costs and how far it drifts on other prompts too."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ldm.checkpoints import atomic_write
from ldm.evaluation.full_study.arms import Arm, arm_of
from ldm.evaluation.full_study.plan import Job, PromptLists
from ldm.evaluation.metrics import Reading, reserved_traits, trait_rate
from ldm.evaluation.results_file import ResultsFile, make_row

Row = dict[str, Any]


def full_row(
    job: Job, prompts: PromptLists, *, drift: Mapping[str, float], loss: float, readings: Mapping[str, Sequence[Reading]], nats: Mapping[str, Any] | None,
    cost: Mapping[str, float | None], seconds: Mapping[str, float | None], digest: str,
) -> Row:  # fmt: skip
    """One row, its keys in the order of the file.

    drift: by prompt; nats: prompt → mean, standard error and bound, None in the screen. cost: step_ratio and memory_ratio over the unregularised
    run's. seconds: train (None for no run of its own, or one found finished) and measure. digest: the arm's.
    """
    def of_list(name: str) -> float:
        return fmean(drift[text] for text in prompts.texts[name])

    def leak(name: str) -> float:
        return fmean(trait_rate(readings[text], traits) for text in prompts.texts[name])

    traits = reserved_traits(job.character)
    network = {"drift_class": of_list("class"), "drift_heldout": of_list("heldout"), "denoising_loss": loss}
    arm = job.arm
    return {
        **make_row(job.character, job.stage.split, job.seed, arm.name, network=network, readings=readings, counts=job.stage.counts),
        "method": arm.method,
        "conditioning": arm.conditioning,
        "latents": arm.latents,
        "strength": arm.strength,
        "phases": arm.phases,
        "every": arm.every,
        "teacher": arm.teacher,
        "drift_in_pattern": of_list("in_pattern"),
        "drift_off_pattern": of_list("off_pattern"),
        "leak_in_pattern": leak("leak_in_pattern"),
        "leak_off_pattern": leak("leak_off_pattern"),
        "nats": nats,
        "step_ratio": cost.get("step_ratio"),
        "memory_ratio": cost.get("memory_ratio"),
        "train_seconds": seconds.get("train"),
        "measure_seconds": seconds.get("measure"),
        "stage": job.stage.name,
        "arm_sha256": digest,
    }


class FullResultsFile(ResultsFile):
    """The rows, and beside them what each kind of arm costs and the plan: what the screen was thinned to, by which estimate."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.costs: dict[str, dict[str, float | None]] = {}
        self.plan: dict[str, Any] = {}

    def read(self) -> None:
        super().read()
        if self.path.is_file():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.costs, self.plan = dict(content.get("costs", {})), dict(content.get("plan", {}))

    def write(self) -> None:
        content = {"rows": self.rows, "summary": self.summary(), "costs": self.costs, "plan": self.plan}
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def summary(self) -> dict[str, Any]:
        """How each split's rows were measured; what they say is on the page."""
        return {split: {"settings": settings} for split, settings in self.settings.items()}

    def forget_other_arms(self, digest: Callable[[Arm], str]) -> list[str]:
        """Drops the rows of arms that are no longer what they were, and their costs, and says which arms.

        digest: of an arm as it is now, KeyError where there is none.
        """
        now = {arm: _digest_or_none(arm, digest) for arm in {arm_of(row) for row in self.rows}}
        other = [row for row in self.rows if now[arm_of(row)] is None or row.get("arm_sha256") != now[arm_of(row)]]
        self.rows = [row for row in self.rows if row not in other]
        for row in other:
            self.costs.pop(arm_of(row).kind, None)
        return list(dict.fromkeys(row["model"] for row in other))

    def of_stage(self, name: str) -> list[Row]:
        return [row for row in self.rows if row["stage"] == name]


def _digest_or_none(arm: Arm, digest: Callable[[Arm], str]) -> str | None:
    try:
        return digest(arm)
    except KeyError:
        return None
