"""The study: new characters × seeds, each tuned with and without the regulariser by the shipped configs, all measured in the same way.

python scripts/study_characters.py [--split report] [--characters 0 1 2] [--seeds 0 1 2]

Rows go to results/characters.json as they are measured; a second call goes on where the first one stopped.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.data.characters import NEW_CHARACTERS
from ldm.evaluation.attributes import DEFAULT_WEIGHTS
from ldm.evaluation.command import add_measuring_flags, counts_of, run_command
from ldm.evaluation.comparison import Counts
from ldm.evaluation.study import Study, run_study
from ldm.evaluation.tuning import CHARACTER_BASE


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--split", choices=list(NEW_CHARACTERS), default="report", help="dev: for choosing settings; report: for figures")
    parser.add_argument("--characters", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="numbers of the split's characters (0 1 2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="of training and samples (0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("results/characters.json"), metavar="FILE")
    parser.add_argument("--runs", type=Path, default=Path("logs/study"), metavar="FOLDER", help="where run folders, pictures and draws go (logs/study)")
    parser.add_argument("--base-checkpoint", type=Path, default=CHARACTER_BASE, metavar="FILE")
    parser.add_argument("--classifiers", type=Path, default=DEFAULT_WEIGHTS, metavar="FILE")
    parser.add_argument("--prompts", type=Path, default=Path("assets/characters/prompts"), metavar="FOLDER", help="with class.txt and heldout.txt, for drift")
    parser.add_argument("--fresh", action="store_true", help="measure the split's rows again; finished training runs are kept if nothing about them changed")
    return add_measuring_flags(parser, Counts(), first_seed=False)


def main(options: argparse.Namespace) -> None:
    """Measures the rows that are missing."""
    study = Study(
        split=options.split,
        characters=tuple(options.characters),
        seeds=tuple(options.seeds),
        out=options.out,
        runs=options.runs,
        base=options.base_checkpoint,
        classifiers=options.classifiers,
        prompts=options.prompts,
        counts=counts_of(options),
        steps=options.steps,
        guidance_scale=options.scale,
        batch_size=options.batch_size,
        device=options.device,
        fresh=options.fresh,
    )
    for bar in run_study(study, say=print)["bars"]:
        met, values = "met   " if bar["met"] else "MISSED", f"{bar['overall']:.4g} ({bar['lowest']:.4g} to {bar['highest']:.4g})"
        print(f"{bar['bar']}  {met}  {bar['measured']}: {values}, wanted {bar['limit']}")
    print(f"rows: {options.out}; python scripts/results_page.py writes them as a table")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
