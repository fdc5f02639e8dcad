"""The tuned weights are drawn back to where they started.

L + λ · ‖θ − θ₀‖², the sum over all tuned weights: what Preserve & Personalize does to a diffusion model, and L2-SP (Li et al. 2018, arXiv 1802.01483), whose α
is 2 λ, before it; there layers that are new are drawn to 0, here the concept's vectors are left alone.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.rivals.held import HeldLatentDiffusion


class BaseWeights(HeldLatentDiffusion):
    """LatentDiffusion whose weights are held near the base checkpoint's.

    base_weight: λ. Raises ValueError together with adapters, whose weights have no counterpart in the base.
    """

    term_name = "base_weights"

    def __init__(self, *args: Any, base_weight: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.hold("base_weight", base_weight)
        if base_weight > 0 and self.adapters is not None:
            raise ValueError(f"model.params.base_weight is {base_weight}, but adapter_config tunes adapters, not weights of the base: leave one of them out")

    def take_base(self) -> None:
        self._theta_0 = {name: parameter.detach().clone() for name, parameter in self._theta().items()}

    def term(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """‖θ − θ₀‖², whatever the batch is."""
        distances = [(parameter - self._theta_0[name]).square().sum() for name, parameter in self._theta().items() if parameter.requires_grad]
        return torch.stack(distances).sum()

    def _theta(self) -> dict[str, torch.nn.Parameter]:
        return {f"{part}.{name}": parameter for part, module in self.tuned_modules().items() for name, parameter in module.named_parameters()}
