"""Linear layers, quicker on processors that MKL does not know.

torch multiplies float32 matrices by MKL, which uses the widest vectors of one maker's processors only, and convolves by oneDNN, which uses
those of all. x Wᵀ + b at every position is a 1×1 convolution of positions that lie one behind another, channels last.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ROWS = 64  # below that, what a convolution takes to set up is more than it saves,
MOST_WEIGHTS_PER_ROW = 2**15  # and above that, what it takes to put the weights into its own order;
LEAST_VALUES = 20_481  # fewer than these torch does not hand to oneDNN


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed as a convolution where that is quicker: float32 on a processor, many positions."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias; x: (…, in), weight: (out, in), bias: (out,)."""
    if not _convolved_quicker(x, weight):
        return F.linear(x, weight, bias)
    positions = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)                          # (1, in, 1, B N), channels last
    # The dilation changes nothing in a kernel of one position, but with it torch takes oneDNN on a single thread too.
    out = F.conv2d(positions, weight[:, :, None, None], bias, dilation=2)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def _convolved_quicker(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous()
        and x.numel() >= max(LEAST_VALUES, x.shape[-1] * max(LEAST_ROWS, weight.numel() / MOST_WEIGHTS_PER_ROW))
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
