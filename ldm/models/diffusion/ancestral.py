"""Ancestral sampling: every step of the diffusion backwards, each drawn from the model's own Gaussian.

x_{t-1} ~ N(mu(x_t, x0_hat), sigma_t^2 I), and the mean itself at t = 0       Ho et al. 2020 (arXiv 2006.11239), algorithm 2
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.noise_schedule import Gaussian

Step = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Known(NamedTuple):
    """The part of a sample that is given: where mask (B, 1, h, w) is 1, x_0 (B, C, h, w) is kept. noised(x_0, t) is `q_sample`."""

    mask: Tensor
    x_0: Tensor
    noised: Callable[[Tensor, Tensor], Tensor]

    def keep(self, x: Tensor, t: Tensor) -> Tensor:
        """x with the known part put back at the noise level of t."""
        return self.noised(self.x_0, t) * self.mask + (1.0 - self.mask) * x


def known_part(mask: Tensor | None, x_0: Tensor | None, noised: Callable[[Tensor, Tensor], Tensor]) -> Known | None:
    """None without a mask. Raises ValueError for a mask without x_0, or one of another height or width."""
    if mask is None:
        return None
    if x_0 is None:
        raise ValueError("a mask was given without x0, which it says to keep")
    if x_0.shape[2:] != mask.shape[2:]:
        raise ValueError(f"mask is {tuple(mask.shape[2:])} and x0 {tuple(x_0.shape[2:])}; height and width must agree")
    return Known(mask, x_0, noised)


def steps_to_take(timesteps: int, *limits: int | None) -> int:
    """How many of the cleanest steps are walked: all `timesteps`, or as few as a limit says. Raises ValueError for a limit below 1."""
    steps = min([timesteps, *(limit for limit in limits if limit is not None)])
    if steps < 1:
        raise ValueError(f"{steps} steps were asked for; it must be 1 to {timesteps}")
    return steps


def draw(gaussian: Gaussian, t: Tensor, noise: Tensor) -> Tensor:
    """A draw from `gaussian` (B, C, H, W) with standard normal `noise`; its mean where t (B,) is 0, the last step."""
    moving = (t > 0).to(noise).view(-1, *(1 for _ in noise.shape[1:]))
    return gaussian.mean + moving * (0.5 * gaussian.log_variance).exp() * noise


def walk(
    x: Tensor,
    steps: int,
    step: Step,
    *,
    every: int,
    known: Known | None = None,
    callback: Callable[[int], Any] | None = None,
    img_callback: Callable[[Tensor, int], Any] | None = None,
    progress: str | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """From x at step `steps` - 1 down to step 0: (the sample, what `step` showed on the way).

    step(x, t, i) -> (x_{t-1}, shown or None for the state itself). Kept are the first step's and every one with i a multiple of `every`.
    callback(i) and img_callback(x, i) are called after each step. progress: words beside a progress bar, None for no bar.
    """
    shown_on_the_way = []
    for i in tqdm(range(steps - 1, -1, -1), desc=progress, disable=progress is None):
        t = torch.full((x.shape[0],), i, device=x.device, dtype=torch.long)
        x, shown = step(x, t, i)
        if known is not None:
            x = known.keep(x, t)
        if i % every == 0 or i == steps - 1:
            shown_on_the_way.append(x if shown is None else shown)
        if callback is not None:
            callback(i)
        if img_callback is not None:
            img_callback(x, i)
    return x, shown_on_the_way
