"""How far apart two outputs are.

R = E w(t) · mean over (C, h, w) of (f − f0)². A loss takes f, f0 (B, C, h, w), the probes and the model, and returns R as a scalar;
to add another, write that one method.
"""
from typing import Callable, Optional

from torch import Tensor

from ldm.regularization.types import Model, NoisyLatents, Part


def squared_error(f: Tensor, f0: Tensor) -> Tensor:
    """Mean over (C, h, w) of (f − f0)²: (B,), fp32 whatever the precision of f."""
    return (f.float() - f0.float()).pow(2).flatten(1).mean(dim=1)


class NoiseMSE(Part):
    """Squared difference of the two outputs.

    t_weights: w, from t (B,) and the model to weights (B,); every timestep weighs 1 unless given.
    """

    def __init__(self, t_weights: Optional[Callable[[Tensor, Model], Tensor]] = None):
        self.t_weights = t_weights

    def __call__(self, f: Tensor, f0: Tensor, probes: NoisyLatents, model: Model) -> Tensor:
        error = squared_error(f, f0)
        return error.mean() if self.t_weights is None else (self.t_weights(probes.t, model).to(error) * error).mean()
