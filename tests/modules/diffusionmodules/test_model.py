"""The networks of the first stage: equal to taming's (of the same descent) where it has them, and to closed forms."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules import model as taming_model
from torch import nn

from ldm.modules.diffusionmodules.model import (
    AttnBlock,
    Decoder,
    Downsample,
    Encoder,
    LinAttnBlock,
    Model,
    Normalize,
    ResnetBlock,
    Upsample,
    get_timestep_embedding,
    make_attn,
    nonlinearity,
)

UNET = dict(ch=32, out_ch=3, ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=[8], in_channels=3, resolution=16)
NETWORK = {**UNET, "z_channels": 4}


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("options", [{}, {"resamp_with_conv": False}, {"double_z": False}], ids=str)
def test_encoder_is_tamings(options):
    ours, theirs = Encoder(**NETWORK, **options), taming_model.Encoder(**NETWORK, **options)
    same_weights(ours, theirs)
    x = torch.randn(2, 3, 16, 24)  # any size: `resolution` only places attention
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"resamp_with_conv": False}, {"give_pre_end": True}], ids=str)
def test_decoder_is_tamings(options):
    ours, theirs = Decoder(**NETWORK, **options), taming_model.Decoder(**NETWORK, **options)
    same_weights(ours, theirs)
    z = torch.randn(2, 4, 4, 6)
    torch.testing.assert_close(ours(z), theirs(z), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"resamp_with_conv": False}, {"use_timestep": False}], ids=str)
def test_unet_is_tamings(options):
    ours, theirs = Model(**UNET, **options), taming_model.Model(**UNET, **options)
    same_weights(ours, theirs)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]) if options.get("use_timestep", True) else None
    torch.testing.assert_close(ours(x, t), theirs(x, t), atol=1e-5, rtol=1e-4)
    assert ours.get_last_layer() is ours.conv_out.weight


def test_unet_joins_the_context_to_the_picture():
    torch.manual_seed(0)
    network = Model(**{**UNET, "in_channels": 5})
    x, context, t = torch.randn(1, 3, 16, 16), torch.randn(1, 2, 16, 16), torch.tensor([7])
    torch.testing.assert_close(network(x, t, context), network(torch.cat([x, context], 1), t))
    with pytest.raises(ValueError, match="use_timestep"):
        network(x, None, context)


def test_encoder_and_decoder_take_one_ddconfig():
    """Each ignores the keys of the other."""
    ddconfig = {**NETWORK, "double_z": True, "tanh_out": True, "give_pre_end": False}
    encoder, decoder = Encoder(**ddconfig), Decoder(**ddconfig)
    moments = encoder(torch.randn(1, 3, 16, 16))
    assert moments.shape == (1, 8, 4, 4)
    assert decoder.z_shape == (1, 4, 4, 4)
    picture = decoder(50.0 * moments[:, :4])
    assert picture.shape == (1, 3, 16, 16)
    assert picture.abs().max() <= 1.0


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, AttnBlock),
        ({"attn_type": "none"}, nn.Identity),
        ({"attn_type": "linear"}, LinAttnBlock),
        ({"attn_type": "none", "use_linear_attn": True}, LinAttnBlock),
    ],
)
def test_attention_stands_at_the_nominal_resolutions_and_in_the_middle(options, kind):
    for network, levels in ((Encoder(**NETWORK, **options), "down"), (Decoder(**NETWORK, **options), "up")):
        kinds = [[type(layer) for layer in level.attn] for level in getattr(network, levels)]
        assert kinds == [[], [kind] * len(getattr(network, levels)[1].block), []]
        assert type(network.mid.attn_1) is kind


def test_groups_of_normalisation_are_chosen_and_keys_stay():
    for build in (Encoder, Decoder):
        network = build(**NETWORK, num_norm_groups=8)
        assert {layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)} == {8}
        assert list(network.state_dict()) == list(build(**NETWORK).state_dict())
        with pytest.raises(ValueError, match="num_norm_groups is 12.* channels of a level"):
            build(**NETWORK, num_norm_groups=12)


@pytest.mark.parametrize(("groups", "keeps"), [(32, False), (8, True)])
def test_fewer_groups_than_channels_keep_the_colours(groups, keeps):
    """A plain picture's features are constant: alone in their groups they are normalised to nothing, whatever the colour."""
    norm = Encoder(**NETWORK, num_norm_groups=groups).down[0].block[0].norm1
    plain = torch.randn(1, 32, 1, 1).expand(1, 32, 4, 4)
    assert bool(norm(plain).abs().max() > 1e-3) is keeps


