"""Attention and the transformer block against explicit formulas and torch's own layers."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.attention import (
    GEGLU,
    BasicTransformerBlock,
    CrossAttention,
    FeedForward,
    LinearAttention,
    Normalize,
    SpatialSelfAttention,
    SpatialTransformer,
)


def as_torch_attention(layer: CrossAttention) -> nn.MultiheadAttention:
    """torch's multi-head attention with the weights of `layer` (whose inner width must be its query width)."""
    width, context_width = layer.to_q.in_features, layer.to_k.in_features
    twin = nn.MultiheadAttention(width, layer.heads, kdim=context_width, vdim=context_width, batch_first=True)
    weights = {"in_proj_bias": torch.zeros(3 * width), "out_proj.weight": layer.to_out[0].weight, "out_proj.bias": layer.to_out[0].bias}
    projections = layer.to_q.weight, layer.to_k.weight, layer.to_v.weight
    if context_width == width:
        weights["in_proj_weight"] = torch.cat(projections)
    else:
        weights |= dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), projections, strict=True))
    twin.load_state_dict({key: value.detach() for key, value in weights.items()})
    return twin


@pytest.mark.parametrize("context_dim", [None, 24, 20])
def test_cross_attention_is_torchs_multi_head_attention_without_input_biases(context_dim):
    layer, x = CrossAttention(24, context_dim, heads=3, dim_head=8), torch.randn(2, 10, 24, requires_grad=True)
    context = None if context_dim is None else torch.randn(2, 7, context_dim)
    keys = x if context is None else context
    expected, _ = as_torch_attention(layer)(x, keys, keys)
    actual = layer(x, context=context)
    torch.testing.assert_close(actual, expected)
    probe = torch.randn_like(actual)
    torch.testing.assert_close(*(torch.autograd.grad((out * probe).sum(), x)[0] for out in (actual, expected)))


def test_masked_keys_have_no_say():
    layer, x, context = CrossAttention(16, 12, heads=2, dim_head=8), torch.randn(2, 5, 16), torch.randn(2, 6, 12)
    mask = torch.tensor([[True, True, False, True, False, False], [True] * 6])
    masked = layer(x, context, mask=mask)
    torch.testing.assert_close(masked[0], layer(x[:1], context[:1, mask[0]])[0])
    torch.testing.assert_close(masked[1], layer(x, context)[1])
    torch.testing.assert_close(layer(x, context, mask=mask.view(2, 2, 3)), masked)
    nothing = layer(x, context, mask=torch.zeros_like(mask))
    torch.testing.assert_close(nothing, layer.to_out[0].bias.expand_as(nothing))


def test_scale_is_that_of_the_head_width():
    assert CrossAttention(32, heads=2, dim_head=16).scale == 0.25


def test_context_has_no_order():
    layer, x, context = CrossAttention(16, 12, heads=2, dim_head=8), torch.randn(1, 5, 16), torch.randn(1, 6, 12)
    torch.testing.assert_close(layer(x, context[:, torch.randperm(6)]), layer(x, context))


def test_gated_feed_forward_multiplies_the_first_half_by_the_gelu_of_the_second():
    layer, x = GEGLU(6, 5), torch.randn(2, 3, 6)
    value, gate = F.linear(x, layer.proj.weight[:5], layer.proj.bias[:5]), F.linear(x, layer.proj.weight[5:], layer.proj.bias[5:])
    torch.testing.assert_close(layer(x), value * gate * 0.5 * (1 + torch.erf(gate / 2**0.5)))


@pytest.mark.parametrize(("glu", "keys"), [(True, "net.0.proj"), (False, "net.0.0")])
def test_feed_forward_widens_by_mult_and_ends_in_dim_out(glu, keys):
    layer = FeedForward(6, dim_out=4, mult=3, glu=glu)
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert shapes == {f"{keys}.weight": (36 if glu else 18, 6), f"{keys}.bias": (36 if glu else 18,), "net.2.weight": (4, 18), "net.2.bias": (4,)}
    x = torch.randn(2, 3, 6)
    if not glu:
        torch.testing.assert_close(layer(x), layer.net[2](F.gelu(layer.net[0][0](x))))
    assert layer(x).shape == (2, 3, 4)


def test_dropout_is_applied_in_training_only():
    block, x = BasicTransformerBlock(16, 2, 8, dropout=0.5), torch.randn(1, 4, 16)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_block_adds_each_part_to_its_input_in_order():
    block, x, context = BasicTransformerBlock(16, 2, 8, context_dim=12), torch.randn(2, 5, 16), torch.randn(2, 3, 12)
    for name, parameter in block.named_parameters():        # layer norms that do something
        if name.startswith("norm"):
            nn.init.normal_(parameter)
    h = x + block.attn1(block.norm1(x))
    h = h + block.attn2(block.norm2(h), context)
    torch.testing.assert_close(block(x, context), h + block.ff(block.norm3(h)))


