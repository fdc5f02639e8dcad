"""The lower half of the denoising network with a pooling head: from noisy pictures to a vector."""
from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from torch import Tensor, nn

from ldm.modules.diffusionmodules.block_plan import HeadRule, plan_unet
from ldm.modules.diffusionmodules.pixel_attention import AttentionPool2d
from ldm.modules.diffusionmodules.stages import StageBuilder
from ldm.modules.diffusionmodules.torso import Torso, weight_dtype
from ldm.modules.diffusionmodules.util import conv_nd, normalization, zero_module

_ADAPTIVE_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class EncoderUNetModel(Torso):
    """From noisy pictures and timesteps to vectors, e.g. class logits.

    pool: "adaptive" (the mean over positions, zero at the start) or "attention" (`AttentionPool2d`; needs `num_head_channels`).
    The other arguments as in `UNetModel`; what is given beyond them is ignored.
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
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
        *args: Any,
        **kwargs: Any,
    ):
        plan = plan_unet(model_channels, channel_mult, num_res_blocks, attention_resolutions, HeadRule(num_heads, num_head_channels))
        stages = StageBuilder(
            emb_channels=4 * model_channels,
            dropout=dropout,
            dims=dims,
            conv_resample=conv_resample,
            use_checkpoint=use_checkpoint,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
        )
        super().__init__(in_channels, model_channels, plan, stages, num_classes=None, use_fp16=use_fp16)
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
        self._feature_size = model_channels + sum(stage.out_channels for stage in (*plan.down, plan.middle))
        self.pool = pool
        width = plan.middle.out_channels
        if pool == "adaptive":
            head = [_ADAPTIVE_POOLS[dims](1), zero_module(conv_nd(dims, width, out_channels, 1)), nn.Flatten()]
        elif pool == "attention":
            if num_head_channels == -1:
                raise ValueError("pool: attention needs num_head_channels, the width of its heads")
            head = [AttentionPool2d(image_size // 2 ** (len(channel_mult) - 1), width, num_head_channels, out_channels)]
        else:
            raise ValueError(f"pool is {pool!r}; it must be adaptive or attention")
        self.out = nn.Sequential(normalization(width), nn.SiLU(), *head)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """x: (B, in_channels, image_size, image_size); timesteps: (B,). Returns (B, out_channels)."""
        blocks = weight_dtype(self.input_blocks)
        h, _ = self.descend(x.to(blocks), self.embed(timesteps).to(blocks))
        return self.out(h.to(weight_dtype(self.out)))
