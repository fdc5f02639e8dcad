"""Pictures in overlapping tiles: cut up, worked on tile by tile, blended together again.

For pictures larger than a network was made for: y = fold(w f(unfold(x))) / fold(w), w falling towards a tile's border so that no seam shows.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SMALLEST_WEIGHT, LARGEST_WEIGHT = 0.01, 0.5


class Tiling(NamedTuple):
    """fold and unfold between a picture and its L tiles; normalization (1, 1, H', W'): fold(w); weighting (1, 1, kh, kw, L): w."""

    fold: nn.Fold
    unfold: nn.Unfold
    normalization: Tensor
    weighting: Tensor


def meshgrid(h: int, w: int) -> Tensor:
    """Row and column of each place, (h, w, 2) int64."""
    return torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1)


def distance_to_border(h: int, w: int) -> Tensor:
    """(h, w) float32: distance to the nearest border as a fraction of the side, 0 on it and at most 0.5 in the middle."""
    place = meshgrid(h, w) / torch.tensor([max(h - 1, 1), max(w - 1, 1)])  # (h, w, 2), 0 … 1
    return torch.minimum(place, 1.0 - place).amin(dim=-1)


def weights(h: int, w: int, Ly: int, Lx: int, device: torch.device | str) -> Tensor:
    """Each tile's blending weights, (1, h w, Ly Lx): the distance to its border, kept in [0.01, 0.5]."""
    weight = distance_to_border(h, w).clamp(SMALLEST_WEIGHT, LARGEST_WEIGHT).to(device)
    return weight.view(1, h * w, 1).repeat(1, 1, Ly * Lx)


def tiling(x: Tensor, kernel_size: tuple[int, int], stride: tuple[int, int], uf: int = 1, df: int = 1) -> Tiling:
    """Tiles of x (B, C, H, W), `kernel_size` wide and `stride` apart, to be folded to a picture `uf` times larger or `df` times smaller.

    Raises ValueError where the tiles do not cover the picture, or cannot be made smaller by `df`.
    """
    size = x.shape[-2:]
    for side, kernel, step in zip(size, kernel_size, stride, strict=True):
        if kernel > side or (side - kernel) % step or step > kernel:
            raise ValueError(f"tiles of {tuple(kernel_size)} at a stride of {tuple(stride)} do not cover a picture of {tuple(size)}")
        if any(length % df for length in (side, kernel, step)):
            raise ValueError(f"picture {tuple(size)}, tile {tuple(kernel_size)} and stride {tuple(stride)} must be divisible by {df}")
    height, width = (kernel * uf // df for kernel in kernel_size)
    grid = [(side - kernel) // step + 1 for side, kernel, step in zip(size, kernel_size, stride, strict=True)]
    unfold = nn.Unfold(kernel_size=tuple(kernel_size), stride=tuple(stride))
    fold = nn.Fold(
        output_size=tuple(side * uf // df for side in size),
        kernel_size=(height, width),
        stride=tuple(step * uf // df for step in stride),
    )
    weighting = weights(height, width, *grid, device=x.device).to(x.dtype)  # (1, kh kw, L)
    return Tiling(fold, unfold, fold(weighting), weighting.view(1, 1, height, width, -1))
