"""Models small enough for tests, as the published repository takes them."""
from pathlib import Path

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1], "num_res_blocks": 1,
        "channel_mult": [1], "num_heads": 4, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 32, "legacy": False,
    },
}  # fmt: skip
TEXT = {
    "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
    "params": {"device": "cpu", "version": str(Path(__file__).resolve().parents[2] / "old" / "text")},
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
WORDS = {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": {"placeholder_strings": ["*"], "initializer_words": ["sculpture"]}}
DEFAULTS = {
    "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 20, "log_every_t": 5, "image_size": 8, "channels": 4, "cond_stage_key": "caption",
    "cond_stage_trainable": True, "conditioning_key": "crossattn", "use_ema": False, "monitor": None,
    "unet_config": UNET, "first_stage_config": PICTURES, "cond_stage_config": TEXT,
}  # fmt: skip


def with_params(config, **params):
    """A copy of a `target`/`params` mapping with other params."""
    return {**config, "params": {**config.get("params", {}), **params}}
