"""Joins a trained first stage and a trained denoiser, averaged weights where they were kept, into one checkpoint in fp16.

python scripts/assemble_characters.py --first-stage WHOLE.ckpt --denoiser DENOISER.ckpt --out assets/characters/model.safetensors
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints import read_state_dict, save_weights
from ldm.checkpoints.keys import EMA, with_averaged_weights
from ldm.evaluation.command import run_command


def best_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights where the checkpoint has them."""
    return with_averaged_weights(tensors) if any(name.startswith(EMA) for name in tensors) else tensors


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--first-stage", type=Path, required=True)
    parser.add_argument("--denoiser", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(options: argparse.Namespace) -> None:
    """Joins them."""
    first_stage, denoiser = (best_weights(read_state_dict(path)) for path in (options.first_stage, options.denoiser))
    weights = {f"first_stage_model.{name}": value for name, value in first_stage.items() if not name.startswith("loss.")}
    weights |= {name: value for name, value in denoiser.items() if name.startswith(("model.", "cond_stage_model."))}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(options.out, weights, dtype=torch.float16)
    print(f"{options.out}: {len(weights)} tensors, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
