"""The full study: every idea, every source of latents and every rival looked at briefly, the best of them at length and on new characters.

python scripts/study_full.py [--workers 2] [--hours 10]

It tells first how long it will take. Rows go to results/characters_full.json as they are measured; a second call goes on where the first one stopped.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ldm.evaluation.attributes import DEFAULT_WEIGHTS
from ldm.evaluation.command import add_device_flag, run_command
from ldm.evaluation.full_study.course import run_full_study
from ldm.evaluation.full_study.plan import FINALS, HOURS, SCREEN, FullStudy, Stage
from ldm.evaluation.tuning import CHARACTER_BASE


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("results/characters_full.json"), metavar="FILE")
    parser.add_argument("--runs", type=Path, default=Path("logs/study_full"), metavar="FOLDER", help="where pictures, draws and runs go (logs/study_full)")
    parser.add_argument("--base-checkpoint", type=Path, default=CHARACTER_BASE, metavar="FILE")
    parser.add_argument("--classifiers", type=Path, default=DEFAULT_WEIGHTS, metavar="FILE")
    parser.add_argument("--prompts", type=Path, default=Path("assets/characters/prompts"), metavar="FOLDER")
    parser.add_argument("--hours", type=float, default=HOURS, metavar="H", help=f"above which the screen has fewer weights ({HOURS:g})")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="rows made at a time, the cores shared among them (2)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures at a time; changes rounding, not the pictures")
    parser.add_argument("--keep-runs", action="store_true", help="run folders stay once their rows are there: a hundred megabytes each")
    parser.add_argument("--fresh", action="store_true", help="measure all rows again")
    for stage in (SCREEN, FINALS):
        add_stage_flags(parser, stage)
    trial = parser.add_argument_group("for a trial")
    trial.add_argument("--arms", nargs="+", default=[], metavar="PATTERN", help="only these, as locality/class/* or kv_only/*; frozen and unregularised stay")
    trial.add_argument("--train-steps", type=int, metavar="N", help="of each phase of a run, in the place of the configs' own")
    trial.add_argument("--cost-rounds", type=int, default=12, metavar="N", help="steps by which the cost of a kind of arm is measured (12)")
    add_device_flag(parser)
    return parser


def add_stage_flags(parser: argparse.ArgumentParser, stage: Stage) -> None:
    """Characters, seeds and counts of a stage."""
    group = parser.add_argument_group(f"{stage.name}, on characters of the split {stage.split}")

    def add(flag: str, default: object, **options: object) -> None:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(f"--{stage.name}-{flag}", type=int, default=default, help=f"({shown})", **options)

    add("characters", stage.characters, nargs="+", metavar="N")
    add("seeds", stage.seeds, nargs="+", metavar="S")
    add("samples", stage.counts.samples, metavar="N")
    add("steps", stage.steps, metavar="N")
    add("drift-draws", stage.counts.drift_draws, metavar="N")
    add("loss-draws", stage.counts.loss_draws, metavar="N")
    if stage.trajectories:
        add("trajectories", stage.trajectories, metavar="N")


def stage_of(stage: Stage, options: argparse.Namespace) -> Stage:
    """The stage as asked for. Raises ValueError for a count below 1."""
    given = {key.removeprefix(f"{stage.name}_"): value for key, value in vars(options).items() if key.startswith(f"{stage.name}_")}
    for name, value in given.items():
        least = 0 if name in ("characters", "seeds") else 1
        if min(value if isinstance(value, (list, tuple)) else [value]) < least:
            raise ValueError(f"--{stage.name}-{name.replace('_', '-')} is {value}; it must be at least {least}")
    counts = replace(stage.counts, samples=given["samples"], drift_draws=given["drift_draws"], loss_draws=given["loss_draws"])
    return replace(
        stage, characters=tuple(given["characters"]), seeds=tuple(given["seeds"]), counts=counts, steps=given["steps"],
        trajectories=given.get("trajectories", 0),
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Measures the rows that are missing."""
    for flag in ("workers", "train_steps", "cost_rounds", "batch_size"):
        if (value := getattr(options, flag)) is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} is {value}; it must be at least 1")
    study = FullStudy(
        out=options.out, runs=options.runs, base=options.base_checkpoint, classifiers=options.classifiers, prompts=options.prompts,
        screen=stage_of(SCREEN, options), finals=stage_of(FINALS, options), workers=options.workers, hours=options.hours, only=tuple(options.arms),
        train_steps=options.train_steps, cost_rounds=options.cost_rounds, batch_size=options.batch_size, device=options.device, keep_runs=options.keep_runs,
        fresh=options.fresh,
    )  # fmt: skip
    results = run_full_study(study, say=print)
    print(f"rows: {options.out}, {len(results.rows)} of them; python scripts/full_results_page.py writes what they say")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
