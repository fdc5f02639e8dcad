"""Small parts that the denoising network, the first stages and the samplers share: layers by dimension, norms, timestep embedding, checkpointing."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor, nn

from ldm.modules.diffusionmodules.step_schedules import (
    betas_for_alpha_bar,
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
)
from ldm.util import instantiate_from_config, mean_flat

__all__ = [
    "CheckpointFunction",
    "GroupNorm32",
    "HybridConditioner",
    "NORM_GROUPS",
    "SiLU",
    "avg_pool_nd",
    "betas_for_alpha_bar",
    "checkpoint",
    "conv_nd",
    "extract_into_tensor",
    "linear",
    "make_beta_schedule",
    "make_ddim_sampling_parameters",
    "make_ddim_timesteps",
    "mean_flat",
    "noise_like",
    "normalization",
    "scale_module",
    "timestep_embedding",
    "zero_module",
]

NORM_GROUPS = 32
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def _by_dimension(classes: dict[int, type[nn.Module]], dims: int) -> type[nn.Module]:
    if dims not in classes:
        raise ValueError(f"dims is {dims}; it must be 1, 2 or 3")
    return classes[dims]


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution over `dims` (1, 2 or 3) spatial dimensions; the rest as for `torch.nn.Conv2d`."""
    return _by_dimension(_CONVOLUTIONS, dims)(*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Average pooling over `dims` (1, 2 or 3) spatial dimensions; the rest as for `torch.nn.AvgPool2d`."""
    return _by_dimension(_AVERAGE_POOLS, dims)(*args, **kwargs)


def linear(*args: Any, **kwargs: Any) -> nn.Linear:
    """`torch.nn.Linear`."""
    return nn.Linear(*args, **kwargs)


@torch.no_grad()
def zero_module(module: nn.Module) -> nn.Module:
    """`module`, all its parameters set to zero: a branch that ends in it begins as no change."""
    for parameter in module.parameters():
        parameter.zero_()
    return module


@torch.no_grad()
def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """`module`, all its parameters multiplied by `scale` in place."""
    for parameter in module.parameters():
        parameter.mul_(scale)
    return module


class SiLU(nn.Module):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation that computes in float32 (or wider) whatever the precision of its input, and answers in that."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if p is None else p.to(dtype) for p in (self.weight, self.bias))
        return F.group_norm(x.to(dtype), self.num_groups, weight, bias, self.eps).to(x.dtype)


def normalization(channels: int) -> GroupNorm32:
    """The network's norm: 32 groups, eps 1e-5."""
    return GroupNorm32(NORM_GROUPS, channels)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False) -> Tensor:
    """Each timestep as cosines, then sines, of geometrically falling frequencies (Vaswani et al. 2017, arXiv 1706.03762, section 3.5).

    timesteps: (B,), whole or fractional. Returns (B, dim) float32: entry i < dim // 2 is cos(t f_i), entry dim // 2 + i is sin(t f_i),
    f_i = max_period^(-i / (dim // 2)); an odd `dim` ends in a zero. With `repeat_only` each row is the timestep itself, dim times.
    """
    t = timesteps[:, None].float()
    if repeat_only:
        return t.repeat(1, dim)
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(max_period) / half))
    angles = t * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: Sequence[int]) -> Tensor:
    """The entries a[t], shaped (B, 1, …, 1) to meet a batch of shape `x_shape`. a: (T,); t: (B,) int64 on a's device."""
    return a.gather(-1, t).view(-1, *(1 for _ in x_shape[1:]))


def noise_like(shape: Sequence[int], device: torch.device | str, repeat: bool = False) -> Tensor:
    """Standard normal noise of `shape`; with `repeat` the same for every item of the batch."""
    if not repeat:
        return torch.randn(tuple(shape), device=device)
    return torch.randn((1, *shape[1:]), device=device).repeat(shape[0], *(1 for _ in shape[1:]))


def checkpoint(func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[Tensor], flag: bool) -> Any:
    """func(*inputs); with `flag`, what `func` computes on the way is not kept for the backward pass but computed again there.

    params: the parameters `func` uses; autograd finds them by itself, the argument is part of the established signature.
    """
    if flag and torch.is_grad_enabled():
        return torch_checkpoint.checkpoint(func, *inputs, use_reentrant=False)
    return func(*inputs)


class CheckpointFunction(torch_checkpoint.CheckpointFunction):
    """Checkpointing as an autograd function, for callers that apply it themselves: `apply(func, len(inputs), *inputs, *params)`.

    Naming the parameters makes the result require a gradient where no input does.
    """

    @staticmethod
    def forward(ctx: Any, run_function: Callable[..., Any], length: int, *args: Any) -> Any:
        return torch_checkpoint.CheckpointFunction.forward(ctx, lambda *again: run_function(*again[:length]), True, *args)

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> Any:
        return torch_checkpoint.CheckpointFunction.backward(ctx, *output_grads)


class HybridConditioner(nn.Module):
    """Two condition encoders: one for what is concatenated with the latents, one for what is attended to."""

    def __init__(self, c_concat_config: Any, c_crossattn_config: Any):
        super().__init__()
        self.concat_conditioner = instantiate_from_config(c_concat_config)
        self.crossattn_conditioner = instantiate_from_config(c_crossattn_config)

    def forward(self, c_concat: Any, c_crossattn: Any) -> dict[str, list[Tensor]]:
        return {"c_concat": [self.concat_conditioner(c_concat)], "c_crossattn": [self.crossattn_conditioner(c_crossattn)]}
