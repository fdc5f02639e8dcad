"""The demo: a small trained model learns a new character from 5 pictures, without and with the regulariser; a page shows both.

python scripts/demo.py

At most 5 minutes on 2 cores. Writes logs/demo/report.html, report.png and report.json.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.evaluation.attributes import DEFAULT_WEIGHTS
from ldm.evaluation.command import add_measuring_flags, counts_of, run_command
from ldm.evaluation.comparison import Counts
from ldm.evaluation.demonstration import demonstrate
from ldm.evaluation.tuning import CHARACTER_BASE

# a page in minutes: fewer draws than the study, whose numbers have the smaller error
DEMO_COUNTS = Counts(samples=24, shown=4, drift_draws=24, loss_draws=128)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--character", default="dev/0", metavar="SPLIT/NUMBER", help="which new character (dev/0)")
    parser.add_argument("--out", type=Path, default=Path("logs/demo"), metavar="FOLDER")
    parser.add_argument("--base-checkpoint", type=Path, default=CHARACTER_BASE, metavar="FILE")
    parser.add_argument("--classifiers", type=Path, default=DEFAULT_WEIGHTS, metavar="FILE")
    parser.add_argument("--prompts", type=Path, default=Path("assets/characters/prompts/demo.txt"), metavar="FILE")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for both training runs, as main.py takes them")
    return add_measuring_flags(parser, DEMO_COUNTS)


def main(options: argparse.Namespace) -> None:
    """Tunes twice, compares, says what came of it."""
    files = demonstrate(
        options.character,
        out=options.out,
        base=options.base_checkpoint,
        classifiers=options.classifiers,
        prompts=options.prompts,
        counts=counts_of(options),
        seed=options.seed,
        overrides=options.set,
        steps=options.steps,
        guidance_scale=options.scale,
        batch_size=options.batch_size,
        device=options.device,
        say=print,
    )
    print("\n".join(["", *files.verdict, "", f"page: {files.page}"]))


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
