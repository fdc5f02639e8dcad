"""First stages give the recorded numbers, have the recorded keys, and keep their interfaces."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoints import save_weights
from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModelInterface
from ldm.util import instantiate_from_config
from tests.golden.case import REPOSITORY, assert_close_to_golden, assert_gradient_close, load_case, oracle_file
from tests.models.first_stages import DDCONFIG, L1, NO_TRAINING, VQ_GAN, blocks, kl_model, vq_model


def of_case(name: str) -> tuple[Any, Any]:
    case = load_case(name)
    model = instantiate_from_config(case.config.model).eval()
    model.load_state_dict(case.state_dict())
    return case, model


# What was recorded ----------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_kl_autoencoder_gives_the_recorded_latents_and_pictures():
    case, model = of_case("autoencoder_kl")
    x = case["in/x"]
    posterior = model.encode(x)
    for name in ("mean", "logvar", "std"):
        assert_close_to_golden(getattr(posterior, name), case[f"out/{name}"])
    assert_close_to_golden(posterior.parameters, case["out/moments"])
    z = posterior.mean + posterior.std * case["in/noise"]
    assert_close_to_golden(z, case["out/z"])
    assert_close_to_golden(posterior.kl(), case["out/kl"], atol=5e-4)  # a sum of 256 entries
    assert_close_to_golden(posterior.nll(z), case["out/nll_of_z"], atol=5e-4)
    torch.manual_seed(case.notes["seed"])
    assert_close_to_golden(posterior.sample(), case["out/sample_manual_seed"])
    assert_close_to_golden(model.decode(posterior.mode()), case["out/dec_mode"])
    assert_close_to_golden(model.decode(z), case["out/dec_z"])
    assert_close_to_golden(model(x, sample_posterior=False)[0], case["out/forward_mode"])


def test_vq_interface_gives_the_recorded_codes_pictures_and_gradients():
    case, model = of_case("vq_interface")
    h = model.encode(case["in/x"])
    assert_close_to_golden(h, case["out/h"])
    h = case["out/h"].clone().requires_grad_(True)
    quant, loss, (_, _, indices) = model.quantize(h)
    assert_close_to_golden(quant, case["out/quant"])
    assert_close_to_golden(loss, case["out/emb_loss"])
    assert torch.equal(indices, case["out/indices"])
    (quant.sum() + loss).backward()
    assert_gradient_close(h.grad, case["grad_in/h_of_quant_sum_plus_loss"])
    assert_gradient_close(model.quantize.embedding.weight.grad, case["grad/quantize.embedding.weight"])
    with torch.no_grad():
        assert_close_to_golden(model.decode(h), case["out/dec"])
        assert_close_to_golden(model.decode(h, force_not_quantize=True), case["out/dec_noquant"])
        assert_close_to_golden(model.quantize.get_codebook_entry(indices, (2, 8, 8, 3)), case["out/codebook_entry_bhwc"])


@pytest.mark.parametrize("name", ["manifest_autoencoder_kl_32x32x4", "manifest_autoencoder_kl_32x32x4_with_loss", "manifest_vq_f4"])
def test_published_config_has_the_recorded_keys(name):
    manifest = json.loads(oracle_file(f"{name}.json").read_text())
    if "config" in manifest:
        wanted = {key: manifest["keys"][key]["shape"] for key in manifest["key_order"]}
        config = OmegaConf.load(REPOSITORY / manifest["config"]).model
    else:
        wanted = {key: shape for key, (shape, _) in manifest.items()}
        config = OmegaConf.load(REPOSITORY / "configs/autoencoder/autoencoder_kl_32x32x4.yaml").model
    if not name.endswith("_with_loss"):
        config.params.lossconfig = NO_TRAINING
    with torch.device("meta"):
        model = instantiate_from_config(config)
    assert [(key, list(value.shape)) for key, value in model.state_dict().items()] == list(wanted.items())
    if "n_trainable_tensors" in manifest:
        assert sum(weight.requires_grad for weight in model.parameters()) == manifest["n_trainable_tensors"]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "models/first_stage_models").glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_every_published_first_stage_builds_without_a_download(path):
    with torch.device("meta"):
        model = instantiate_from_config(OmegaConf.load(path).model)
    assert any(key.startswith("loss.perceptual_loss.") for key in model.state_dict())
    assert model.has_discriminator


# Interfaces -----------------------------------------------------------------------------------------------------------------------------------------


def test_forward_samples_unless_told_otherwise():
    model = kl_model().eval()
    x = blocks(1).permute(0, 3, 1, 2)
    reconstruction, posterior = model(x, sample_posterior=False)
    torch.testing.assert_close(reconstruction, model.decode(posterior.mode()))
    assert not torch.equal(model(x)[0], model(x)[0])


def test_kl_autoencoder_needs_twice_the_channels():
    with pytest.raises(ValueError, match="double_z"):
        AutoencoderKL({**DDCONFIG, "double_z": False}, NO_TRAINING, 4)


def test_vq_model_answers_as_a_quantiser_does():
    model = vq_model().eval()
    x = blocks(2).permute(0, 3, 1, 2)
    quant, loss, (_, _, indices) = model.encode(x)
    assert quant.shape == (2, 3, 8, 8)
    assert indices.shape == (2 * 8 * 8,)
    torch.testing.assert_close(quant.permute(0, 2, 3, 1).reshape(-1, 3), model.quantize.embedding(indices))
    reconstruction, codebook_loss, codes = model(x, return_pred_indices=True)
    torch.testing.assert_close(reconstruction, model.decode(quant))
    torch.testing.assert_close(codebook_loss, loss)
    assert torch.equal(codes, indices)
    assert len(model(x)) == 2
    torch.testing.assert_close(model.decode_code(indices.view(2, 8, 8)), reconstruction, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"\(B, h, w\)"):
        model.decode_code(indices)


def test_vq_interface_is_the_vq_model_with_other_ends():
    torch.manual_seed(0)
    model = vq_model().eval()
    interface = vq_model(kind=VQModelInterface).eval()
    interface.load_state_dict(model.state_dict())
    x = blocks(1).permute(0, 3, 1, 2)
    torch.testing.assert_close(interface.encode(x), model.encode_to_prequant(x))
    torch.testing.assert_close(interface.decode(interface.encode(x)), model(x)[0])
    for ours, theirs in zip(interface(x, return_pred_indices=True), model(x, return_pred_indices=True), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_codes_in_use_may_be_remapped_and_keep_their_places(tmp_path):
    np.save(tmp_path / "used.npy", np.arange(8)[::-1].copy())
    model = vq_model(remap=str(tmp_path / "used.npy"), sane_index_shape=True).eval()
    x = blocks(1).permute(0, 3, 1, 2)
    quant, _, (_, _, codes) = model.encode(x)
    assert codes.shape == (1, 8, 8)
    torch.testing.assert_close(model.decode_code(codes), model.decode(quant))


def test_batches_are_resized_within_their_range():
    model = vq_model(batch_resize_range=(16, 48))
    batch = {"image": blocks(1, 32)}
    assert model.get_input(batch, "image").shape == (1, 3, 48, 48)  # at first the largest
    model.__class__ = type("Later", (type(model),), {"autoencoder_step": 5})
    sizes = {model.get_input(batch, "image").shape[2] for _ in range(40)}
    assert sizes == {16, 32, 48}


def test_pictures_come_channels_first():
    model = kl_model()
    picture = torch.rand(2, 16, 16, 3, dtype=torch.float64)
    x = model.get_input({"image": picture}, "image")
    assert x.dtype == torch.float32 and x.is_contiguous()
    torch.testing.assert_close(x, picture.permute(0, 3, 1, 2).float())
    assert model.get_input({"mask": torch.zeros(2, 16, 16)}, "mask").shape == (2, 1, 16, 16)


def test_identity_first_stage_hands_through():
    x = object()
    plain, vq = IdentityFirstStage(), IdentityFirstStage(embed_dim=3, vq_interface=True)
    for answer in (plain.encode(x, 1), plain.decode(x), plain.quantize(x), plain(x), vq.encode(x), vq.decode(x, force_not_quantize=True)):
        assert answer is x
    assert vq.quantize(x) == (x, None, [None, None, None])
    assert not list(plain.state_dict())


# Pictures for the log -------------------------------------------------------------------------------------------------------------------------------


def test_rows_of_pictures():
    batch = {"image": blocks(2)}
    model = kl_model()
    assert list(model.log_images(batch, only_inputs=True, split="val")) == ["inputs"]
    rows = model.log_images(batch)
    assert {name: row.shape for name, row in rows.items()} == dict.fromkeys(("inputs", "reconstructions", "samples"), (2, 3, 16, 16))
    assert not rows["samples"].requires_grad
    rows = vq_model(use_ema=True).log_images(batch, plot_ema=True)
    torch.testing.assert_close(rows["reconstructions_ema"], rows["reconstructions"])
    assert set(rows) == {"inputs", "reconstructions", "reconstructions_ema"}


def test_rows_show_the_averaged_weights():
    model = kl_model(use_ema=True)
    batch = {"image": blocks(1)}
    with torch.no_grad():
        model.decoder.conv_out.weight.zero_()
        model.decoder.conv_out.bias.fill_(0.5)
    assert (model(model.get_input(batch, "image"))[0] == 0.5).all()
    assert not (model.log_images(batch)["reconstructions"] == 0.5).any()
    assert (model.decoder.conv_out.bias == 0.5).all()


def test_label_maps_are_shown_in_colours():
    ddconfig = {**DDCONFIG, "in_channels": 5, "out_ch": 5}
    model = AutoencoderKL(ddconfig, L1, 2, image_key="segmentation", colorize_nlabels=5)
    labels = torch.nn.functional.one_hot(torch.randint(5, (1, 16, 16)), 5).float()
    rows = model.log_images({"segmentation": labels})
    assert {row.shape for row in rows.values()} == {(1, 3, 16, 16)}
    assert rows["inputs"].min() == -1 and rows["inputs"].max() == 1
    assert len(torch.unique(rows["inputs"].flatten(2), dim=2)[0, 0]) == 5
    assert "colorize" in model.state_dict()
    with pytest.raises(ValueError, match="5 channels and colorize_nlabels is None"):
        AutoencoderKL(ddconfig, L1, 2).to_rgb(labels.permute(0, 3, 1, 2))


# Weights from files ---------------------------------------------------------------------------------------------------------------------------------


def test_weights_come_from_a_checkpoint_with_or_without_its_loss(tmp_path):
    trained = vq_model(VQ_GAN)
    save_weights(tmp_path / "vq.ckpt", trained.state_dict())
    for lossconfig in (VQ_GAN, NO_TRAINING):
        model = vq_model(lossconfig, ckpt_path=str(tmp_path / "vq.ckpt"))
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())


def test_missing_weights_are_an_error_unless_ignored(tmp_path):
    trained, path = kl_model(), tmp_path / "kl.ckpt"
    save_weights(path, {key: value for key, value in trained.state_dict().items() if not key.startswith("decoder.")})
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight"):
        kl_model(ckpt_path=str(path))
    save_weights(path, trained.state_dict())
    model = kl_model(ckpt_path=str(path), ignore_keys=["decoder.up"])
    assert torch.equal(model.decoder.conv_in.weight, trained.decoder.conv_in.weight)
    assert not torch.equal(model.decoder.up[0].block[0].conv1.weight, trained.decoder.up[0].block[0].conv1.weight)


def test_averages_are_loaded_or_start_at_the_loaded_weights(tmp_path):
    trained = kl_model(use_ema=True)
    trained.model_ema.get_buffer("decoderconv_outweight").fill_(3.0)
    save_weights(tmp_path / "with.ckpt", trained.state_dict())
    save_weights(tmp_path / "without.ckpt", {key: value for key, value in trained.state_dict().items() if not key.startswith("model_ema.")})
    with_averages = kl_model(use_ema=True, ckpt_path=str(tmp_path / "with.ckpt"))
    assert (with_averages.model_ema.get_buffer("decoderconv_outweight") == 3.0).all()
    without = kl_model(use_ema=True, ckpt_path=str(tmp_path / "without.ckpt"))
    assert torch.equal(without.model_ema.get_buffer("decoderconv_outweight"), trained.decoder.conv_out.weight)
    assert not hasattr(kl_model(ckpt_path=str(tmp_path / "with.ckpt")), "model_ema")


def test_perceptual_weights_come_from_files(tmp_path):
    lossconfig = {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": {"disc_start": 0}}
    source = kl_model(lossconfig).loss.perceptual_loss
    filled = {name: torch.rand_like(weight) for name, weight in source.named_parameters()}
    features = {f"features.{name.split('.', 2)[2]}": value for name, value in filled.items() if name.startswith("net.")}
    save_weights(tmp_path / "vgg16.safetensors", features)
    save_weights(tmp_path / "lin.safetensors", {name: value for name, value in filled.items() if name.startswith("lin")})
    model = kl_model(lossconfig, perceptual_ckpt=[str(tmp_path / "vgg16.safetensors"), str(tmp_path / "lin.safetensors")])
    assert all(torch.equal(weight, filled[name]) for name, weight in model.loss.perceptual_loss.named_parameters())
    with pytest.raises(ValueError, match="L1WithGradient.*does not use LPIPS"):
        kl_model(perceptual_ckpt=str(tmp_path / "lin.safetensors"))
