"""How much the term weighs, and in which steps it is computed.

Every k-th step with k-fold weight: lazy regularisation, StyleGAN2 (Karras et al. 2020, arXiv 1912.04958). Steps are optimiser steps.
"""
from typing import Any, Dict, Optional

from ldm.regularization.types import Part

RECOMMENDED = 10.0  # the shipped configurations'

class ConstantWeight(Part):
    """λ, the same in every step once warm-up is over.

    weight: λ; 0 turns the term off altogether. every: k, R is computed in steps with (step + 1) mod k = 0.
    warmup_steps: λ rises linearly from 0 over the first so many steps.
    """

    def __init__(self, weight: float = 10.0, every: int = 1, warmup_steps: int = 0):
        problems = []
        if not weight >= 0:
            problems.append(f"weight is {weight}; expected a number of at least 0")
        if int(every) != every or every < 1:
            problems.append(f"every is {every}; expected a whole number of at least 1")
        if int(warmup_steps) != warmup_steps or warmup_steps < 0:
            problems.append(f"warmup_steps is {warmup_steps}; expected a whole number of at least 0")
        if problems:
            raise ValueError("weight_config.params: " + "; ".join(problems))
        self.weight = float(weight)
        self.every = int(every)
        self.warmup_steps = int(warmup_steps)

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
