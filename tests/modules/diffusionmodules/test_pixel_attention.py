"""Self-attention on feature maps against the formula written out."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, AttentionPool2d, QKVAttention, QKVAttentionLegacy

HEADS, WIDTH = 3, 4


def attention_by_hand(q, k, v):
    """(H, d, T) each; one sample."""
    weights = torch.softmax(torch.einsum("hdt,hds->hts", q, k) / q.shape[1] ** 0.5, dim=-1)
    return torch.einsum("hts,hds->hdt", weights, v).flatten(0, 1)


def test_new_order_is_all_queries_then_all_keys_then_all_values():
    qkv = torch.randn(2, 3 * HEADS * WIDTH, 7)
    out = QKVAttention(HEADS)(qkv)
    for sample, result in zip(qkv, out, strict=True):
        torch.testing.assert_close(result, attention_by_hand(*(part.reshape(HEADS, WIDTH, 7) for part in sample.chunk(3))))


def test_legacy_order_is_head_by_head():
    qkv = torch.randn(2, 3 * HEADS * WIDTH, 7)
    out = QKVAttentionLegacy(HEADS)(qkv)
    for sample, result in zip(qkv, out, strict=True):
        by_head = [head.chunk(3) for head in sample.chunk(HEADS)]
        torch.testing.assert_close(result, attention_by_hand(*(torch.stack(part) for part in zip(*by_head, strict=True))))


@pytest.mark.parametrize("new_order", [True, False])
def test_block_begins_as_the_identity_and_adds_attention_over_all_positions(new_order):
    block, x = AttentionBlock(64, num_heads=4, use_new_attention_order=new_order), torch.randn(2, 64, 3, 5)
    assert torch.equal(block(x), x)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    normed = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-5).flatten(2)
    expected = x + block.proj_out(block.attention(block.qkv(normed))).view_as(x)
    torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(block(x.transpose(2, 3)), expected.transpose(2, 3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(block(x.to(memory_format=torch.channels_last)), expected, atol=1e-4, rtol=1e-4)


def test_width_of_a_head_decides_their_number():
    assert AttentionBlock(64, num_heads=1, num_head_channels=16).num_heads == 4
    assert AttentionBlock(64, num_heads=2).num_heads == 2
    for kwargs in ({"num_heads": 3}, {"num_head_channels": 24}, {"num_head_channels": 128}, {"num_heads": -1}):
        with pytest.raises(ValueError, match="64 channels cannot be shared out"):
            AttentionBlock(64, **kwargs)


@pytest.mark.parametrize("use_checkpoint", [True, False])
def test_block_computes_again_in_the_backward_pass_only_when_told_to(use_checkpoint):
    block, calls = AttentionBlock(32, use_checkpoint=use_checkpoint), []
    block.attention.register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(1, 32, 2, 2)).sum().backward()
    assert len(calls) == (2 if use_checkpoint else 1)


def test_pooling_is_the_answer_that_the_mean_gets():
    pool, x = AttentionPool2d(3, 12, num_heads_channels=4, output_dim=5), torch.randn(2, 12, 3, 3)
    flat = x.flatten(2)
    tokens = torch.cat([flat.mean(-1, keepdim=True), flat], dim=-1) + pool.positional_embedding
    out = [attention_by_hand(*(part.reshape(3, 4, 10) for part in sample.chunk(3)))[:, :1] for sample in pool.qkv_proj(tokens)]
    torch.testing.assert_close(pool(x), pool.c_proj(torch.stack(out))[..., 0])
    assert AttentionPool2d(3, 12, num_heads_channels=4)(x).shape == (2, 12)


@pytest.mark.parametrize("attention", [QKVAttention, QKVAttentionLegacy])
def test_multiply_adds_are_two_products_of_all_pairs(attention):
    model = SimpleNamespace(total_ops=torch.zeros(1, dtype=torch.float64))
    for _ in range(2):
        attention.count_flops(model, None, (torch.empty(2, 12, 7),))
    assert model.total_ops.item() == 2 * (2 * 2 * 12 * 7 * 7)
