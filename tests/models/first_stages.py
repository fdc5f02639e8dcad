"""Small first stages for tests, and a data loader for them."""
from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.models.autoencoder import AutoencoderKL, VQModel

DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
L1 = {"target": "ldm.modules.losses.L1WithGradient"}
NO_TRAINING = {"target": "torch.nn.Identity"}
GAN = {"disc_start": 0, "perceptual_weight": 0.0, "disc_num_layers": 1}
KL_GAN = {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": {**GAN, "kl_weight": 1e-6, "disc_weight": 0.1}}
# As the published configs name it.
VQ_GAN = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": GAN}


def kl_model(lossconfig: dict = L1, **options: Any) -> AutoencoderKL:
    model = AutoencoderKL(DDCONFIG, lossconfig, embed_dim=2, **options)
    model.learning_rate = 1e-3
    return model


def vq_model(lossconfig: dict = NO_TRAINING, kind: type[VQModel] = VQModel, **options: Any) -> VQModel:
    model = kind(ddconfig={**DDCONFIG, "double_z": False}, lossconfig=lossconfig, n_embed=8, embed_dim=3, **options)
    model.learning_rate = 1e-3
    return model


def blocks(count: int, size: int = 16) -> torch.Tensor:
    """Pictures (count, H, W, 3) in [-1, 1] of four even fields."""
    half = size // 2
    return (torch.rand(count, 2, 2, 3) * 2 - 1).repeat_interleave(half, 1).repeat_interleave(half, 2)


def loader(count: int, batch_size: int = 2) -> DataLoader:
    return DataLoader([{"image": picture} for picture in blocks(count)], batch_size=batch_size)


def trainer(folder: Any, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, **options})
