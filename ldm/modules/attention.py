"""Attention over pictures and text: softmax attention, the transformer block of the denoising network, two attention layers of the first stages.

Attention(q, k, v) = softmax(q kᵀ / sqrt(d)) v (Vaswani et al. 2017, arXiv 1706.03762); its place in the network: Rombach et al. 2022
(arXiv 2112.10752), section 3.3. Shapes: B batch, N queries, M keys, H heads of width d, c channels, (h, w) picture.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import checkpoint as run_checkpointed
from ldm.modules.diffusionmodules.util import zero_module
from ldm.modules.linear import Linear
from ldm.util import default, exists

__all__ = [
    "BasicTransformerBlock",
    "CrossAttention",
    "FeedForward",
    "GEGLU",
    "LinearAttention",
    "Normalize",
    "SpatialSelfAttention",
    "SpatialTransformer",
    "default",
    "exists",
    "zero_module",
]


def Normalize(in_channels: int) -> nn.GroupNorm:
    """The norm of the transformers and of the first stages: 32 groups, eps 1e-6."""
    return nn.GroupNorm(num_groups=32, num_channels=in_channels, eps=1e-6, affine=True)


def to_tokens(picture: Tensor) -> Tensor:
    """(B, c, h, w) → (B, h w, c), channel beside channel in memory: what comes after reads it so, a view would be turned around each time."""
    return picture.flatten(2).transpose(1, 2).contiguous()


def to_picture(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, h w, c) → (B, c, h, w), the height and width those of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of `heads` heads: q (B, N, H d), k and v (B, M, H d) → (B, N, H d).

    mask: (B, M) bool, the keys that may be looked at; a row without any yields zeros.
    """
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))      # (B, H, ·, d)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
    return out.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Multi-head attention from a sequence to a context, or to itself where none is given."""

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64, dropout: float = 0.0):
        super().__init__()
        inner_dim = heads * dim_head
        self.scale = dim_head**-0.5
        self.heads = heads
        self.to_q = Linear(query_dim, inner_dim, bias=False)
        self.to_k = Linear(default(context_dim, query_dim), inner_dim, bias=False)
        self.to_v = Linear(default(context_dim, query_dim), inner_dim, bias=False)
        self.to_out = nn.Sequential(Linear(inner_dim, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x: (B, N, query_dim); context: (B, M, context_dim); mask: (B, M) or (B, …) with M entries, bool, true = attend. Returns (B, N, query_dim)."""
        context = default(context, x)
        mask = None if mask is None else mask.flatten(1)
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads, mask))


class GEGLU(nn.Module):
    """value · GELU(gate), both linear in x (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers with GELU, gated if `glu`, between them; the hidden width is `mult` times `dim`."""

    def __init__(self, dim: int, dim_out: int | None = None, mult: float = 4, glu: bool = False, dropout: float = 0.0):
        super().__init__()
        hidden = int(dim * mult)
        widen = GEGLU(dim, hidden) if glu else nn.Sequential(Linear(dim, hidden), nn.GELU())
        self.net = nn.Sequential(widen, nn.Dropout(dropout), Linear(hidden, default(dim_out, dim)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; each on a layer norm of its input and added to it."""

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        checkpoint: bool = True,
    ):
        super().__init__()
        self.attn1 = CrossAttention(dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.ff = FeedForward(dim, glu=gated_ff, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim=context_dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, dim); context: (B, M, context_dim), or None to attend to x itself. Returns (B, N, dim)."""
        return run_checkpointed(self._forward, (x, context), self.parameters(), self.checkpoint)

    def _forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context=context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, added to it; begins as the identity.

    context_dim: the width of the context, or one width a block. New here: `use_checkpoint` (keyword) hands checkpointing to the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | Sequence[int] | None = None,
        *,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        inner_dim = n_heads * d_head
        self.in_channels = in_channels
        self.norm = Normalize(in_channels)
        self.proj_in = nn.Conv2d(in_channels, inner_dim, kernel_size=1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner_dim, n_heads, d_head, dropout=dropout, context_dim=width, checkpoint=use_checkpoint)
            for width in _one_per_block(context_dim, depth)
        )
        self.proj_out = zero_module(nn.Conv2d(inner_dim, in_channels, kernel_size=1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, in_channels, h, w); context: (B, M, context_dim). Returns the shape of x."""
        tokens = to_tokens(self.proj_in(self.norm(x)))                 # (B, h w, H d)
        for block in self.transformer_blocks:
            tokens = block(tokens, context=context)
        return x + self.proj_out(to_picture(tokens, like=x))


def _one_per_block(context_dim: int | Sequence[int] | None, depth: int) -> list[int | None]:
    widths = [context_dim] if context_dim is None or isinstance(context_dim, int) else list(context_dim)
    if len(widths) not in (1, depth):
        raise ValueError(f"context_dim has {len(widths)} entries, {widths}; give one, or one for each of the {depth} transformer blocks")
    return widths * depth if len(widths) == 1 else widths


class SpatialSelfAttention(nn.Module):
    """Single-head attention among the positions of a feature map, added to it."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.in_channels = in_channels
        self.norm = Normalize(in_channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(in_channels, in_channels, kernel_size=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → the same shape."""
        normed = self.norm(x)
        q, k, v = (to_tokens(project(normed)) for project in (self.q, self.k, self.v))
        return x + self.proj_out(to_picture(attend(q, k, v, heads=1), like=x))


class LinearAttention(nn.Module):
    """Attention whose cost grows linearly with the positions: keys are normalised over positions and contracted with the values first.

    Shen et al. 2021 (arXiv 1812.01243), with the softmax on the keys alone; no norm, no residual.
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, kernel_size=1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, h, w) → the same shape."""
        q, k, v = self.to_qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)     # (B, H, d, h w) each
        summary = k.softmax(dim=-1) @ v.transpose(-1, -2)                                  # (B, H, d of k, d of v)
        return self.to_out((summary.transpose(-1, -2) @ q).flatten(1, 2).unflatten(2, x.shape[2:]))
