"""Takes an embedding file apart into one file a word, as web interfaces and diffusers read them.

python scripts/export_embeddings.py both.pt --outdir embeddings

There a word is called by the name of its file, not by the string that it had here: rename the file as you like.
"""
from __future__ import annotations

import argparse
import sys

from ldm.evaluation.command import run_command
from ldm.inference.merging import take_apart


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("source", metavar="FILE", help="embeddings.pt of a run, or what merge_embeddings.py wrote")
    parser.add_argument("--outdir", default=".", metavar="FOLDER", help="folder that the files go to")
    return parser


def main(options: argparse.Namespace) -> None:
    """Writes, says which name calls which word."""
    for path, word in take_apart(options.source, options.outdir):
        print(f"{path}: {word.string!r}, {len(word.vectors)} vectors of {word.vectors.shape[1]}; write “{path.stem}” in a prompt there")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