@pytest.mark.parametrize("checkpoint", [True, False])
def test_block_computes_again_in_the_backward_pass_only_when_told_to(checkpoint):
    block, calls = BasicTransformerBlock(16, 2, 8, context_dim=12, checkpoint=checkpoint), []
    block.attn2.register_forward_hook(lambda *_: calls.append(1))
    context = torch.randn(2, 3, 12, requires_grad=True)
    block(torch.randn(2, 5, 16), context).sum().backward()
    assert len(calls) == (2 if checkpoint else 1)
    assert context.grad.any()


def loud(module: nn.Module) -> nn.Module:
    """`module` with all parameters drawn anew, those that begin as zeros included."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_spatial_transformer_begins_as_the_identity_and_is_blocks_over_positions():
    layer = SpatialTransformer(32, n_heads=2, d_head=8, depth=2, context_dim=12)
    x, context = torch.randn(2, 32, 3, 5), torch.randn(2, 4, 12)
    assert torch.equal(layer(x, context), x)

    loud(layer)
    normed = F.group_norm(x, 32, layer.norm.weight, layer.norm.bias, eps=1e-6)
    tokens = torch.einsum("bcp,oc->bpo", normed.flatten(2), layer.proj_in.weight[:, :, 0, 0]) + layer.proj_in.bias
    for block in layer.transformer_blocks:
        tokens = block(tokens, context)
    out = torch.einsum("bpo,co->bcp", tokens, layer.proj_out.weight[:, :, 0, 0]) + layer.proj_out.bias[:, None]
    torch.testing.assert_close(layer(x, context), x + out.view_as(x), atol=1e-5, rtol=1e-5)


def test_spatial_transformer_does_not_know_where_a_position_lies():
    layer, x, context = loud(SpatialTransformer(32, 2, 8, context_dim=12)), torch.randn(1, 32, 4, 6), torch.randn(1, 4, 12)
    torch.testing.assert_close(layer(x.transpose(2, 3), context), layer(x, context).transpose(2, 3), atol=1e-5, rtol=1e-5)


def test_context_width_is_one_number_or_one_a_block():
    widths = [block.attn2.to_k.in_features for block in SpatialTransformer(32, 2, 8, depth=2, context_dim=(12, 20)).transformer_blocks]
    assert widths == [12, 20]
    assert SpatialTransformer(32, 2, 8, depth=3, context_dim=[12]).transformer_blocks[2].attn2.to_v.in_features == 12
    with pytest.raises(ValueError, match=r"context_dim has 2 entries, \[12, 20\].*3 transformer blocks"):
        SpatialTransformer(32, 2, 8, depth=3, context_dim=[12, 20])


def test_spatial_transformer_hands_checkpointing_down():
    for wanted in (True, False):
        assert all(block.checkpoint is wanted for block in SpatialTransformer(32, 2, 8, depth=2, use_checkpoint=wanted).transformer_blocks)


def test_spatial_self_attention_is_one_head_over_positions():
    layer, x = loud(SpatialSelfAttention(32)), torch.randn(2, 32, 3, 4)
    normed = F.group_norm(x, 32, layer.norm.weight, layer.norm.bias, eps=1e-6)
    q, k, v = (torch.einsum("bchw,oc->bohw", normed, p.weight[:, :, 0, 0]).flatten(2) + p.bias[:, None] for p in (layer.q, layer.k, layer.v))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 32**0.5, dim=-1)
    attended = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    torch.testing.assert_close(layer(x), x + layer.proj_out(attended), atol=1e-4, rtol=1e-4)


def test_linear_attention_is_what_its_weights_spell_out():
    layer, x = loud(LinearAttention(16, heads=2, dim_head=4)), torch.randn(2, 16, 3, 5)
    q, k, v = layer.to_qkv(x).view(2, 3, 2, 4, 15).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q, k.softmax(dim=-1))           # what position i takes from position j
    attended = torch.einsum("bhij,bhej->bhei", weights, v).reshape(2, 8, 3, 5)
    torch.testing.assert_close(layer(x), layer.to_out(attended), atol=1e-5, rtol=1e-4)
    assert set(layer.state_dict()) == {"to_qkv.weight", "to_out.weight", "to_out.bias"}


def test_normalize_has_32_groups_and_a_smaller_eps_than_the_networks_norm():
    norm = Normalize(64)
    assert (norm.num_groups, norm.num_channels, norm.eps, norm.affine) == (32, 64, 1e-6, True)
