"""Trains the attribute classifiers on fresh renders, measures them on others, and writes them in fp16.

python scripts/train_classifiers.py [--out assets/characters/classifiers.safetensors] [--steps 700]
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from ldm.checkpoints import save_weights
from ldm.evaluation.attributes import DEFAULT_WEIGHTS, accuracy, load_classifier, rendered_batch, train_classifier
from ldm.evaluation.command import run_command

FRESH_SEED = 990_001  # renders that training never draws


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--fresh", type=int, default=2000, help="renders to measure on")
    return parser


def main(options: argparse.Namespace) -> None:
    """Trains, writes, prints how often each value is read right."""
    classifier = train_classifier(steps=options.steps)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(options.out, classifier.state_dict(), dtype=torch.float16)
    pictures, scenes = rendered_batch(np.random.default_rng(FRESH_SEED), options.fresh)
    for name, shares in accuracy(load_classifier(options.out).read(pictures), scenes).items():
        print(f"{name:12s} " + "  ".join(f"{value} {share:.4f}" for value, share in shares.items()))


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
