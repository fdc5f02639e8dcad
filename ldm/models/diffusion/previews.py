"""Pictures of what a diffusion model does: rows for the image log. All pictures are (B, C, H, W) in [-1, 1]."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from ldm.models.diffusion.conditioning import is_text
from ldm.util import isimage, ismap, log_txt_as_img

# Maps of many channels are shown in three colours mixed at random, the same in every run.
COLOUR_SEED = 0
# Where latents take the place of pictures, a picture of their size would leave no room for words.
SMALLEST_PAGE = 64


def rows(stages: Sequence[Tensor]) -> Tensor:
    """One grid (3, H', W'): a row for each sample, its stages from left to right. stages: n tensors (B, C, H, W)."""
    by_sample = torch.stack(list(stages), dim=1)  # (B, n, C, H, W)
    return make_grid(by_sample.flatten(0, 1), nrow=len(stages))


def shown_with_progress(stages: Sequence[Tensor], words: str) -> Iterable[Tensor]:
    """The stages one after another, beside a progress bar where there are words for it."""
    return tqdm(stages, desc=words, disable=not words)


def noising_stages(x_0: Tensor, steps: int, every: int, noised: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """x_0 noised to every `every`-th of `steps` steps and to the last one. noised(x_0, t) is `q_sample`."""
    shown = [i for i in range(steps) if i % every == 0 or i == steps - 1]
    return [noised(x_0, torch.full((x_0.shape[0],), i, device=x_0.device, dtype=torch.long)) for i in shown]


def in_colour(x: Tensor) -> Tensor:
    """Maps with any number of channels as pictures: (B, C, H, W) -> (B, 3, H, W), stretched to [-1, 1]."""
    mix = torch.randn((3, x.shape[1], 1, 1), generator=torch.Generator().manual_seed(COLOUR_SEED))
    mixed = F.conv2d(x.detach().float(), mix.to(x.device))
    low, high = mixed.min(), mixed.max()
    return 2.0 * (mixed - low) / (high - low).clamp_min(torch.finfo(mixed.dtype).tiny) - 1.0


def as_picture(x: Tensor) -> Tensor:
    """Pictures as they are, maps of more channels in colour: latents that stand for pictures can then be logged too."""
    return x if isimage(x) else in_colour(x)


def condition_pictures(x: Tensor, raw: Any, decoded: Tensor | None, labels: Sequence[str] | None, to_rgb: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What can be shown of a condition, as `conditioning` and, for maps of many channels, `original_conditioning`.

    x: the pictures it belongs to, for the size of a page; raw: the condition before it was encoded; decoded: made a picture again by its encoder,
    None if it cannot; labels: the names of classes, None if there are none.
    """
    size = (max(x.shape[3], SMALLEST_PAGE), max(x.shape[2], SMALLEST_PAGE))
    pictures = {"original_conditioning": to_rgb(raw)} if ismap(raw) else {}
    if decoded is not None:
        pictures["conditioning"] = decoded
    elif is_text(raw) or (isinstance(raw, dict) and labels is not None):
        pictures["conditioning"] = log_txt_as_img(size, raw if is_text(raw) else labels)
    elif isimage(raw):
        pictures["conditioning"] = raw
    return pictures


def centre_mask(z: Tensor) -> Tensor:
    """(B, 1, h, w): 0 in the middle half of height and width, 1 around it."""
    batch, _, height, width = z.shape
    mask = torch.ones(batch, 1, height, width, device=z.device, dtype=z.dtype)
    mask[:, :, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 0.0
    return mask


def selected(log: dict[str, Tensor], keys: Sequence[str] | None) -> dict[str, Tensor]:
    """The entries named by `keys`; all of them where none of the names is there."""
    wanted = {key: log[key] for key in keys or () if key in log}
    return wanted or log
