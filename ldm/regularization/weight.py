"""How much the term weighs, and in which steps it is computed.

Every k-th step with k-fold weight: lazy regularisation, StyleGAN2 (Karras et al. 2020, arXiv 1912.04958). Steps are optimiser steps.
"""
import logging
import math
from typing import Any, Dict, Optional

from ldm.regularization.checks import is_number, is_whole
from ldm.regularization.conditioning import Conditioning
from ldm.regularization.drift_meter import DriftMeter
from ldm.regularization.types import Model, Part, Start, TrainingBatch, Words

logger = logging.getLogger(__name__)

RECOMMENDED = 10.0  # of the full-size models' configurations


class ConstantWeight(Part):
    """λ, the same in every step once warm-up is over.

    weight: λ; 0 turns the term off altogether. every: k, R is computed in steps with (step + 1) mod k = 0.
    warmup_steps: λ rises linearly from 0 over the first so many steps.
    """

    def __init__(self, weight: float = 10.0, every: int = 1, warmup_steps: int = 0):
        problems = []
        if not is_number(weight) or weight < 0:
            problems.append(f"weight is {weight!r}; expected a number of at least 0")
        if not is_whole(every, 1):
            problems.append(f"every is {every!r}; expected a whole number of at least 1")
        if not is_whole(warmup_steps, 0):
            problems.append(f"warmup_steps is {warmup_steps!r}; expected a whole number of at least 0")
        if problems:
            raise ValueError("weight_config.params: " + "; ".join(problems))
        self.weight = float(weight)
        self.every = int(every)
        self.warmup_steps = int(warmup_steps)

    def bind(self, words: Words, conditioning: Conditioning) -> None:
        """Learn, before training, what the run calls things and where R looks. Raises ValueError for what cannot be used."""

    def prepare(self, start: Start) -> None:
        """Do, once, what takes time before training: while θ is θ₀."""

    @property
    def on(self) -> bool:
        """Whether the term is ever computed."""
        return self.weight > 0

    def due(self, step: int) -> bool:
        """Whether the term is computed in this optimiser step (from 0)."""
        return self.on and (step + 1) % self.every == 0

    def at(self, step: int) -> float:
        """λ in this optimiser step."""
        return self.weight * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.weight

    def watch(self, model: Model, batch: TrainingBatch, step: int) -> Dict[str, float]:
        """Look at the model in a step that is due, before `at` is asked. Returns what was measured, by its name in the log."""
        return {}

    def caution(self) -> Optional[str]:
        """What a user should know of these settings before the run; None if there is nothing."""
        if self.weight < 10 * RECOMMENDED:
            return None
        return (
            f"weight {self.weight:g} is {self.weight / RECOMMENDED:g} times the recommended {RECOMMENDED:g}: the concept may be learnt slowly or not at all, "
            "and come out looking like its class. Watch loss_original: if it hardly falls, lower the weight."
        )

    def describe(self) -> str:
        warmup = f", rising from 0 over {self.warmup_steps} steps" if self.warmup_steps else ""
        rhythm = "in every optimiser step" if self.every == 1 else f"in one optimiser step of every {self.every}, {self.every}-fold there"
        return f"weight {self.weight:g} {rhythm}{warmup}"

    def state_dict(self) -> Dict[str, Any]:
        """What a resumed run must know: nothing, where the settings say it all."""
        return {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class DriftBudget(ConstantWeight):
    """λ follows from how much drift is accepted: dual ascent on the constraint that drift, on prompts R never uses, stays within the budget.

    Each measurement multiplies λ by exp(step_size · log(drift / budget)), the logarithm cut to [−1, 1] and drift smoothed: it rises while drift
    is over the budget and falls while under it. (A gradient step on log λ, since useful weights span powers of ten.) A run that keeps the
    budget by itself ends at `min_weight`, which holds nothing.

    budget: mean ‖Δε‖² over (C, h, w). weight: λ before the first measurement. measure_every: optimiser steps between measurements, rounded
    up to steps that compute R: a step costs meter.points / measure_every forward passes of one sample, and few points make a restless λ.
    smoothing: share of the past in the smoothed drift. meter: what measures. every, warmup_steps: as for a constant.
    """

    def __init__(
        self, budget: float, weight: float = RECOMMENDED, every: int = 1, warmup_steps: int = 0, *, step_size: float = 0.2, smoothing: float = 0.5,
        min_weight: float = 0.01, max_weight: float = 1000.0, measure_every: int = 10, meter: Optional[DriftMeter] = None,
    ):  # fmt: skip
        super().__init__(weight, every, warmup_steps)
        problems = []
        if not is_number(budget) or budget <= 0:
            problems.append(f"budget is {budget!r}; expected a mean square above 0 (for no drift at all take ConstantWeight and a large weight)")
        if not all(map(is_number, (min_weight, max_weight))) or not 0 < min_weight <= weight <= max_weight:
            problems.append(f"min_weight, weight, max_weight are {min_weight}, {weight}, {max_weight}; expected numbers above 0 that do not fall")
        if not is_number(step_size) or step_size <= 0:
            problems.append(f"step_size is {step_size!r}; expected a number above 0")
        if not is_number(smoothing) or not 0 <= smoothing < 1:
            problems.append(f"smoothing is {smoothing!r}; expected a number from 0 up to, not including, 1")
        if not is_whole(measure_every, 1):
            problems.append(f"measure_every is {measure_every!r}; expected a whole number of at least 1")
        if problems:
            raise ValueError("weight_config.params: " + "; ".join(problems))
        self.budget = float(budget)
        self.step_size, self.smoothing = float(step_size), float(smoothing)
        self.min_weight, self.max_weight = float(min_weight), float(max_weight)
        self.measure_every = int(measure_every)
        self.meter = meter or DriftMeter()
        self.dual = self.weight
        self.drift: Optional[float] = None  # smoothed
        self._measured_at: Optional[int] = None

    def bind(self, words: Words, conditioning: Conditioning) -> None:
        self.meter.bind(words, conditioning)

    def prepare(self, start: Start) -> None:
        self.meter.prepare(start)

    def watch(self, model: Model, batch: TrainingBatch, step: int) -> Dict[str, float]:
        if self._measured_at is not None and step - self._measured_at < self.measure_every:
            return {}
        measured = self.meter(model, batch)
        self.drift = measured if self.drift is None else self.smoothing * self.drift + (1 - self.smoothing) * measured
        excess = math.log(max(self.drift, self.budget * 1.0e-9) / self.budget)
        dual = self.dual * math.exp(self.step_size * max(-1.0, min(1.0, excess)))
        self.dual = max(self.min_weight, min(self.max_weight, dual))
        if dual > self.max_weight:
            logger.warning("drift %.3g is over the budget of %.3g with the largest weight allowed, %g", self.drift, self.budget, self.max_weight)
        self._measured_at = step
        return {"drift": measured}

    def at(self, step: int) -> float:
        return self.dual * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.dual

    def caution(self) -> Optional[str]:
        return None

    def describe(self) -> str:
        return super().describe() + f", then as a drift budget of {self.budget:g} asks; measured every {self.measure_every} at {self.meter.describe()}"

    def state_dict(self) -> Dict[str, Any]:
        return {"dual": self.dual, "drift": self.drift, "measured_at": self._measured_at, "meter": self.meter.state_dict()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if "dual" not in state:
            raise ValueError(
                "weight_config: the run to be resumed had another weight than DriftBudget, which knows nothing of where to go on. "
                "Resume it with the weight_config of its start, or start a new run."
            )
        self.dual, self.drift, self._measured_at = state["dual"], state["drift"], state["measured_at"]
        self.meter.load_state_dict(state["meter"])
