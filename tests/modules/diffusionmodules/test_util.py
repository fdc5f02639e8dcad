"""Layers by dimension, norms, the timestep embedding, checkpointing."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.diffusionmodules.util import (
    CheckpointFunction,
    GroupNorm32,
    HybridConditioner,
    SiLU,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    extract_into_tensor,
    linear,
    mean_flat,
    noise_like,
    normalization,
    scale_module,
    timestep_embedding,
    zero_module,
)


@pytest.mark.parametrize("max_period", [10000, 100])
@pytest.mark.parametrize("dim", [8, 9, 320])
def test_timestep_embedding_is_cosines_then_sines_of_falling_frequencies(dim, max_period):
    timesteps = [0, 1, 17, 250.5, 999]
    half = dim // 2
    angles = [[t * max_period ** (-i / half) for i in range(half)] for t in timesteps]
    expected = [[*map(math.cos, row), *map(math.sin, row), *[0.0] * (dim % 2)] for row in angles]
    actual = timestep_embedding(torch.tensor(timesteps), dim, max_period)
    torch.testing.assert_close(actual, torch.tensor(expected), atol=2e-4, rtol=0.0)      # 1e-7 relative on angles up to 999 rad


def test_timestep_embedding_tells_all_steps_apart():
    embedding = timestep_embedding(torch.arange(1000), 320)
    distances = torch.cdist(embedding, embedding) + 10 * torch.eye(1000)
    assert distances.min() > 0.5


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_timestep_embedding_is_computed_in_float32_whatever_comes_in(dtype):
    t = torch.tensor([3, 200], dtype=dtype)                  # exact in every one of these types
    with torch.autocast("cpu", torch.bfloat16):
        embedding = timestep_embedding(t, 64)
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, timestep_embedding(torch.tensor([3.0, 200.0]), 64))


def test_timestep_embedding_can_repeat_the_step_itself():
    assert timestep_embedding(torch.tensor([4, 7]), 3, repeat_only=True).tolist() == [[4.0] * 3, [7.0] * 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_group_norm_of_half_precision_is_the_float32_one_rounded(dtype):
    norm = normalization(64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (5 + torch.randn(2, 64, 6, 6)).to(dtype)
    expected = F.group_norm(x.float(), 32, norm.weight, norm.bias, eps=1e-5).to(dtype)
    assert torch.equal(norm(x), expected)
    weights = norm.weight.to(dtype).float(), norm.bias.to(dtype).float()
    assert torch.equal(norm.to(dtype)(x), F.group_norm(x.float(), 32, *weights, eps=1e-5).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_group_norm_leaves_wider_precision_alone(dtype):
    norm = GroupNorm32(4, 8).to(dtype)
    x = 1000 + torch.randn(3, 8, 5, dtype=dtype)
    assert torch.equal(norm(x), nn.GroupNorm(4, 8).to(dtype)(x))
    assert torch.equal(GroupNorm32(4, 8, affine=False).to(dtype)(x), nn.GroupNorm(4, 8, affine=False)(x))


def test_silu_is_x_times_its_sigmoid():
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    torch.testing.assert_close(SiLU()(x), x / (1 + (-x).exp()))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layers_by_dimension(dims):
    x = torch.randn(2, 3, *[4] * dims)
    assert conv_nd(dims, 3, 5, 3, padding=1)(x).shape == (2, 5, *[4] * dims)
    pooled = avg_pool_nd(dims, kernel_size=2, stride=2)(x)
    assert pooled.shape == (2, 3, *[2] * dims)
    corner = x[(slice(None), slice(None), *[slice(0, 2)] * dims)]
    torch.testing.assert_close(pooled.flatten(2)[..., 0], corner.flatten(2).mean(-1))


@pytest.mark.parametrize("make", [conv_nd, avg_pool_nd])
def test_other_dimensions_are_an_error(make):
    with pytest.raises(ValueError, match="dims is 4"):
        make(4, 3, 3, 1)


def test_linear_zero_and_scale():
    layer = linear(3, 2)
    before = layer.weight.clone()
    assert scale_module(layer, 0.5) is layer
    torch.testing.assert_close(layer.weight.detach(), 0.5 * before)
    layer.weight.data.fill_(math.inf)
    assert not any(parameter.any() for parameter in zero_module(layer).parameters())
    assert layer.weight.requires_grad


def test_mean_flat_keeps_the_batch():
    x = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(mean_flat(x), x.mean(dim=(1, 2, 3)))


def test_extract_takes_one_entry_an_item_and_broadcasts():
    table = torch.linspace(0, 1, 11)
    t = torch.tensor([10, 0, 5])
    taken = extract_into_tensor(table, t, (3, 4, 8, 8))
    assert taken.shape == (3, 1, 1, 1)
    assert torch.equal(taken.flatten(), torch.tensor([1.0, 0.0, 0.5]))
    assert extract_into_tensor(table, t, (3, 4)).shape == (3, 1)


def test_noise_is_the_generators_next_or_the_same_for_the_whole_batch():
    torch.manual_seed(5)
    single, repeated = noise_like((3, 2, 4), "cpu"), noise_like((3, 2, 4), "cpu", repeat=True)
    torch.manual_seed(5)
    assert torch.equal(single, torch.randn(3, 2, 4))
    assert torch.equal(repeated, torch.randn(1, 2, 4).expand(3, 2, 4))


class Counted(nn.Module):
    """Linear, dropout, tanh; counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.calls = nn.Linear(6, 6), nn.Dropout(0.5), 0

    def forward(self, x, extra=None):
        self.calls += 1
        h = self.drop(self.layer(x)).tanh()
        return h if extra is None else h * extra


