"""The denoising network: eps(z_t, t, c), a U-Net of residual blocks with attention.

Dhariwal & Nichol 2021 (arXiv 2105.05233); attention to a text condition from Rombach et al. 2022 (arXiv 2112.10752). The parts lie in
`blocks` and `pixel_attention` and are importable from here; which of them stand where is worked out in `block_plan`.
"""
from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.block_plan import HeadRule, plan_unet
from ldm.modules.diffusionmodules.blocks import Downsample, ResBlock, TimestepBlock, TimestepEmbedSequential, TransposedUpsample, Upsample
from ldm.modules.diffusionmodules.encoder_unet import EncoderUNetModel
from ldm.modules.diffusionmodules.pixel_attention import AttentionBlock, AttentionPool2d, QKVAttention, QKVAttentionLegacy
from ldm.modules.diffusionmodules.stages import StageBuilder
from ldm.modules.diffusionmodules.torso import Torso, weight_dtype
from ldm.modules.diffusionmodules.util import conv_nd, normalization, zero_module

__all__ = [
    "AttentionBlock",
    "AttentionPool2d",
    "Downsample",
    "EncoderUNetModel",
    "QKVAttention",
    "QKVAttentionLegacy",
    "ResBlock",
    "SpatialTransformer",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "TransposedUpsample",
    "UNetModel",
    "Upsample",
]


class UNetModel(Torso):
    """A U-Net that predicts noise (or what else it is trained for) from noisy latents, timesteps and a condition.

    image_size: side of the latents the model is meant for; only remembered, others work.
    in_channels, out_channels: of the latents and of the prediction.
    model_channels, channel_mult: level i has model_channels · channel_mult[i] channels, at 1/2^i of the resolution.
    num_res_blocks: residual blocks a level on the way down; one more on the way up.
    attention_resolutions: down-sampling factors at which there is attention.
    dropout: inside the residual blocks. conv_resample: change resolution by convolutions. dims: 1, 2 or 3 spatial dimensions.
    num_classes: embeds class labels `y`. use_checkpoint: compute activations again in the backward pass, to save memory.
    use_fp16: only sets `dtype`; `convert_to_fp16()` converts.
    num_heads, num_head_channels, num_heads_upsample, legacy: see `HeadRule`.
    use_scale_shift_norm, resblock_updown: see `ResBlock`. use_new_attention_order: see `QKVAttention`.
    use_spatial_transformer, transformer_depth, context_dim: transformers that attend to a context of width `context_dim`.
    n_embed: predict logits over so many codebook entries instead of latents.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Container[int],
        dropout: float = 0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
    ):
        if use_spatial_transformer != (context_dim is not None):
            raise ValueError(
                f"use_spatial_transformer is {use_spatial_transformer} and context_dim is {context_dim}: "
                "the transformers attend to a context, so give both or neither"
            )
        head_rule = HeadRule(num_heads, num_head_channels, num_heads_upsample, legacy, use_spatial_transformer)
        plan = plan_unet(model_channels, channel_mult, num_res_blocks, attention_resolutions, head_rule)
        stages = StageBuilder(
            emb_channels=4 * model_channels,
            dropout=dropout,
            dims=dims,
            conv_resample=conv_resample,
            use_checkpoint=use_checkpoint,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            use_spatial_transformer=use_spatial_transformer,
            transformer_depth=transformer_depth,
            context_dim=context_dim,
        )
        super().__init__(in_channels, model_channels, plan, stages, num_classes, use_fp16)
        self.image_size = image_size
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_res_blocks = num_res_blocks
        self.attention_resolutions = attention_resolutions
        self.dropout = dropout
        self.channel_mult = channel_mult
        self.conv_resample = conv_resample
        self.use_checkpoint = use_checkpoint
        self.num_heads = num_heads
        self.num_head_channels = num_head_channels
        self.num_heads_upsample = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.predict_codebook_ids = n_embed is not None
        self._feature_size = model_channels + sum(stage.out_channels for stage in (*plan.down, plan.middle, *plan.up))
        self.output_blocks = nn.ModuleList(stages.up(stage) for stage in plan.up)
        self.out = nn.Sequential(
            normalization(plan.out_channels), nn.SiLU(), zero_module(conv_nd(dims, plan.out_channels, out_channels, 3, padding=1))
        )
        if self.predict_codebook_ids:
            self.id_predictor = nn.Sequential(normalization(plan.out_channels), conv_nd(dims, plan.out_channels, n_embed, 1))

    def forward(
        self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None, y: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """The prediction for noisy latents: (B, out_channels, h, w), or (B, n_embed, h, w) logits.

        x: (B, in_channels, h, w), sides divisible by 2^(levels - 1); timesteps: (B,); context: (B, M, context_dim);
        y: (B,) class labels, if and only if the model has classes. Other keyword arguments are ignored.
        """
        blocks = weight_dtype(self.input_blocks)
        emb = self.embed(timesteps, y).to(blocks)                               # (B, 4 model_channels)
        context = None if context is None else context.to(blocks)
        h, skips = self.descend(x.to(blocks), emb, context)                     # (B, c, h / 2^last, w / 2^last)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, context)         # … (B, c_0, h, w)

        head = self.id_predictor if self.predict_codebook_ids else self.out
        return head(h.to(weight_dtype(head)))
