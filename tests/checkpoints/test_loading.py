"""All of a checkpoint or nothing of it, and one message that says why."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.checkpoints import load_weights, save_weights
from ldm.checkpoints.keys import family, renamed, with_averaged_weights
from ldm.modules.ema import LitEma


def net() -> nn.Module:
    return nn.ModuleDict({"model": nn.Linear(2, 3), "head": nn.Linear(3, 1)})


@pytest.fixture
def saved(tmp_path):
    """Writes tensors to a checkpoint."""

    def save(tensors):
        save_weights(tmp_path / "m.ckpt", tensors)
        return tmp_path / "m.ckpt"

    return save


def test_weights_arrive_and_the_report_counts_them(saved):
    source, target = net(), net()
    report = load_weights(target, saved(source.state_dict()))
    assert report.loaded == 4 and not report.missed and not report.unexpected and report.summary() == "4 tensors"
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_missing_and_unknown_keys_are_all_listed_at_once_and_nothing_is_loaded(saved):
    target = net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    tensors = net().state_dict()
    del tensors["head.bias"]
    tensors["hed.bias"] = torch.zeros(1)
    with pytest.raises(ValueError, match="Nothing was loaded") as caught:
        load_weights(target, saved(tensors))
    assert "head.bias" in str(caught.value) and "hed.bias" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_what_may_be_missing_or_unexpected_is_named_by_prefix_and_reported(saved):
    tensors = {key: value for key, value in net().state_dict().items() if not key.startswith("head.")} | {"model_ema.decay": torch.tensor(0.9)}
    report = load_weights(net(), saved(tensors), may_miss=("head.",), may_be_unexpected=("model_ema.",))
    assert report.loaded == 2 and report.missed == ["head.weight", "head.bias"] and report.unexpected == ["model_ema.decay"]
    assert "head.weight" in report.summary()


def test_ignored_prefixes_keep_their_present_values(saved):
    target = net()
    head = target["head"].weight.clone()
    load_weights(target, saved(net().state_dict()), ignore_prefixes=("head.",), may_miss=("head.",))
    assert torch.equal(target["head"].weight, head)


def test_only_a_prefix_is_loaded_whether_or_not_the_module_uses_it(saved):
    source, whole = net(), net()
    head = whole["head"].weight.clone()
    assert load_weights(whole, saved(source.state_dict()), only_prefix="model.").loaded == 2
    assert torch.equal(whole["model"].weight, source["model"].weight) and torch.equal(whole["head"].weight, head)
    part = nn.Linear(2, 3)
    assert load_weights(part, saved(source.state_dict()), only_prefix="model.").loaded == 2
    assert torch.equal(part.weight, source["model"].weight)
    with pytest.raises(ValueError, match="no key begins with first_stage_model"):
        load_weights(part, saved(source.state_dict()), only_prefix="first_stage_model.")


def test_position_ids_and_the_first_stages_loss_are_always_optional(saved):
    extra = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None], "first_stage_model.loss.logvar": torch.zeros(())}
    assert load_weights(net(), saved({**net().state_dict(), **extra})).loaded == 4


def test_shapes_that_differ_are_named_with_both(saved):
    tensors = {**net().state_dict(), "model.weight": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match=r"model.weight is \[3, 5\] in the file and \[3, 2\] in the model"):
        load_weights(net(), saved(tensors))


def text_model(width: int, flat: bool = False) -> dict[str, torch.Tensor]:
    block = "model.diffusion_model.input_blocks.1.1."
    return {
        f"{block}transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, width),
        f"{block}proj_in.weight": torch.zeros(8, 8) if flat else torch.zeros(8, 8, 1, 1),
    }


class Fake(nn.Module):
    """A module with given buffers as its state dict."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *args, **kwargs):
        return self.tensors


