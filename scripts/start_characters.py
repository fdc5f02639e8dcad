"""Writes the weights that the characters model's UNet and text encoder start from, drawn by chance.

python scripts/start_characters.py --config configs/characters/pretrain.yaml --out logs/pretrain/start.safetensors [--seed 23]

CLIP's own start is made for millions of steps: token embeddings of standard deviation 0.02 drown in what the layers add to them, and behind the
final norm a word is one of 40 positions that the UNet first averages. In a few thousand steps hardly a word binds. So the tokens start at
unit variance and the final norm with a gain of 12.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from ldm.checkpoints import save_weights
from ldm.evaluation.command import run_command
from ldm.util import instantiate_from_config

TOKEN_GAIN = 50.0  # of CLIP's 0.02
FINAL_NORM_GAIN = 12.0


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=23)
    return parser


@torch.no_grad()
def main(options: argparse.Namespace) -> None:
    """Draws and writes."""
    torch.manual_seed(options.seed)
    model = instantiate_from_config(OmegaConf.load(options.config).model)
    text_model = model.cond_stage_model.transformer.text_model
    text_model.embeddings.token_embedding.weight.mul_(TOKEN_GAIN)
    text_model.final_layer_norm.weight.mul_(FINAL_NORM_GAIN)
    weights = {name: value for name, value in model.state_dict().items() if name.startswith(("model.", "cond_stage_model."))}
    save_weights(options.out, weights)
    print(f"{options.out}: {len(weights)} tensors")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