def gradients(run, module, *inputs):
    module.zero_grad()
    module.calls = 0
    torch.manual_seed(3)
    run(module, inputs).sum().backward()
    return [parameter.grad.clone() for parameter in module.parameters()], module.calls


def test_checkpointing_computes_twice_and_gives_the_same_gradients():
    module, x, extra = Counted(), torch.randn(4, 6), torch.randn(4, 6)
    plain, once = gradients(lambda m, inputs: checkpoint(m, inputs, m.parameters(), False), module, x, extra)
    again, twice = gradients(lambda m, inputs: checkpoint(m, inputs, m.parameters(), True), module, x, extra)
    assert (once, twice) == (1, 2)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)                             # the same dropout mask, too


def test_checkpointing_is_no_work_where_no_gradient_is_wanted():
    module = Counted()
    with torch.no_grad():
        checkpoint(module, (torch.randn(2, 6), None), module.parameters(), True)
    assert module.calls == 1


def test_checkpointing_reaches_an_input_through_frozen_weights():
    module = Counted().requires_grad_(False).eval()
    x = torch.randn(4, 6, requires_grad=True)
    (with_it,) = torch.autograd.grad(checkpoint(module, (x,), module.parameters(), True).sum(), x)
    (without,) = torch.autograd.grad(module(x).sum(), x)
    assert torch.equal(with_it, without)


def test_the_autograd_function_trains_parameters_and_inputs():
    module, x = Counted(), torch.randn(4, 6)
    plain, _ = gradients(lambda m, inputs: m(*inputs), module, x)
    applied, calls = gradients(lambda m, inputs: CheckpointFunction.apply(m, 1, *inputs, *m.parameters()), module, x)
    assert calls == 2
    for a, b in zip(plain, applied, strict=True):
        assert torch.equal(a, b)

    module.eval()
    leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    CheckpointFunction.apply(module, 1, leaf).sum().backward()
    module(twin).sum().backward()
    assert torch.equal(leaf.grad, twin.grad)


def test_hybrid_conditioner_sends_each_condition_through_its_own_encoder():
    rescale = {"target": "ldm.modules.diffusionmodules.util.avg_pool_nd", "params": {"dims": 2, "kernel_size": 2}}
    conditioner = HybridConditioner(rescale, {"target": "torch.nn.Identity"})
    picture, tokens = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 8)
    out = conditioner(picture, tokens)
    assert set(out) == {"c_concat", "c_crossattn"}
    torch.testing.assert_close(out["c_concat"], [F.avg_pool2d(picture, 2)])
    assert out["c_crossattn"][0] is tokens
