"""Writes the table of docs/results.md from the rows of the study.

python scripts/results_page.py [--rows results/characters.json] [--page docs/results.md]

Only what stands between the two markers is replaced; a page without them is begun anew if there is none.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.evaluation.command import run_command
from ldm.evaluation.results_page import write_results_page


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--rows", type=Path, default=Path("results/characters.json"), metavar="FILE")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), metavar="FILE")
    return parser


def main(options: argparse.Namespace) -> None:
    """Reads rows, writes the table."""
    write_results_page(options.rows, options.page)
    print(f"wrote the table of {options.page} from {options.rows}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
