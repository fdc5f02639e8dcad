"""An exponential moving average of a module's weights.

shadow <- d * shadow + (1 - d) * weight after each training batch, with d = min(decay, (1 + n) / (10 + n)) at update n, so that the
average forgets its random start quickly.
"""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Running averages of those parameters of `model` that require gradients at construction.

    The averages are buffers named like the parameter without its dots (`encoder.conv_in.weight` -> `encoderconv_inweight`): a buffer's name
    has none, and saved checkpoints use these names.
    decay: upper limit of d, in [0, 1]. use_num_upates: warm up as above (the name is spelt as in saved configs); without it d = decay.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True):
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay of the weight average is {decay}; it must lie in [0, 1]")
        self.m_name2s_name: dict[str, str] = {}
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_upates else -1, dtype=torch.int))
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                self.m_name2s_name[name] = name.replace(".", "")
                self.register_buffer(self.m_name2s_name[name], weight.detach().clone())
        self.collected_params: list[Tensor] = []

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move every average towards the present weights of `model`."""
        decay = self.decay
        if self.num_updates >= 0:
            self.num_updates += 1
            decay = torch.minimum(decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = dict(model.named_parameters())
        shadows = dict(self.named_buffers())
        for name, shadow_name in self.m_name2s_name.items():
            shadow = shadows[shadow_name]
            shadow.lerp_(weights[name].detach().to(shadow), (1.0 - decay).to(shadow))

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin anew: every average is the present weight of `model`, and no update has been counted."""
        weights = dict(model.named_parameters())
        shadows = dict(self.named_buffers())
        for name, shadow_name in self.m_name2s_name.items():
            shadows[shadow_name].copy_(weights[name])
        self.num_updates.clamp_(max=0)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights of `model` with their averages."""
        weights = dict(model.named_parameters())
        shadows = dict(self.named_buffers())
        for name, shadow_name in self.m_name2s_name.items():
            weights[name].copy_(shadows[shadow_name])

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember the present values of `parameters`."""
        self.collected_params = [weight.detach().clone() for weight in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give `parameters` the values that `store` remembered, and forget them."""
        for stored, weight in zip(self.collected_params, parameters, strict=True):
            weight.copy_(stored)
        self.collected_params = []
