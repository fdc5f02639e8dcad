"""Adapters in files of known layouts are merged linearly in the strength; any other layout is named."""
from __future__ import annotations

import json
import re

import pytest
import torch

from ldm.checkpoints.adapters import Adapter, adapters_in, diffusers_name, kohya_names, merged
from tests.golden.case import oracle_file

Q = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
RANK, ALPHA = 2, 3.0


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    rest = {"model.diffusion_model.out.0.weight": torch.randn(3), "betas": torch.arange(3)}
    return {Q: torch.randn(6, 5), CONV: torch.randn(6, 5, 1, 1), TEXT: torch.randn(4, 4), **rest}


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(1)
    return Adapter(torch.randn(RANK, 5), torch.randn(6, RANK), ALPHA)


def kohya(adapter: Adapter, name: str, alpha: float | None = ALPHA) -> dict[str, torch.Tensor]:
    told = {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return {f"{name}.lora_down.weight": adapter.A, f"{name}.lora_up.weight": adapter.B, **told}


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.8, 1.0, -1.0])
def test_merged_weight_is_the_closed_form_and_nothing_else_changes(base, adapter, strength):
    result = merged(base, {Q: adapter}, strength)
    assert list(result) == list(base)
    assert torch.equal(result[Q], base[Q] + strength * ALPHA / RANK * (adapter.B @ adapter.A))
    assert all(torch.equal(result[key], value) for key, value in base.items() if key != Q)


def test_strengths_give_different_weights_linear_in_them(base, adapter):
    """A39: unlike strengths once gave the same file."""
    low, high, whole = (merged(base, {Q: adapter}, strength)[Q].double() - base[Q].double() for strength in (0.2, 0.8, 1.0))
    assert not torch.equal(low, high)
    torch.testing.assert_close(4 * low, high, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(low + high, whole, rtol=1e-5, atol=1e-6)


def test_convolutions_are_merged_as_the_maps_that_they_are(base):
    """A k×k convolution to r channels, then a 1×1 one, is one convolution."""
    A, B, weight, x = torch.randn(RANK, 5, 3, 3), torch.randn(6, RANK, 1, 1), torch.randn(6, 5, 3, 3), torch.randn(1, 5, 7, 7)
    result = merged({CONV: weight}, {CONV: Adapter(A, B, ALPHA)}, 0.5)[CONV]
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(conv(x, result), conv(x, weight) + 0.5 * ALPHA / RANK * conv(conv(x, A), B), rtol=1e-4, atol=1e-4)


def test_a_base_in_half_precision_stays_so_and_is_summed_in_fp32(base, adapter):
    half = {Q: base[Q].half()}
    result = merged(half, {Q: adapter}, 0.5)[Q]
    assert torch.equal(result, (half[Q].float() + 0.5 * ALPHA / RANK * (adapter.B @ adapter.A)).half())


def test_an_adapter_of_another_width_is_refused_by_name(base, adapter):
    with pytest.raises(ValueError, match=re.escape(Q)):
        merged(base, {Q: adapter._replace(A=torch.randn(RANK, 4))}, 1.0)


def test_own_layout_is_read_with_its_alpha(base, adapter):
    layer = Q.removesuffix(".weight")
    tensors = {f"{layer}.lora_A.weight": adapter.A, f"{layer}.lora_B.weight": adapter.B, f"{layer}.alpha": torch.tensor(ALPHA), "betas": torch.arange(3)}
    (found,) = adapters_in(tensors, base, "file").items()
    assert found[0] == Q and found[1].A is adapter.A and found[1].B is adapter.B and found[1].alpha == ALPHA


def test_own_layout_meets_a_base_that_calls_the_text_tower_otherwise(base):
    layer = TEXT.removesuffix(".weight").replace("text_model.", "")
    tensors = {f"{layer}.lora_A.weight": torch.ones(1, 4), f"{layer}.lora_B.weight": torch.ones(4, 1), f"{layer}.alpha": torch.tensor(1.0)}
    assert list(adapters_in(tensors, base, "file")) == [TEXT]


def test_kohyas_layout_is_read_with_its_own_alpha_or_with_the_rank(base, adapter):
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    assert adapters_in(kohya(adapter, name), base, "file")[Q].alpha == ALPHA
    assert adapters_in(kohya(adapter, name, alpha=None), base, "file")[Q].alpha == RANK
    text = Adapter(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    both = adapters_in({**kohya(adapter, name), **kohya(text, "lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1.0)}, base, "file")
    assert list(both) == [Q, TEXT]
    result = merged(base, both, 0.8)
    assert torch.equal(result[Q], base[Q] + 0.8 * ALPHA / RANK * (adapter.B @ adapter.A)) and torch.equal(result[TEXT], base[TEXT] + 0.8)


def test_diffusers_names_of_stable_diffusion_1_meet_its_layers_one_to_one():
    """The attention blocks of diffusers' UNet: two in each of down 0-2, one in the middle, three in each of up 1-3, of these widths."""
    shapes = {key: entry["shape"] for key, entry in json.loads(oracle_file("manifest_sd_v1.json").read_text())["keys"].items()}
    widths = {f"down_blocks_{i}_attentions_{j}": 320 * 2**i for i in range(3) for j in range(2)}
    widths |= {f"up_blocks_{i}_attentions_{j}": 320 * 2 ** (3 - i) for i in range(1, 4) for j in range(3)} | {"mid_block_attentions_0": 1280}
    names = kohya_names(key for key in shapes if key.endswith(".weight"))
    rest = "transformer_blocks_0_attn2_to_out_0"
    found = {block: names[f"lora_unet_{block}_{rest}"] for block in widths}
    assert len(set(found.values())) == 16 == sum(key.endswith("attn2.to_out.0.weight") for key in shapes)
    assert {block: shapes[key][0] for block, key in found.items()} == widths
    places = [re.search(r"(in|out)put_blocks\.(\d+)", found[block]).group(1, 2) for block in ("down_blocks_1_attentions_0", "up_blocks_1_attentions_2")]
    assert places == [("in", "4"), ("out", "5")]
    assert names["lora_te_text_model_encoder_layers_11_mlp_fc2"].endswith("layers.11.mlp.fc2.weight")


def test_layers_outside_the_transformers_keep_their_names():
    assert diffusers_name("input_blocks.1.0.in_layers.2", 3) == "input_blocks.1.0.in_layers.2"
    assert diffusers_name("output_blocks.11.1.proj_out", 3) == "up_blocks.3.attentions.2.proj_out"


@pytest.mark.parametrize(
    "tensors",
    [
        {"unet.down_blocks.0.attn1.processor.to_q_lora.down.weight": torch.ones(2, 5)},
        {"lora_unet_x.lora_down.weight": torch.ones(2, 5), "lora_unet_x.lora_up.weight": torch.ones(6, 2), "lora_unet_x.lora_mid.weight": torch.ones(2, 2)},
        {"lora_unet_x.lora_down.weight": torch.ones(2, 5)},
    ],
    ids=["diffusers' processors", "a third factor", "half of a pair"],
)
def test_an_unknown_layout_is_one_message_that_names_the_known_ones(base, tensors):
    with pytest.raises(ValueError, match="some.safetensors: low-rank adapters in a layout that is not known here.*lora_A.weight.*lora_down.weight"):
        adapters_in(tensors, base, "some.safetensors")


def test_layers_that_the_base_does_not_have_are_named(base, adapter):
    with pytest.raises(ValueError, match="1 of 1 adapted layers are not in the base: lora_unet_elsewhere"):
        adapters_in(kohya(adapter, "lora_unet_elsewhere"), base, "file")
