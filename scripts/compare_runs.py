"""Puts runs beside the model that they started from: pictures from equal seeds, drift, loss, and a page that says what they show.

python scripts/compare_runs.py --base-checkpoint assets/characters/model.safetensors --runs logs/A logs/B \\
    --prompts assets/characters/prompts/demo.txt --out logs/comparison
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.evaluation.attributes import DEFAULT_WEIGHTS
from ldm.evaluation.command import add_measuring_flags, add_run_flags, counts_of, run_command
from ldm.evaluation.comparison import Counts
from ldm.evaluation.of_runs import Question, compare_runs


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = add_run_flags(argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where report.html, report.json and report.png go")
    parser.add_argument("--config", type=Path, metavar="YAML", help="for runs that carry no configs of their own")
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="what the runs are called on the page")
    parser.add_argument("--class-prompts", type=Path, metavar="FILE", help="for drift; by default those of --prompts that name the class and not the concept")
    parser.add_argument("--heldout-prompts", type=Path, metavar="FILE", help="for drift; by default those of --prompts that name neither")
    parser.add_argument("--fresh-pictures", type=Path, metavar="FOLDER", help="pictures of the concept that no run was tuned on, for the denoising loss")
    parser.add_argument("--character", metavar="SPLIT/NUMBER", help="the new character of the drawn world, as dev/0: then its traits are read from the samples")
    parser.add_argument("--classifiers", type=Path, default=DEFAULT_WEIGHTS, metavar="FILE", help=f"what reads them ({DEFAULT_WEIGHTS})")
    return add_measuring_flags(parser, Counts())


def main(options: argparse.Namespace) -> None:
    """Compares, says what came of it."""
    question = Question(
        base=options.base_checkpoint,
        runs=options.runs,
        prompts=options.prompts,
        out=options.out,
        config=options.config,
        names=options.names,
        class_prompts=options.class_prompts,
        heldout_prompts=options.heldout_prompts,
        fresh_pictures=options.fresh_pictures,
        character=options.character,
        classifiers=options.classifiers,
        trust_pickle=options.trust_pickle,
        counts=counts_of(options),
        first_seed=options.seed,
        sampling={"steps": options.steps, "guidance_scale": options.scale, "batch_size": options.batch_size},
        device=options.device,
    )
    files = compare_runs(question)
    print("\n".join([*files.verdict, "", f"page: {files.page}"]))


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
