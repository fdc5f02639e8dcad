"""Stand-in for the published repository: time embedding, noise tables by step, norms."""
import math

import torch
from torch import nn


class GroupNorm32(nn.GroupNorm):
    """Computed in float32, returned as it came."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def normalization(channels):
    return GroupNorm32(32, channels)


def timestep_embedding(t, width):
    """(B,) -> (B, width): cosines, then sines, at frequencies 10000^(-i / half); an odd width ends in a zero."""
    half = width // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half).to(t.device)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(waves, (0, width % 2))


def extract_into_tensor(a, t, x_shape):
    """a[t] (B,) with ones behind, to be multiplied with a tensor of x_shape."""
    return a.gather(-1, t).reshape(len(t), *[1] * (len(x_shape) - 1))
