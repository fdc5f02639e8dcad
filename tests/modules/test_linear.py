"""The quicker linear layer gives what torch's own gives, in values, gradients and layout, and is one."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import profile

from ldm.modules.attention import SpatialTransformer
from ldm.modules.linear import LEAST_ROWS, Linear, linear

MANY = 2048  # positions: enough of them at the widths below


def operations(call) -> set[str]:
    with profile() as seen:
        call()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("shape", [(5, 12), (2, 900, 12), (3, 1, 600, 12), (MANY, 12), (0, 7, 12), (12,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torchs_layer(shape, bias):
    layer = Linear(12, 20, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    answer, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(answer, expected)
    assert answer.is_contiguous()
    probe = torch.randn_like(answer)
    wanted = [x, *layer.parameters()]
    for ours, theirs in zip(torch.autograd.grad(answer, wanted, probe), torch.autograd.grad(expected, wanted, probe), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
        assert ours.is_contiguous()


def test_second_derivatives_are_there():
    x = torch.randn(4 * MANY, 3, requires_grad=True)
    weight = torch.randn(4, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(linear(x, weight, None).pow(2).sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), weight)
    (expected,) = torch.autograd.grad((2 * F.linear(x, weight) @ weight).sum(), weight)
    torch.testing.assert_close(curve, expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "width", "quick"), [(MANY, 32, True), (LEAST_ROWS, 512, True), (LEAST_ROWS, 32, False), (LEAST_ROWS - 1, 512, False), (LEAST_ROWS, 2048, False)]
)
def test_long_sequences_are_convolved_and_short_ones_are_not(rows, width, quick):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    layer, x = Linear(width, width), torch.randn(1, rows, width)
    assert ("aten::mkldnn_convolution" in operations(lambda: layer(x))) == quick


def test_what_is_no_float32_in_one_piece_goes_torchs_way():
    layer, x = Linear(16, 16), torch.randn(1, 16, MANY)
    torch.testing.assert_close(layer(x.transpose(1, 2)), F.linear(x.transpose(1, 2), layer.weight, layer.bias))
    assert layer.double()(x.double().transpose(1, 2).contiguous()).dtype == torch.float64
    half = layer.to(torch.bfloat16)
    x = x.transpose(1, 2).contiguous().to(torch.bfloat16)
    assert torch.equal(half(x), F.linear(x, half.weight, half.bias))


def test_under_autocast_it_answers_in_the_short_format():
    layer, x = Linear(16, 24), torch.randn(1, MANY, 16)
    with torch.autocast("cpu", torch.bfloat16):
        answer = layer(x)
        assert answer.dtype == torch.bfloat16 and torch.equal(answer, F.linear(x, layer.weight, layer.bias))


def test_it_has_the_keys_and_the_class_of_torchs_layer():
    assert isinstance(Linear(3, 4), nn.Linear)
    Linear(3, 4).load_state_dict(nn.Linear(3, 4).state_dict())
    block = SpatialTransformer(32, 2, 16).transformer_blocks[0]
    layers = [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.attn1.to_out[0], block.ff.net[0].proj, block.ff.net[2]]
    assert all(isinstance(layer, Linear) for layer in layers)
