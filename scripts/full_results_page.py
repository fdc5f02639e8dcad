"""Writes what the full study says into docs/results.md, and its picture.

python scripts/full_results_page.py [--rows results/characters_full.json] [--page docs/results.md] [--chart results/characters_full.png]

Only what stands between its two markers is replaced.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.evaluation.command import run_command
from ldm.evaluation.full_study.page import write_full_page


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--rows", type=Path, default=Path("results/characters_full.json"), metavar="FILE")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), metavar="FILE")
    parser.add_argument("--chart", type=Path, default=Path("results/characters_full.png"), metavar="FILE")
    return parser


def main(options: argparse.Namespace) -> None:
    """Reads rows, writes section and picture."""
    write_full_page(options.rows, options.page, options.chart)
    print(f"wrote the full study's section of {options.page} and {options.chart} from {options.rows}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
