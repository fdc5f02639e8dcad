"""What the denoising network and its encoder-only sibling share: embedding of timestep and class, the way down, the middle."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.block_plan import UNetPlan
from ldm.modules.diffusionmodules.blocks import TimestepEmbedSequential
from ldm.modules.diffusionmodules.stages import StageBuilder
from ldm.modules.diffusionmodules.util import conv_nd, linear, timestep_embedding


def weight_dtype(module: nn.Module) -> torch.dtype:
    """The precision a module's weights are kept in."""
    return next(module.parameters()).dtype


class Torso(nn.Module):
    """Base of the networks: holds `time_embed`, `label_emb` (with classes), `input_blocks`, `middle_block`."""

    def __init__(self, in_channels: int, model_channels: int, plan: UNetPlan, stages: StageBuilder, num_classes: int | None, use_fp16: bool):
        super().__init__()
        width = stages.emb_channels
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.dtype = torch.float16 if use_fp16 else torch.float32
        self.time_embed = nn.Sequential(linear(model_channels, width), nn.SiLU(), linear(width, width))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, width)
        stem = TimestepEmbedSequential(conv_nd(stages.dims, in_channels, model_channels, 3, padding=1))
        self.input_blocks = nn.ModuleList([stem, *(stages.down(stage) for stage in plan.down)])
        self.middle_block = stages.middle(plan.middle)

    def embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Timesteps (B,), and class labels (B,) if and only if there are classes, to (B, 4 model_channels). The sinusoids are float32."""
        if (y is None) != (self.num_classes is None):
            raise ValueError(f"num_classes is {self.num_classes}, but class labels y were {'not ' if y is None else ''}given")
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(weight_dtype(self.time_embed)))
        if y is None:
            return emb
        assert y.shape == timesteps.shape, f"labels of shape {tuple(y.shape)} for timesteps of shape {tuple(timesteps.shape)}"
        return emb + self.label_emb(y)

    def descend(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The features after the middle, and those after each stage on the way down."""
        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, emb, context)                    # (B, c_i, h / 2^i, w / 2^i)
            skips.append(h)
        return self.middle_block(h, emb, context), skips

    def convert_to_fp16(self) -> None:
        """Keep the blocks' weights in float16; the timestep embedding and the head stay as they are."""
        self._convert_blocks(torch.float16)

    def convert_to_fp32(self) -> None:
        """Bring the blocks' weights back to float32."""
        self._convert_blocks(torch.float32)

    def _convert_blocks(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        for name, module in self.named_children():
            if name.endswith(("_blocks", "_block")):
                module.to(dtype)
