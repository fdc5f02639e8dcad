"""From the stages of a plan to modules, with the settings that all stages of a network share."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.block_plan import DownStage, Heads, ResStage
from ldm.modules.diffusionmodules.blocks import Downsample, ResBlock, TimestepEmbedSequential, Upsample
from ldm.modules.diffusionmodules.pixel_attention import AttentionBlock


@dataclass(frozen=True)
class StageBuilder:
    """Builds stages; its fields are named as the arguments of `UNetModel`, `emb_channels` is the width of the timestep embedding."""

    emb_channels: int
    dropout: float = 0.0
    dims: int = 2
    conv_resample: bool = True
    use_checkpoint: bool = False
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | Sequence[int] | None = None

    def res_block(self, channels: int, out_channels: int, **resample: Any) -> ResBlock:
        """A residual block; `resample`: up=True or down=True."""
        return ResBlock(
            channels,
            self.emb_channels,
            self.dropout,
            out_channels=out_channels,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
            use_scale_shift_norm=self.use_scale_shift_norm,
            **resample,
        )

    def attention(self, channels: int, heads: Heads) -> nn.Module:
        """What follows a residual block where the plan has heads."""
        if self.use_spatial_transformer:
            return SpatialTransformer(
                channels, heads.count, heads.width, depth=self.transformer_depth, context_dim=self.context_dim, use_checkpoint=self.use_checkpoint
            )
        return AttentionBlock(
            channels,
            num_heads=heads.count,
            num_head_channels=heads.width,
            use_checkpoint=self.use_checkpoint,
            use_new_attention_order=self.use_new_attention_order,
        )

    def down(self, stage: ResStage | DownStage) -> TimestepEmbedSequential:
        """A stage on the way down."""
        if isinstance(stage, ResStage):
            return TimestepEmbedSequential(*self._layers(stage))
        width = stage.out_channels
        if self.resblock_updown:
            return TimestepEmbedSequential(self.res_block(width, width, down=True))
        return TimestepEmbedSequential(Downsample(width, self.conv_resample, dims=self.dims))

    def middle(self, stage: ResStage) -> TimestepEmbedSequential:
        """The lowest stage: block, attention, block."""
        return TimestepEmbedSequential(*self._layers(stage), self.res_block(stage.out_channels, stage.out_channels))

    def up(self, stage: ResStage) -> TimestepEmbedSequential:
        """A stage on the way up."""
        layers = self._layers(stage)
        if stage.upsample:
            width = stage.out_channels
            layers.append(self.res_block(width, width, up=True) if self.resblock_updown else Upsample(width, self.conv_resample, dims=self.dims))
        return TimestepEmbedSequential(*layers)

    def _layers(self, stage: ResStage) -> list[nn.Module]:
        layers: list[nn.Module] = [self.res_block(stage.in_channels, stage.out_channels)]
        if stage.heads is not None:
            layers.append(self.attention(stage.out_channels, stage.heads))
        return layers
