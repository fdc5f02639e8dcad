"""Self-attention on feature maps of any dimension, channels first: the attention of models without a text condition.

Dhariwal & Nichol 2021 (arXiv 2105.05233). Shapes: B batch, H heads of d channels each, T positions.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import checkpoint, conv_nd, normalization, zero_module


class QKVAttention(nn.Module):
    """Softmax attention on queries, keys and values that lie stacked in the channels: all queries, then all keys, then all values."""

    def __init__(self, n_heads: int):
        super().__init__()
        self.n_heads = n_heads

    def split(self, qkv: Tensor) -> Tensor:
        """(B, 3 H d, T) → (B, 3, H, d, T)."""
        return qkv.unflatten(1, (3, self.n_heads, -1))

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, 3 H d, T) → (B, H d, T)."""
        q, k, v = self.split(qkv).transpose(-1, -2).unbind(1)         # (B, H, T, d) each
        return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)

    @staticmethod
    def count_flops(model: nn.Module, _x: Any, y: tuple[Tensor, ...]) -> None:
        """A counter for the `thop` package: adds the multiply-adds of the two T × T products to `model.total_ops`; y: the output, in a tuple."""
        batch, channels, *positions = y[0].shape
        pairs = torch.Size(positions).numel() ** 2
        model.total_ops += torch.tensor([2.0 * batch * channels * pairs], dtype=torch.float64)


class QKVAttentionLegacy(QKVAttention):
    """The same, but head by head: the first head's queries, keys and values, then the second's."""

    def split(self, qkv: Tensor) -> Tensor:
        return qkv.unflatten(1, (self.n_heads, 3, -1)).transpose(1, 2)


class AttentionBlock(nn.Module):
    """Self-attention among all positions of a feature map, added to it; begins as the identity.

    num_head_channels: the width of a head, which then decides their number; -1: `num_heads` does.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ):
        super().__init__()
        self.channels = channels
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        if self.num_heads < 1 or channels % self.num_heads or (num_head_channels != -1 and channels % num_head_channels):
            raise ValueError(f"{channels} channels cannot be shared out among heads with num_heads {num_heads}, num_head_channels {num_head_channels}")
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = conv_nd(1, channels, 3 * channels, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(self.num_heads)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, …) → the same shape."""
        return checkpoint(self._forward, (x,), self.parameters(), self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)                                           # (B, C, T)
        h = self.proj_out(self.attention(self.qkv(self.norm(flat))))
        return (flat + h).view_as(x)


class AttentionPool2d(nn.Module):
    """A feature map to one vector: attention in which the mean over positions is an extra position, and its answer is the result.

    Radford et al. 2021, CLIP (arXiv 2103.00020), section 2.4.
    """

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads_channels: int, output_dim: int | None = None):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(embed_dim, spacial_dim**2 + 1) / embed_dim**0.5)
        self.qkv_proj = conv_nd(1, embed_dim, 3 * embed_dim, 1)
        self.c_proj = conv_nd(1, embed_dim, output_dim or embed_dim, 1)
        self.num_heads = embed_dim // num_heads_channels
        self.attention = QKVAttention(self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, embed_dim, spacial_dim, spacial_dim) → (B, output_dim)."""
        positions = x.flatten(2)                                                                   # (B, C, T)
        positions = torch.cat([positions.mean(dim=-1, keepdim=True), positions], dim=-1)           # (B, C, 1 + T)
        positions = positions + self.positional_embedding.to(positions.dtype)
        return self.c_proj(self.attention(self.qkv_proj(positions)))[:, :, 0]
