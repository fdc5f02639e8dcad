"""The convolutional networks of the first stage: Encoder, Decoder, and a UNet (Model) of the same blocks.

Picture (B, in_channels, H, W) -> Encoder -> (B, z_channels or twice as many, h, w) with h = H / 2^(levels - 1); Decoder goes back.
Each level has residual blocks of one width; attention follows each block of the levels whose nominal size is listed in `attn_resolutions`.
Architecture: Esser et al. 2020 (arXiv 2012.09841), after the UNet of Ho et al. 2020 (arXiv 2006.11239).
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        h = self.conv1(nonlinearity(self.norm1(x)))
        if temb is not None:
            h = h + self.temb_proj(nonlinearity(temb))[:, :, None, None]
        h = self.conv2(self.dropout(nonlinearity(self.norm2(h))))
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


def make_attn(in_channels: int, attn_type: str = "vanilla") -> nn.Module:
    """The attention that `attn_type` names: vanilla (AttnBlock) or none (the identity)."""
    kinds = {"vanilla": AttnBlock, "none": nn.Identity}
    if attn_type not in kinds:
        raise ValueError(f"attn_type is {attn_type!r}; known are {', '.join(kinds)}")
    return kinds[attn_type](in_channels)


class _Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, attn_type: str, dropout: float, temb_channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(in_channels=channels, dropout=dropout, temb_channels=temb_channels)
        self.attn_1 = make_attn(channels, attn_type)
        self.block_2 = ResnetBlock(in_channels=channels, dropout=dropout, temb_channels=temb_channels)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, temb)), temb)


class _Level(nn.Module):
    """The blocks of one resolution, each followed by attention if `attn_type` is given.

    widths: channels that come into each block; out_channels: that leave each of them.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, attn_type: str | None, dropout: float, temb_channels: int):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels=width, out_channels=out_channels, dropout=dropout, temb_channels=temb_channels) for width in widths
        )
        self.attn = nn.ModuleList(make_attn(out_channels, attn_type) for _ in widths if attn_type is not None)

    def step(self, index: int, x: Tensor, temb: Tensor | None) -> Tensor:
        """Block `index` and the attention after it."""
        x = self.block[index](x, temb)
        return self.attn[index](x) if self.attn else x

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        for index in range(len(self.block)):
            x = self.step(index, x, temb)
        return x


def _sizes(resolution: int, levels: int) -> list[int]:
    """Nominal side length of the feature maps of each level, finest first."""
    return [resolution // 2**level for level in range(levels)]


class Encoder(nn.Module):
    """Picture (B, in_channels, H, W) -> features (B, z_channels, h, w), twice the channels with `double_z` (means and log-variances).

    ch: width of the first level, times `ch_mult` per level; resolution: the nominal H, used only to find the levels of `attn_resolutions`.
    out_ch and other keys of a `ddconfig` belong to the Decoder.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        **ignore_kwargs,
    ):
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        self.ch = ch
        self.temb_ch = 0
        self.num_resolutions = len(ch_mult)
        self.num_res_blocks = num_res_blocks
        self.resolution = resolution
        self.in_channels = in_channels
        self.in_ch_mult = (1, *ch_mult)

        self.conv_in = nn.Conv2d(in_channels, ch, kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        for level, size in enumerate(_sizes(resolution, self.num_resolutions)):
            incoming, width = ch * self.in_ch_mult[level], ch * ch_mult[level]
            stage = _Level(
                [incoming] + [width] * (num_res_blocks - 1), width, attn_type if size in attn_resolutions else None, dropout, self.temb_ch
            )
            if level < self.num_resolutions - 1:
                stage.downsample = Downsample(width, resamp_with_conv)
            self.down.append(stage)
        self.mid = _Middle(width, attn_type, dropout, self.temb_ch)
        self.norm_out = Normalize(width)
        self.conv_out = nn.Conv2d(width, 2 * z_channels if double_z else z_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level, stage in enumerate(self.down):
            h = stage(h)
            if level < self.num_resolutions - 1:
                h = stage.downsample(h)
        h = self.mid(h)
        return self.conv_out(nonlinearity(self.norm_out(h)))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) -> picture (B, out_ch, H, W), with one block a level more than the Encoder.

    give_pre_end: return the features before the last normalisation; tanh_out: squash the picture into [-1, 1].
    in_channels and other keys of a `ddconfig` belong to the Encoder. `up[0]` is the finest level.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        **ignorekwargs,
    ):
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        self.ch = ch
        self.temb_ch = 0
        self.num_resolutions = len(ch_mult)
        self.num_res_blocks = num_res_blocks
        self.resolution = resolution
        self.in_channels = in_channels
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        sizes = _sizes(resolution, self.num_resolutions)
        self.z_shape = (1, z_channels, sizes[-1], sizes[-1])

        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, kernel_size=3, padding=1)
        self.mid = _Middle(width, attn_type, dropout, self.temb_ch)
        stages = []  # coarsest first, as the data goes
        for level in reversed(range(self.num_resolutions)):
            incoming, width = width, ch * ch_mult[level]
            stage = _Level([incoming] + [width] * num_res_blocks, width, attn_type if sizes[level] in attn_resolutions else None, dropout, self.temb_ch)
            if level > 0:
                stage.upsample = Upsample(width, resamp_with_conv)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))
        self.norm_out = Normalize(width)
        self.conv_out = nn.Conv2d(width, out_ch, kernel_size=3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(range(self.num_resolutions)):
            h = self.up[level](h)
            if level > 0:
                h = self.up[level].upsample(h)
        if self.give_pre_end:
            return h
        h = self.conv_out(nonlinearity(self.norm_out(h)))
        return torch.tanh(h) if self.tanh_out else h
