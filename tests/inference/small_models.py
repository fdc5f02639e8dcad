"""Models without a text, small and random, each a folder with config.yaml and model.ckpt."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config

UNET: dict[str, Any] = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [2], "num_res_blocks": 1,
        "channel_mult": [1, 2], "num_heads": 2, "resblock_updown": True,
    },
}  # fmt: skip
FIRST_STAGE = {
    "target": "ldm.models.autoencoder.VQModelInterface",
    "params": {
        "embed_dim": 3, "n_embed": 64, "lossconfig": {"target": "torch.nn.Identity"},
        "ddconfig": {
            "double_z": False, "z_channels": 3, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1,
            "attn_resolutions": [], "dropout": 0.0,
        },
    },
}  # fmt: skip
SHARED = {
    "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 20, "image_size": 8, "channels": 3, "first_stage_config": FIRST_STAGE, "use_ema": False,
}  # fmt: skip
CLASSES = 5


def params_of(kind: str) -> dict[str, Any]:
    """Of an unconditional model, of a class-conditional one, or of one that fills masks."""
    unet = copy.deepcopy(UNET)
    if kind == "unconditional":
        own: dict[str, Any] = {"cond_stage_config": "__is_unconditional__", "concat_mode": False, "cond_stage_key": "class_label"}
    elif kind == "classes":
        unet["params"] |= {"attention_resolutions": [1, 2], "use_spatial_transformer": True, "context_dim": 16, "resblock_updown": False}
        embedder = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 16, "n_classes": CLASSES, "key": "class_label"}}
        own = {"cond_stage_config": embedder, "cond_stage_key": "class_label", "cond_stage_trainable": True, "conditioning_key": "crossattn"}
    else:
        unet["params"]["in_channels"] = 7
        own = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "masked_image", "concat_mode": True}
    return {**copy.deepcopy(SHARED), "unet_config": unet, **own}


def write_model(folder: Path, kind: str, *, step: int = 0) -> LatentDiffusion:
    """Makes the folder; returns the model, in eval mode."""
    config = {"model": {"base_learning_rate": 1.0e-4, "target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params_of(kind)}}
    torch.manual_seed(0)
    model = instantiate_from_config(OmegaConf.create(config).model)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05)
        if kind == "classes":  # an untrained embedding is lost among the rest
            model.cond_stage_model.embedding.weight.mul_(30.0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"state_dict": model.state_dict(), "global_step": step}, folder / "model.ckpt")
    return model.eval()
