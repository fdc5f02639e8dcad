"""Joins embedding files into one, so that a prompt can hold the words of all of them.

python merge_embeddings.py --manager_ckpts cat.pt dog.pt --output_path both.pt

Words of one name get others: on a terminal you are asked for them, elsewhere the suggestion is taken; what each word is called now is listed.
"""
from __future__ import annotations

import argparse
import sys

from ldm.evaluation.command import run_command
from ldm.inference.merging import merge_files


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--manager_ckpts", nargs="+", required=True, metavar="FILE", help="embedding files")
    parser.add_argument("--output_path", required=True, metavar="FILE", help="file to write; it must not exist")
    parser.add_argument("-sd", "--stable_diffusion", action="store_true", help="the words are of CLIP's text encoder; the files themselves show it, too")
    parser.add_argument("--vocabulary", metavar="FILE", help="vocab.txt of bert-base-uncased, where words of LDM-1.4B clash")
    return parser


def ask(question: str, suggestion: str) -> str:
    """The answer, or the suggestion for an empty one."""
    return input(f"{question} [{suggestion}]: ").strip() or suggestion


def main(options: argparse.Namespace) -> None:
    """Joins, lists the words."""
    joined = merge_files(
        options.manager_ckpts, options.output_path, clip=options.stable_diffusion, vocabulary=options.vocabulary, ask=ask if sys.stdin.isatty() else None
    )
    for word, before in joined:
        was = "" if word.string == before else f" (was {before!r} there)"
        print(f"{word.string!r}: {tuple(word.vectors.shape)} from {word.file}{was}")
    print(f"{options.output_path}: {len(joined)} words")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
