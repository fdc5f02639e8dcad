"""The shape of the denoising network, before any module exists: which blocks, how wide, with how many attention heads.

A level has half the resolution of the one before it. On the way down each level is `num_res_blocks` residual stages and, but for the last,
a halving; on the way up one residual stage more, each of which also takes the output of its counterpart on the way down.
"""
from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from ldm.modules.diffusionmodules.util import NORM_GROUPS


@dataclass(frozen=True)
class Heads:
    """What an attention module is told: how many heads, and how wide (-1: what the count leaves)."""

    count: int
    width: int


@dataclass(frozen=True)
class HeadRule:
    """From the network's settings to the heads at a place with so many channels.

    -1 stands for "not given". `legacy`, the rule of the models published before text-to-image, ignores a width that was derived from
    a count (without the spatial transformer) or derives it again from the count (with it).
    """

    num_heads: int = -1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    legacy: bool = True
    spatial_transformer: bool = False

    def __post_init__(self) -> None:
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ValueError("num_heads and num_head_channels are both -1: give one of them, it decides the attention heads")

    def at(self, channels: int, *, upward: bool = False) -> Heads:
        """The heads at a place with `channels` channels; `upward`: on the way up, where a network may have another count."""
        given_width = self.num_head_channels != -1
        count = channels // self.num_head_channels if given_width else self.num_heads
        if count < 1:
            raise ValueError(f"num_head_channels {self.num_head_channels} is wider than the {channels} channels it shall share out")
        if not self.legacy:
            width = self.num_head_channels if given_width else channels // count
        elif self.spatial_transformer:
            width = channels // count
        else:
            width = self.num_head_channels
        if upward and self.num_heads_upsample != -1 and not self.spatial_transformer:
            count = self.num_heads_upsample                     # an attention block looks at it only where the width is -1
        return Heads(count, width)


@dataclass(frozen=True)
class ResStage:
    """A residual block, attention after it unless `heads` is None, then a doubling of the resolution if `upsample`."""

    in_channels: int
    out_channels: int
    heads: Heads | None = None
    upsample: bool = False


@dataclass(frozen=True)
class DownStage:
    """A halving of the resolution."""

    out_channels: int


@dataclass(frozen=True)
class UNetPlan:
    """The stages after the first convolution: down, middle (block, attention, block), up."""

    down: tuple[ResStage | DownStage, ...]
    middle: ResStage
    up: tuple[ResStage, ...]

    @property
    def out_channels(self) -> int:
        """Channels of the last stage on the way up."""
        return self.up[-1].out_channels


def plan_unet(
    model_channels: int, channel_mult: Sequence[int], num_res_blocks: int, attention_resolutions: Container[int], head_rule: HeadRule
) -> UNetPlan:
    """The stages of a network whose level i has model_channels · channel_mult[i] channels.

    attention_resolutions: the factors by which the picture is down-sampled where there is attention (1: full resolution).
    Raises ValueError where a width does not fit the norm's 32 groups.
    """
    widths = [model_channels * factor for factor in channel_mult]
    for width in (model_channels, *widths):
        if width % NORM_GROUPS:
            raise ValueError(
                f"model_channels {model_channels} with channel_mult {list(channel_mult)} makes {width} channels; the norms need multiples of {NORM_GROUPS}"
            )
    last = len(widths) - 1

    def heads(level: int, upward: bool) -> Heads | None:
        return head_rule.at(widths[level], upward=upward) if 2**level in attention_resolutions else None

    down: list[ResStage | DownStage] = []
    channels = model_channels
    for level, width in enumerate(widths):
        for _ in range(num_res_blocks):
            down.append(ResStage(channels, width, heads(level, upward=False)))
            channels = width
        if level < last:
            down.append(DownStage(width))

    middle = ResStage(channels, channels, head_rule.at(channels))

    skips = [model_channels, *(stage.out_channels for stage in down)]
    up: list[ResStage] = []
    for level in range(last, -1, -1):
        for block in range(num_res_blocks + 1):
            upsample = level > 0 and block == num_res_blocks
            up.append(ResStage(channels + skips.pop(), widths[level], heads(level, upward=True), upsample))
            channels = widths[level]
    return UNetPlan(tuple(down), middle, tuple(up))
