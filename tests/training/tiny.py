"""A real latent diffusion model with a learnt word, as small as its parts allow, and its configs."""
from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.checkpoints import read_state_dict, save_weights
from ldm.util import instantiate_from_config

WIDTH = 16
SIZE, FACTOR, CHANNELS = 16, 2, 4


def network(width: int = WIDTH) -> dict[str, Any]:
    return {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "image_size": SIZE // FACTOR, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 32, "attention_resolutions": [1],
            "num_res_blocks": 1, "channel_mult": [1], "num_heads": 2, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": width,
            "legacy": False,
        },
    }  # fmt: skip


def first_stage() -> dict[str, Any]:
    ddconfig = {"double_z": True, "z_channels": CHANNELS, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1],
                "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    params = {"embed_dim": CHANNELS, "ddconfig": ddconfig, "lossconfig": {"target": "torch.nn.Identity"}}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def config(data_root: Path | None = None, width: int = WIDTH) -> dict[str, Any]:
    """Word and network are tuned, as in the unfrozen configs."""
    text = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    word = {"placeholder_strings": ["*"], "initializer_words": ["sculpture"], "num_vectors_per_token": 1}
    pictures = {"target": "ldm.data.personalized.PersonalizedBase", "params": {"size": SIZE, **({"data_root": str(data_root)} if data_root else {})}}
    train, validation = deepcopy(pictures), deepcopy(pictures)
    train["params"] |= {"set": "train", "repeats": 4}
    validation["params"]["set"] = "val"
    return {
        "model": {
            "base_learning_rate": 5.0e-3,
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "timesteps": 1000, "linear_start": 0.00085, "linear_end": 0.012, "first_stage_key": "image", "cond_stage_key": "caption",
                "image_size": SIZE // FACTOR, "channels": CHANNELS, "cond_stage_trainable": True, "conditioning_key": "crossattn",
                "monitor": "val/loss_simple_ema", "use_ema": False, "unfreeze_model": True, "model_lr": 1.0e-4,
                "personalization_config": {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": word},
                "unet_config": network(width), "first_stage_config": first_stage(),
                "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"text_config": text}},
            },
        },
        "data": {"target": "main.DataModuleFromConfig", "params": {"batch_size": 2, "num_workers": 0, "train": train, "validation": validation}},
        "lightning": {
            "modelcheckpoint": {"params": {"every_n_train_steps": 2}},
            "callbacks": {"image_logger": {"params": {"disabled": True}}},
            "trainer": {"max_steps": 3, "limit_val_batches": 1},
        },
    }  # fmt: skip


def base_checkpoint(path: Path, width: int = WIDTH) -> Path:
    """Weights of the model before it learnt the word, drawn from seed 0."""
    torch.manual_seed(0)
    model = instantiate_from_config(config(width=width)["model"])
    save_weights(path, {key: value for key, value in model.state_dict().items() if not key.startswith("embedding_manager.")})
    return path


def moving_base(path: Path) -> Path:
    """The same with none of the network's weights zero: behind a layer that stands still at zero nothing could learn."""
    weights = read_state_dict(base_checkpoint(path))
    torch.manual_seed(1)
    save_weights(path, {key: value if value.any() or not key.startswith("model.") else 0.05 * torch.randn_like(value) for key, value in weights.items()})
    return path


def photos(folder: Path, count: int = 5) -> Path:
    """Pictures of coloured noise."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(noise.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder
