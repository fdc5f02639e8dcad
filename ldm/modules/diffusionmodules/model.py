"""The convolutional networks of the first stage, Encoder and Decoder, and a UNet (Model) of the same blocks.

Picture (B, in_channels, H, W) -> Encoder -> (B, z_channels or twice as many, h, w) with h = H / 2^(levels - 1); Decoder goes back.
Each level has residual blocks of one width; attention follows each block of the levels whose nominal size is listed in `attn_resolutions`.
Architecture: Esser et al. 2020 (arXiv 2012.09841), after the UNet of Ho et al. 2020 (arXiv 2006.11239).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.autoencoder_blocks import (
    AttnBlock,
    Downsample,
    LinAttnBlock,
    Normalize,
    ResnetBlock,
    Upsample,
    get_timestep_embedding,
    make_attn,
    nonlinearity,
    normed,
)

__all__ = [
    "AttnBlock",
    "Decoder",
    "Downsample",
    "Encoder",
    "LinAttnBlock",
    "Model",
    "Normalize",
    "ResnetBlock",
    "Upsample",
    "get_timestep_embedding",
    "make_attn",
    "nonlinearity",
]


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


def _regroup(network: nn.Module, groups: int) -> None:
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            if module.num_channels % groups:
                raise ValueError(f"num_norm_groups is {groups}, which does not divide the {module.num_channels} channels of a level")
            module.num_groups = groups


class Encoder(nn.Module):
    """Picture (B, in_channels, H, W) -> features (B, z_channels, h, w), twice the channels with `double_z` (means and log-variances).

    ch: width of the first level, times `ch_mult` per level; resolution: the nominal H, used only to find the levels of `attn_resolutions`.
    num_norm_groups: of each group normalisation. 32 groups of a 32-channel level are single channels, whose means, and with them
        the colours, are normalised away; a narrow network needs fewer.
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
        num_norm_groups: int = 32,
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
        _regroup(self, num_norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level, stage in enumerate(self.down):
            h = stage(h)
            if level < self.num_resolutions - 1:
                h = stage.downsample(h)
        h = self.mid(h)
        return self.conv_out(normed(h, self.norm_out))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) -> picture (B, out_ch, H, W), with one block a level more than the Encoder.

    give_pre_end: return the features before the last normalisation; tanh_out: squash the picture into [-1, 1].
    num_norm_groups: as for the Encoder. in_channels and other keys of a `ddconfig` belong to the Encoder. `up[0]` is the finest level.
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
        num_norm_groups: int = 32,
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
        _regroup(self, num_norm_groups)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(range(self.num_resolutions)):
            h = self.up[level](h)
            if level > 0:
                h = self.up[level].upsample(h)
        if self.give_pre_end:
            return h
        h = self.conv_out(normed(h, self.norm_out))
        return torch.tanh(h) if self.tanh_out else h


class _TimeEmbedding(nn.Module):
    """Timesteps (B,) -> (B, width), by sines and a perceptron with one hidden layer."""

    def __init__(self, frequencies: int, width: int):
        super().__init__()
        self.frequencies = frequencies
        self.dense = nn.ModuleList([nn.Linear(frequencies, width), nn.Linear(width, width)])

    def forward(self, t: Tensor) -> Tensor:
        hidden, out = self.dense
        return out(nonlinearity(hidden(get_timestep_embedding(t, self.frequencies))))


class Model(nn.Module):
    """The UNet of Ho et al. 2020: (B, in_channels, H, W), and t (B,) with `use_timestep`, -> (B, out_ch, H, W).

    On the way up each block also gets the features that the way down left at its resolution, the latest first.
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
        use_timestep: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
    ):
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        self.ch = ch
        self.temb_ch = 4 * ch
        self.num_resolutions = len(ch_mult)
        self.num_res_blocks = num_res_blocks
        self.resolution = resolution
        self.in_channels = in_channels
        self.use_timestep = use_timestep
        if use_timestep:
            self.temb = _TimeEmbedding(ch, self.temb_ch)

        def level_of(widths: Sequence[int], width: int, size: int) -> _Level:
            return _Level(widths, width, attn_type if size in attn_resolutions else None, dropout, self.temb_ch)

        sizes = _sizes(resolution, self.num_resolutions)
        self.conv_in = nn.Conv2d(in_channels, ch, kernel_size=3, padding=1)
        kept = [ch]  # widths of the features that the way up will want, in the order in which they arise
        self.down = nn.ModuleList()
        for level, size in enumerate(sizes):
            incoming, width = kept[-1], ch * ch_mult[level]
            stage = level_of([incoming] + [width] * (num_res_blocks - 1), width, size)
            kept += [width] * num_res_blocks
            if level < self.num_resolutions - 1:
                stage.downsample = Downsample(width, resamp_with_conv)
                kept.append(width)
            self.down.append(stage)
        self.mid = _Middle(width, attn_type, dropout, self.temb_ch)
        stages = []  # coarsest first, as the data goes
        for level in reversed(range(self.num_resolutions)):
            incoming, width = width, ch * ch_mult[level]
            stage = level_of([own + kept.pop() for own in [incoming] + [width] * num_res_blocks], width, sizes[level])
            if level > 0:
                stage.upsample = Upsample(width, resamp_with_conv)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))
        self.norm_out = Normalize(width)
        self.conv_out = nn.Conv2d(width, out_ch, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """context: (B, C, H, W), joined to x on the channels, which `in_channels` counts. Raises ValueError if a timestep is needed and missing."""
        if self.use_timestep and t is None:
            raise ValueError("this network was built with use_timestep: true; pass t, one timestep a sample")
        temb = self.temb(t) if self.use_timestep else None
        h = self.conv_in(x if context is None else torch.cat([x, context], dim=1))
        kept = [h]
        for level, stage in enumerate(self.down):
            for index in range(self.num_res_blocks):
                h = stage.step(index, h, temb)
                kept.append(h)
            if level < self.num_resolutions - 1:
                h = stage.downsample(h)
                kept.append(h)
        h = self.mid(h, temb)
        for level in reversed(range(self.num_resolutions)):
            stage = self.up[level]
            for index in range(self.num_res_blocks + 1):
                h = stage.step(index, torch.cat([h, kept.pop()], dim=1), temb)
            if level > 0:
                h = stage.upsample(h)
        return self.conv_out(normed(h, self.norm_out))

    def get_last_layer(self) -> nn.Parameter:
        return self.conv_out.weight
