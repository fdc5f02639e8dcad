"""What the first stage's networks are made of: residual block, attention over pixels, change of size, timestep embedding.

After the UNet of Ho et al. 2020 (arXiv 2006.11239), as Esser et al. 2020 (arXiv 2012.09841) use it in autoencoders.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import LinearAttention

LONGEST_PERIOD = 10_000.0


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """Sines, then cosines, of t at `embedding_dim // 2` frequencies: (B,) -> (B, embedding_dim); odd widths end in a zero.

    Frequencies fall geometrically from 1 to exactly 1 / 10000, as in tensor2tensor (Vaswani et al. 2017, section 3.5, divides by half the
    width instead of half the width less one).
    """
    if timesteps.ndim != 1:
        raise ValueError(f"timesteps must be a vector, one entry a sample; got shape {tuple(timesteps.shape)}")
    half = embedding_dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - 1)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * exponents)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, embedding_dim % 2))


def nonlinearity(x: Tensor) -> Tensor:
    """Swish, x * sigmoid(x)."""
    return F.silu(x)


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """Swish of norm(x). Without gradients nobody needs the norm's own answer, and it is overwritten: a decoder's largest maps fill 256 MiB each."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def Normalize(in_channels: int, num_groups: int = 32) -> nn.GroupNorm:
    """Group normalisation with this codebase's epsilon; `in_channels` must be a multiple of `num_groups`."""
    return nn.GroupNorm(num_groups, in_channels, eps=1e-6, affine=True)


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then (with_conv) a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, in_channels: int, with_conv: bool):
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.with_conv else x


class Downsample(nn.Module):
    """Half the size, by a 3x3 convolution with stride 2 or else by averaging 2x2 pixels: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, in_channels: int, with_conv: bool):
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.with_conv:
            return F.avg_pool2d(x, kernel_size=2)
        # One zero on the right and below alone: published weights were trained with this lopsided border.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """x + two convolutions of x, each after normalisation and swish; with `temb_channels` the timestep embedding is added between them.

    conv_shortcut: where the width changes, x passes a 3x3 instead of a 1x1 convolution.
    """

    def __init__(self, *, in_channels: int, out_channels: int | None = None, conv_shortcut: bool = False, dropout: float, temb_channels: int = 512):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels = in_channels if out_channels is None else out_channels
        self.use_conv_shortcut = conv_shortcut
        self.norm1 = Normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        if temb_channels > 0:
            self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = Normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        if in_channels != out_channels:
            if conv_shortcut:
                self.conv_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
            else:
                self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        """x: (B, in_channels, H, W); temb: (B, temb_channels), or None in networks that know no time."""
        h = self.conv1(normed(x, self.norm1))
        if temb is not None:
            h = h + self.temb_proj(nonlinearity(temb))[:, :, None, None]
        h = self.conv2(self.dropout(normed(h, self.norm2)))
        if self.in_channels == self.out_channels:
            return x + h
        shortcut = self.conv_shortcut if self.use_conv_shortcut else self.nin_shortcut
        return shortcut(x) + h


class AttnBlock(nn.Module):
    """x + self-attention over all positions, one head as wide as x."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.in_channels = in_channels
        self.norm = Normalize(in_channels)
        self.q = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.k = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.v = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2).unsqueeze(1) for project in (self.q, self.k, self.v))  # (B, 1, H*W, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class LinAttnBlock(LinearAttention):
    """Linear attention, one head as wide as x, in the place of AttnBlock; unlike that it neither normalises nor adds x."""

    def __init__(self, in_channels: int):
        super().__init__(dim=in_channels, heads=1, dim_head=in_channels)


ATTENTION = {"vanilla": AttnBlock, "linear": LinAttnBlock, "none": nn.Identity}


def make_attn(in_channels: int, attn_type: str = "vanilla") -> nn.Module:
    """The attention that `attn_type` names; ValueError for a name that is not in ATTENTION."""
    if attn_type not in ATTENTION:
        raise ValueError(f"attn_type is {attn_type!r}; expected one of {', '.join(ATTENTION)}")
    return ATTENTION[attn_type](in_channels)
