"""Our networks' twins in diffusers: the same architecture with the same weights, by a map from our keys to theirs.

The weights are shared, not copied: a twin costs no memory, and both answer alike because both read the same numbers. Only the attention of
the first stage, whose 1×1 convolutions are linear layers there, has parameters of its own, views of ours.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

RESIDUAL_BLOCK = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}  # fmt: skip
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out",
    "out.2": "conv_out",
}  # fmt: skip
MIDDLE = {"middle_block.0.": "mid_block.resnets.0.", "middle_block.1.": "mid_block.attentions.0.", "middle_block.2.": "mid_block.resnets.1."}
STAGE = re.compile(r"(input|output)_blocks\.(\d+)\.\d\.(.+)")
FIRST_STAGE = (
    (r"mid\.block_1\.", "mid_block.resnets.0."), (r"mid\.block_2\.", "mid_block.resnets.1."), (r"mid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"mid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."), (r"mid\.attn_1\.", "mid_block.attentions.0.to_"), (r"norm_out\.", "conv_norm_out."),
    (r"nin_shortcut\.", "conv_shortcut."), (r"down\.(\d)\.block\.", r"down_blocks.\1.resnets."),
    (r"down\.(\d)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
)  # fmt: skip


def unet_key(key: str, blocks_per_level: int) -> str:
    """What diffusers calls the parameter `key` of a UNetModel with so many residual blocks a level on the way down."""
    layer, _, parameter = key.rpartition(".")
    if layer in UNET_ENDS:
        return f"{UNET_ENDS[layer]}.{parameter}"
    for ours, theirs in MIDDLE.items():
        if key.startswith(ours):
            return theirs + _in_block(key.removeprefix(ours))
    way, number, rest = STAGE.fullmatch(key).groups()
    level, place = divmod(int(number) - (way == "input"), blocks_per_level + 1)
    side = "down" if way == "input" else "up"
    if rest.startswith(("op.", "conv.")):  # the change of resolution
        return f"{side}_blocks.{level}.{side}samplers.0.conv.{parameter}"
    inside = _in_block(rest)
    return f"{side}_blocks.{level}.{'attentions' if inside == rest else 'resnets'}.{place}.{inside}"


def _in_block(rest: str) -> str:
    layer, _, parameter = rest.rpartition(".")
    return f"{RESIDUAL_BLOCK[layer]}.{parameter}" if layer in RESIDUAL_BLOCK else rest  # transformers have the same names in both


def first_stage_key(key: str, levels: int) -> str:
    """What diffusers calls the parameter `key` of an AutoencoderKL; its decoder counts levels from the coarsest."""
    for pattern, theirs in FIRST_STAGE:
        key = re.sub(pattern, theirs, key)
    return re.sub(
        r"up\.(\d)\.(block|upsample)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.{'resnets.' if m[2] == 'block' else 'upsamplers.0.'}", key
    )


def unet_twin(ours: nn.Module, params: Mapping[str, Any]) -> UNet2DConditionModel:
    """diffusers' UNet for a UNetModel built with `params` (attention to a context at some levels), with its default attention."""
    levels = range(len(params["channel_mult"]))
    attends = [2**level in params["attention_resolutions"] for level in levels]
    with torch.device("meta"):
        twin = UNet2DConditionModel(
            in_channels=params["in_channels"],
            out_channels=params["out_channels"],
            block_out_channels=[params["model_channels"] * factor for factor in params["channel_mult"]],
            layers_per_block=params["num_res_blocks"],
            attention_head_dim=params["num_heads"],  # diffusers' name for the number of heads
            cross_attention_dim=params["context_dim"],
            down_block_types=["CrossAttnDownBlock2D" if attends[level] else "DownBlock2D" for level in levels],
            up_block_types=["CrossAttnUpBlock2D" if attends[level] else "UpBlock2D" for level in reversed(levels)],
        )
    return _share(ours, twin, lambda key: unet_key(key, params["num_res_blocks"]))


def first_stage_twin(ours: nn.Module, ddconfig: Mapping[str, Any]) -> AutoencoderKL:
    """diffusers' autoencoder for an AutoencoderKL built with `ddconfig`, without attention but in the middle."""
    levels = len(ddconfig["ch_mult"])
    with torch.device("meta"):
        twin = AutoencoderKL(
            in_channels=ddconfig["in_channels"],
            out_channels=ddconfig["out_ch"],
            latent_channels=ddconfig["z_channels"],
            block_out_channels=[ddconfig["ch"] * factor for factor in ddconfig["ch_mult"]],
            layers_per_block=ddconfig["num_res_blocks"],
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
    return _share(ours, twin, lambda key: first_stage_key(key, levels))


def _share(ours: nn.Module, twin: nn.Module, rename: Callable[[str], str]) -> nn.Module:
    shapes = {key: tensor.shape for key, tensor in twin.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for key, parameter in ours.named_parameters():
        name = rename(key)
        shape = shapes.get(name, parameter.shape)
        weights[name] = parameter if shape == parameter.shape else parameter.detach().view(shape)
    twin.load_state_dict(weights, strict=True, assign=True)
    return twin
