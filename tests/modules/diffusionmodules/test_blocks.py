"""Residual blocks and changes of resolution."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, TimestepBlock, TimestepEmbedSequential, TransposedUpsample, Upsample


def loud(module: nn.Module) -> nn.Module:
    """`module` with all parameters drawn anew, those that begin as zeros included."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def group_norm(x, layer):
    return F.group_norm(x, 32, layer.weight, layer.bias, eps=1e-5)


def test_res_block_begins_as_its_skip_connection():
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    assert torch.equal(ResBlock(32, 16, 0.0)(x, emb), x)
    widening = ResBlock(32, 16, 0.0, out_channels=64)
    assert torch.equal(widening(x, emb), widening.skip_connection(x))
    assert widening.skip_connection.kernel_size == (1, 1)
    assert ResBlock(32, 16, 0.0, out_channels=64, use_conv=True).skip_connection.kernel_size == (3, 3)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_res_block_takes_the_embedding_in_between_its_convolutions(scale_shift):
    block = loud(ResBlock(32, 16, 0.0, out_channels=64, use_scale_shift_norm=scale_shift))
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    h = F.conv2d(F.silu(group_norm(x, block.in_layers[0])), block.in_layers[2].weight, block.in_layers[2].bias, padding=1)
    e = F.linear(F.silu(emb), block.emb_layers[1].weight, block.emb_layers[1].bias)[:, :, None, None]
    h = group_norm(h, block.out_layers[0]) * (1 + e[:, :64]) + e[:, 64:] if scale_shift else group_norm(h + e, block.out_layers[0])
    h = F.conv2d(F.silu(h), block.out_layers[3].weight, block.out_layers[3].bias, padding=1)
    torch.testing.assert_close(block(x, emb), block.skip_connection(x) + h, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("direction", "resample"), [("up", lambda x: F.interpolate(x, scale_factor=2)), ("down", lambda x: F.avg_pool2d(x, 2))])
def test_resampling_blocks_resample_both_branches_without_weights(direction, resample):
    block = ResBlock(32, 16, 0.0, **{direction: True})
    plain = ResBlock(32, 16, 0.0)
    assert list(block.state_dict()) == list(plain.state_dict())
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    assert torch.equal(block(x, emb), resample(x))

    loud(block)
    h = block.in_layers[2](resample(F.silu(group_norm(x, block.in_layers[0]))))
    h = block.out_layers(h + block.emb_layers(emb)[:, :, None, None])
    torch.testing.assert_close(block(x, emb), resample(x) + h, atol=1e-4, rtol=1e-4)


def test_dropout_acts_before_the_last_convolution():
    block, x, emb = loud(ResBlock(32, 16, dropout=1.0)), torch.randn(1, 32, 4, 4), torch.randn(1, 16)
    torch.testing.assert_close(block(x, emb), x + block.out_layers[3].bias[:, None, None])
    assert not torch.allclose(block.eval()(x, emb), x + block.out_layers[3].bias[:, None, None], atol=1e-2)


@pytest.mark.parametrize("use_checkpoint", [True, False])
def test_res_block_computes_again_in_the_backward_pass_only_when_told_to(use_checkpoint):
    block, calls = ResBlock(32, 16, 0.0, use_checkpoint=use_checkpoint), []
    block.out_layers[0].register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(2, 32, 4, 4, requires_grad=True), torch.randn(2, 16)).sum().backward()
    assert len(calls) == (2 if use_checkpoint else 1)


def test_halving_by_averaging_or_by_convolution():
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(Downsample(4, use_conv=False)(x), F.avg_pool2d(x, 2))
    down = Downsample(4, use_conv=True, out_channels=8)
    assert torch.equal(down(x), F.conv2d(x, down.op.weight, down.op.bias, stride=2, padding=1))
    with pytest.raises(ValueError, match="keeps the 4 channels; 8 need"):
        Downsample(4, use_conv=False, out_channels=8)


def test_doubling_repeats_pixels_then_convolves():
    x = torch.randn(1, 4, 3, 3)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(Upsample(4, use_conv=False)(x), repeated)
    up = Upsample(4, use_conv=True, out_channels=8)
    assert torch.equal(up(x), F.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1))


def test_in_three_dimensions_the_first_keeps_its_length():
    x = torch.randn(1, 4, 5, 6, 6)
    assert Downsample(4, use_conv=True, dims=3)(x).shape == (1, 4, 5, 3, 3)
    assert Downsample(4, use_conv=False, dims=3)(x).shape == (1, 4, 5, 3, 3)
    assert Upsample(4, use_conv=True, dims=3)(x).shape == (1, 4, 5, 12, 12)


@pytest.mark.parametrize("dims", [1, 3])
def test_res_block_works_in_other_dimensions(dims):
    block = loud(ResBlock(32, 16, 0.0, out_channels=64, dims=dims, use_scale_shift_norm=True, down=True))
    shrunk = [4] if dims == 1 else [8, 4, 4]
    assert block(torch.randn(2, 32, *[8] * dims), torch.randn(2, 16)).shape == (2, 64, *shrunk)


def test_transposed_upsample_spreads_and_convolves():
    up, x = TransposedUpsample(4, out_channels=2), torch.randn(1, 4, 3, 3)
    assert up(x).shape == (1, 2, 9, 9)
    assert torch.equal(up(x), F.conv_transpose2d(x, up.up.weight, up.up.bias, stride=2))
    assert TransposedUpsample(4, ks=2)(x).shape == (1, 4, 6, 6)


def test_sequence_gives_each_layer_what_it_understands():
    class Add(TimestepBlock):
        def forward(self, x, emb):
            return x + emb[:, :, None, None]

    transformer = loud(SpatialTransformer(32, 2, 8, context_dim=12))
    sequence = TimestepEmbedSequential(Add(), transformer, nn.Tanh())
    x, emb, context = torch.randn(2, 32, 4, 4), torch.randn(2, 32), torch.randn(2, 3, 12)
    expected = transformer(x + emb[:, :, None, None], context).tanh()
    assert torch.equal(sequence(x, emb, context), expected)
