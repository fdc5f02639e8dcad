"""What the levels of the denoising network are made of: residual blocks that take in the timestep, changes of resolution.

Block design: Ho et al. 2020 (arXiv 2006.11239) with the scale-shift norm and the resampling blocks of Dhariwal & Nichol 2021 (arXiv 2105.05233).
Shapes: B batch, C channels, emb (B, E) the embedding of timestep and class, context (B, M, d).
"""
from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import avg_pool_nd, checkpoint, conv_nd, linear, normalization, zero_module


class TimestepBlock(nn.Module):
    """A module that wants the timestep embedding beside its input."""

    @abstractmethod
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, C, …); emb: (B, E)."""


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """A sequence in which each layer gets what it understands: the embedding, the context, or the features alone."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def _stride(dims: int) -> int | tuple[int, ...]:
    """Halve or double height and width; in three dimensions the first one (depth, time) keeps its length."""
    return (1, 2, 2) if dims == 3 else 2


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution of width 3 if `use_conv`."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1):
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.dims = dims
        if use_conv:
            self.conv = conv_nd(dims, self.channels, self.out_channels, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels, f"built for {self.channels} channels, got {x.shape[1]}"
        x = F.interpolate(x, scale_factor=_stride(self.dims), mode="nearest")
        return self.conv(x) if self.use_conv else x


class TransposedUpsample(nn.Module):
    """Learned doubling by a transposed convolution without padding: a side of n becomes 2 (n - 1) + ks."""

    def __init__(self, channels: int, out_channels: int | None = None, ks: int = 5):
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.up = nn.ConvTranspose2d(self.channels, self.out_channels, kernel_size=ks, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class Downsample(nn.Module):
    """Halving, by a convolution of width 3 and stride 2 if `use_conv`, else by averaging pairs."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1):
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.dims = dims
        stride = _stride(dims)
        if use_conv:
            self.op = conv_nd(dims, self.channels, self.out_channels, 3, stride=stride, padding=padding)
        elif self.out_channels != self.channels:
            raise ValueError(f"averaging keeps the {self.channels} channels; {self.out_channels} need use_conv=True (conv_resample: True)")
        else:
            self.op = avg_pool_nd(dims, kernel_size=stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels, f"built for {self.channels} channels, got {x.shape[1]}"
        return self.op(x)


class ResBlock(TimestepBlock):
    """Two convolutions with the timestep embedding in between, added to a skip connection; begins as that connection.

    use_conv: a changed channel count is met by a convolution of width 3 on the skip connection instead of 1.
    use_scale_shift_norm: the embedding scales and shifts the second norm instead of being added before it.
    up, down: double or halve the resolution inside the block.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ):
        super().__init__()
        self.channels = channels
        self.emb_channels = emb_channels
        self.dropout = dropout
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.updown = up or down

        self.in_layers = nn.Sequential(normalization(channels), nn.SiLU(), conv_nd(dims, channels, self.out_channels, 3, padding=1))
        resample = Upsample if up else Downsample
        self.h_upd, self.x_upd = (resample(channels, False, dims) if self.updown else nn.Identity() for _ in range(2))
        self.emb_layers = nn.Sequential(nn.SiLU(), linear(emb_channels, self.out_channels * (2 if use_scale_shift_norm else 1)))
        self.out_layers = nn.Sequential(
            normalization(self.out_channels),
            nn.SiLU(),
            nn.Dropout(p=dropout),
            zero_module(conv_nd(dims, self.out_channels, self.out_channels, 3, padding=1)),
        )
        if self.out_channels == channels:
            self.skip_connection = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 3, padding=1)
        else:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, channels, …); emb: (B, emb_channels). Returns (B, out_channels, …), at twice or half the resolution with `up` or `down`."""
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm_in, act_in, conv_in = self.in_layers
        norm_out, *rest_out = self.out_layers

        h = conv_in(self.h_upd(act_in(norm_in(x))))
        condition = self.emb_layers(emb).to(h.dtype)
        condition = condition[(..., *(None,) * (h.dim() - condition.dim()))]           # (B, C or 2 C, 1, …)
        if self.use_scale_shift_norm:
            scale, shift = condition.chunk(2, dim=1)
            h = norm_out(h) * (1 + scale) + shift
        else:
            h = norm_out(h + condition)
        for layer in rest_out:
            h = layer(h)
        return self.skip_connection(self.x_upd(x)) + h
