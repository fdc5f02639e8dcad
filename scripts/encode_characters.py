"""Encodes a set of drawn pictures once with a trained first stage, so that the denoiser trains on cached latents.

python scripts/encode_characters.py --config configs/characters/autoencoder.yaml --ckpt FIRST_STAGE --out logs/pretrain/latents.safetensors
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.checkpoints import atomic_write
from ldm.data.characters import CharacterDataset
from ldm.evaluation.command import run_command
from ldm.util import instantiate_from_config


class _Pictures(Dataset):
    """The pictures of a `CharacterDataset` alone, (3, size, size) in [-1, 1]."""

    def __init__(self, source: CharacterDataset):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.source.picture(index), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=20_000)
    return parser


@torch.no_grad()
def main(options: argparse.Namespace) -> None:
    """Encodes and writes."""
    model = instantiate_from_config(OmegaConf.load(options.config).model)
    model.init_from_ckpt(options.ckpt)  # averages that the file lacks are its weights
    model.eval()
    source = CharacterDataset(options.length)
    means, stds = [], []
    with model.ema_scope():
        for pictures in tqdm(DataLoader(_Pictures(source), batch_size=64), desc="encoding"):
            posterior = model.encode(pictures)
            means.append(posterior.mean.permute(0, 2, 3, 1).half())
            stds.append(posterior.std.permute(0, 2, 3, 1).half())
    mean, std = torch.cat(means), torch.cat(stds)
    about = {name: str(getattr(source, name)) for name in ("length", "size", "set", "seed", "reserved", "things")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as temporary:
        save_file({"mean": mean, "std": std}, temporary, metadata=about)
    spread = (mean.float().var() + std.float().square().mean()).sqrt().item()
    print(f"{options.out}: {len(mean)} pictures, latents' standard deviation {spread:.4f} before scale_factor")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