def test_weights_of_another_family_get_one_sentence_with_both_widths_and_the_yaml_that_fits(saved):
    """A14."""
    with pytest.raises(ValueError, match="Nothing was loaded") as caught:
        load_weights(Fake(text_model(768)), saved(text_model(1024, flat=True)))
    text = str(caught.value)
    assert "Stable Diffusion 2" in text and "1024" in text and "Stable Diffusion 1" in text and "768" in text and "\n" not in text and len(text) < 400
    with pytest.raises(ValueError, match="fits configs/stable-diffusion/v1-finetune.yaml"):
        load_weights(Fake(text_model(96)), saved(text_model(768)))
    with pytest.raises(ValueError, match="96.*64|64.*96"):
        load_weights(Fake(text_model(96)), saved(text_model(64, flat=True)))


def inpainting_model() -> dict[str, torch.Tensor]:
    return {**text_model(768), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}


@pytest.mark.parametrize(("wanted", "given", "said"), [
    (768, text_model(1280), ["1.4-billion", "1280", "Stable Diffusion 1", "768", "fits configs/latent-diffusion/txt2img-1p4B-finetune.yaml"]),
    (1280, text_model(768), ["Stable Diffusion 1", "768", "1.4-billion", "1280", "fits configs/stable-diffusion/v1-finetune.yaml"]),
    (768, inpainting_model(), ["Stable Diffusion 1 for inpainting", "in_channels: 9 and conditioning_key: hybrid"]),
    (768, {"encoder.conv_in.weight": torch.zeros(1)}, ["holds a first stage", "first_stage_config.params.ckpt_path"]),
    (768, {"conditioner.embedders.0.w": torch.zeros(1)}, ["Stable Diffusion XL", "no yaml here builds that"]),
])  # fmt: skip
def test_each_family_in_the_place_of_another_is_one_sentence_with_what_to_do(saved, wanted, given, said):
    """A14, both ways round."""
    with pytest.raises(ValueError, match="Nothing was loaded") as caught:
        load_weights(Fake(text_model(wanted)), saved(given))
    assert all(words in str(caught.value) for words in said) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["down_blocks.0.resnets.0.conv1.weight"], "diffusers"),
        (["lora_unet_down_blocks_0.lora_down.weight"], "adapters"),
        (["cond_stage_model.model.token_embedding.weight"], "Stable Diffusion 2"),
        (["encoder.conv_in.weight"], "first stage"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight"], "diffusers"),
        (["conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"], "Stable Diffusion XL"),
        (["model.diffusion_model.out.0.weight", "first_stage_model.encoder.conv_in.weight"], "latent diffusion"),
    ],
)
def test_families_are_told_apart_by_their_keys(keys, name):
    assert name in str(family({key: torch.Size([1, 1]) for key in keys}))


def test_text_tower_is_found_with_and_without_its_wrapper():
    old, new = "cond_stage_model.transformer.text_model.final_layer_norm.bias", "cond_stage_model.transformer.final_layer_norm.bias"
    value = torch.ones(2)
    assert list(renamed({old: value}, [new])) == [new] and list(renamed({new: value}, [old])) == [old] and list(renamed({old: value}, [old])) == [old]


def test_averaged_weights_take_the_place_of_those_they_average():
    holder = nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "other": nn.Linear(1, 1)})
    ema = LitEma(holder["model"])
    with torch.no_grad():
        for buffer in ema.buffers():
            if buffer.is_floating_point() and buffer.ndim:
                buffer.add_(1.0)
    tensors = {**holder.state_dict(), **{f"model_ema.{key}": value for key, value in ema.state_dict().items()}}
    averaged = with_averaged_weights(tensors)
    assert averaged.keys() == holder.state_dict().keys()
    assert torch.equal(averaged["model.1.weight"], holder["model"][1].weight + 1.0) and torch.equal(averaged["other.weight"], holder["other"].weight)
    with pytest.raises(ValueError, match="no averaged weights"):
        with_averaged_weights(holder.state_dict())
