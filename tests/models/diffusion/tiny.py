"""Models small enough for tests: those of the recorded cases, and variants of them."""
from __future__ import annotations

import copy
from typing import Any

import torch
from omegaconf import OmegaConf

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from tests.golden.case import load_case

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1], "num_res_blocks": 1,
        "channel_mult": [1], "num_heads": 4, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 32, "legacy": False,
    },
}  # fmt: skip
TEXT = {
    "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
    "params": {"device": "cpu", "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}},
}
PICTURES = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {
            "double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1,
            "attn_resolutions": [], "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    },
}  # fmt: skip
CODEBOOK = {
    "target": "ldm.models.autoencoder.VQModelInterface",
    "params": {**PICTURES["params"], "n_embed": 16, "ddconfig": {**PICTURES["params"]["ddconfig"], "double_z": False}},
}
LATENTS = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
WORDS = {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": {"placeholder_strings": ["*"], "initializer_words": ["sculpture"]}}
DEFAULTS = {
    "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 20, "log_every_t": 5, "image_size": 8, "channels": 4, "cond_stage_key": "caption",
    "cond_stage_trainable": True, "conditioning_key": "crossattn", "use_ema": False, "monitor": None,
    "unet_config": UNET, "first_stage_config": PICTURES, "cond_stage_config": TEXT,
}  # fmt: skip


def with_params(config: dict[str, Any], **params: Any) -> dict[str, Any]:
    """A copy of a `target`/`params` mapping with other params."""
    return {**config, "params": {**config.get("params", {}), **params}}


def latent_diffusion(**params: Any) -> LatentDiffusion:
    """A LatentDiffusion of 20 steps on 16-pixel pictures, all of it random but what `params` say."""
    return LatentDiffusion(**copy.deepcopy({**DEFAULTS, **params}))


def recorded_model(case: str, **params: Any) -> LatentDiffusion:
    """The model of the recorded cases `ld_a` or `ld_b`, its weights loaded strictly, in eval mode."""
    weights = load_case(f"{case}_weights")
    config = OmegaConf.to_container(weights.config)
    config["model"]["params"] |= params
    config["model"]["params"]["cond_stage_config"]["params"]["text_config"] = config["clip_text_config"]
    model = instantiate_from_config(config["model"])
    state = weights.state_dict()
    if params.get("learn_logvar"):
        state["logvar"] = torch.zeros(1000)
    model.load_state_dict(state)
    return model.eval()


def randomise(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """Give every parameter a random value: networks begin with zeros in places, where a test would see nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of_pictures(size: int = 2, side: int = 16, channels: int = 3) -> dict[str, Any]:
    """`size` random pictures (side, side, channels) in [-1, 1], captioned with the placeholder."""
    return {"image": torch.rand(size, side, side, channels) * 2 - 1, "caption": ["a photo of a *", "a rendering of the cool *", "a * in the snow"][:size]}