def test_unknown_attention_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'vanila'.*vanilla, linear, none"):
        make_attn(32, "vanila")


def test_attention_is_the_softmax_of_scaled_products():
    block = AttnBlock(32)
    x = torch.randn(2, 32, 3, 5)
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))                  # (B, C, N)
    shares = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(32), dim=2)
    expected = x + block.proj_out(torch.einsum("bij,bcj->bci", shares, v).view_as(x))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_linear_attention_has_one_head_and_no_residual():
    block = LinAttnBlock(32)
    nn.init.zeros_(block.to_out.bias)
    assert block.heads == 1
    assert block.to_qkv.weight.shape == (96, 32, 1, 1)
    assert not block(torch.zeros(1, 32, 4, 4)).any()


def test_downsampling_pads_right_and_below_only():
    down = Downsample(1, with_conv=True)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    # Each output counts the pixels under its 3×3 window: the last column and row lie half outside.
    torch.testing.assert_close(down(torch.ones(1, 1, 4, 4))[0, 0], torch.tensor([[9.0, 6.0], [6.0, 4.0]]))
    torch.testing.assert_close(Downsample(1, with_conv=False)(torch.arange(4.0).view(1, 1, 2, 2)), torch.tensor(1.5).view(1, 1, 1, 1))


def test_upsampling_repeats_pixels():
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(Upsample(2, with_conv=False)(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    up = Upsample(2, with_conv=True)
    torch.testing.assert_close(up(x), up.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))


@pytest.mark.parametrize(("conv_shortcut", "kernel"), [(False, (1, 1)), (True, (3, 3))])
def test_residual_block_changes_width_by_its_shortcut(conv_shortcut, kernel):
    block = ResnetBlock(in_channels=32, out_channels=64, conv_shortcut=conv_shortcut, dropout=0.0, temb_channels=0)
    assert not hasattr(block, "temb_proj")
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    shortcut = block.conv_shortcut if conv_shortcut else block.nin_shortcut
    assert shortcut.kernel_size == kernel
    x = torch.randn(1, 32, 4, 4)
    torch.testing.assert_close(block(x, None), shortcut(x))


def test_timestep_enters_between_the_convolutions():
    block = ResnetBlock(in_channels=32, dropout=0.0, temb_channels=8)
    x, temb = torch.randn(2, 32, 4, 4), torch.randn(2, 8)
    h = block.conv1(F.silu(block.norm1(x))) + block.temb_proj(F.silu(temb)).view(2, 32, 1, 1)
    torch.testing.assert_close(block(x, temb), x + block.conv2(F.silu(block.norm2(h))))


def test_timestep_embedding_has_periods_from_one_to_ten_thousand():
    t = torch.tensor([0, 1, 250])
    embedding = get_timestep_embedding(t, 9)
    frequencies = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4])
    angles = t[:, None].float() * frequencies
    torch.testing.assert_close(embedding, torch.cat([angles.sin(), angles.cos(), torch.zeros(3, 1)], 1), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="vector"):
        get_timestep_embedding(t[:, None], 8)


def test_normalisation_and_nonlinearity():
    norm = Normalize(64)
    assert (norm.num_groups, norm.eps) == (32, 1e-6)
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(nonlinearity(x), x / (1 + torch.exp(-x)))
