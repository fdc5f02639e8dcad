"""Multipliers of the learning rate as functions of the step n, for `torch.optim.lr_scheduler.LambdaLR`.

Each rises linearly from a start to a peak; then it falls to a floor along half a cosine (Loshchilov and Hutter 2017,
arXiv 1608.03983: floor + (peak - floor) (1 + cos(pi u)) / 2, u from 0 to 1) or along a straight line.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

logger = logging.getLogger(__name__)


def _rise(n: int, steps: int, start: float, peak: float) -> float:
    return start + (peak - start) * n / steps


def _half_cosine(u: float, peak: float, floor: float) -> float:
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * min(u, 1.0)))


class LambdaWarmUpCosineScheduler:
    """One warm-up, one descent along a cosine, then the floor. Use with a base learning rate of 1.

    warm_up_steps, max_decay_steps: steps, counted from 0; lr_*: learning rates; verbosity_interval: log every so many steps, 0 never.
    """

    def __init__(self, warm_up_steps: int, lr_min: float, lr_max: float, lr_start: float, max_decay_steps: int, verbosity_interval: int = 0):
        self.lr_warm_up_steps = warm_up_steps
        self.lr_start = lr_start
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.lr_max_decay_steps = max_decay_steps
        self.last_lr = 0.0
        self.verbosity_interval = verbosity_interval

    def schedule(self, n: int, **kwargs: Any) -> float:
        """The rate at step n; also kept in `last_lr`."""
        if self.verbosity_interval > 0 and n % self.verbosity_interval == 0:
            logger.info("step %d: last learning rate %g", n, self.last_lr)
        if n < self.lr_warm_up_steps:
            self.last_lr = _rise(n, self.lr_warm_up_steps, self.lr_start, self.lr_max)
        else:
            u = (n - self.lr_warm_up_steps) / (self.lr_max_decay_steps - self.lr_warm_up_steps)
            self.last_lr = _half_cosine(u, self.lr_max, self.lr_min)
        return self.last_lr

    def __call__(self, n: int, **kwargs: Any) -> float:
        return self.schedule(n, **kwargs)


class LambdaWarmUpCosineScheduler2:
    """Several cycles, each with its own warm-up and descent; the last floor holds for ever after.

    All lists have one entry a cycle. warm_up_steps, cycle_lengths: steps; f_*: factors of the learning rate;
    verbosity_interval: log every so many steps, 0 never. Raises ValueError for lists of different lengths.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ):
        lengths = {
            "warm_up_steps": len(warm_up_steps),
            "f_min": len(f_min),
            "f_max": len(f_max),
            "f_start": len(f_start),
            "cycle_lengths": len(cycle_lengths),
        }
        if len(set(lengths.values())) != 1 or not cycle_lengths:
            raise ValueError(f"a schedule needs one entry a cycle in each list, got {lengths}")
        self.lr_warm_up_steps = warm_up_steps
        self.f_start = f_start
        self.f_min = f_min
        self.f_max = f_max
        self.cycle_lengths = cycle_lengths
        self.cum_cycles = list(accumulate(cycle_lengths, initial=0))
        self.last_f = 0.0
        self.verbosity_interval = verbosity_interval

    def find_in_interval(self, n: int) -> int:
        """Index of the cycle that step n lies in; its last step still counts as its own."""
        ends = self.cum_cycles[1:]
        return next((cycle for cycle, end in enumerate(ends) if n <= end), len(ends) - 1)

    def schedule(self, n: int, **kwargs: Any) -> float:
        """The factor at step n; also kept in `last_f`."""
        if self.verbosity_interval > 0 and n % self.verbosity_interval == 0:
            logger.info("step %d: last factor %g, cycle %d", n, self.last_f, self.find_in_interval(n))
        cycle = self.find_in_interval(n)
        step = min(n - self.cum_cycles[cycle], self.cycle_lengths[cycle])
        if step < self.lr_warm_up_steps[cycle]:
            self.last_f = _rise(step, self.lr_warm_up_steps[cycle], self.f_start[cycle], self.f_max[cycle])
        else:
            self.last_f = self._fall(step, cycle)
        return self.last_f

    def _fall(self, step: int, cycle: int) -> float:
        warm_up = self.lr_warm_up_steps[cycle]
        u = (step - warm_up) / max(1, self.cycle_lengths[cycle] - warm_up)
        return _half_cosine(u, self.f_max[cycle], self.f_min[cycle])

    def __call__(self, n: int, **kwargs: Any) -> float:
        return self.schedule(n, **kwargs)


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """The same cycles with a straight descent.

    The line runs from the peak at the cycle's step 0, not at the end of the warm-up: the factor jumps there, as in the original.
    """

    def _fall(self, step: int, cycle: int) -> float:
        length = self.cycle_lengths[cycle]
        return self.f_min[cycle] + (self.f_max[cycle] - self.f_min[cycle]) * (length - step) / length
