"""Every form in which a model's weights go round: read by the model that is built for it, and said what becomes of the rest."""
from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints import read_state_dict, save_weights
from ldm.checkpoints.loading import LoadReport
from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion.tiny import LATENTS, PICTURES, UNET, WORDS, latent_diffusion, randomise, with_params
from tests.models.first_stages import NO_TRAINING, kl_model
from tests.modules.text_encoders import clip_folder

POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
BAGGAGE = {
    "epoch": 6, "global_step": 470000, "pytorch-lightning_version": "1.4.2", "callbacks": {}, "lr_schedulers": [],
    "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
}  # fmt: skip
SAMPLERS = {"ddim_sigmas": torch.ones(3), "ddim_alphas_prev": torch.ones(3), "denoiser.sigmas": torch.ones(3), "cond_stage_model.logit_scale": torch.ones(())}


@pytest.fixture(scope="module")
def weights():
    """A model's state dict, as a base checkpoint has it."""
    return {key: value.clone() for key, value in randomise(latent_diffusion(), seed=1).state_dict().items()}


def averages(weights):
    copies = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value + 1.0 for key, value in weights.items() if key.startswith("model.")}
    return copies | {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}


def write(path, tensors, form="state_dict"):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    else:
        torch.save({"bare": tensors, "state_dict": {"state_dict": tensors}, "lightning": {"state_dict": tensors, **BAGGAGE}}[form], path)
    return str(path)


def holds(model, tensors, **tolerance):
    own = model.state_dict()
    for key, value in tensors.items():
        if tolerance:
            torch.testing.assert_close(own[key], value, **tolerance)
        else:
            assert torch.equal(own[key], value), key


@pytest.mark.parametrize(
    ("name", "form"), [("m.ckpt", "bare"), ("m.ckpt", "state_dict"), ("m.ckpt", "lightning"), ("m.pt", "bare"), ("m.safetensors", "")]
)
@pytest.mark.parametrize("extra", ["nothing", "averages", "samplers", "positions", "loss"])
def test_every_container_with_every_baggage_gives_the_model(weights, tmp_path, name, form, extra):
    more = {
        "nothing": {}, "averages": averages(weights), "samplers": SAMPLERS, "positions": {POSITION_IDS: torch.arange(77)[None]},
        "loss": {"first_stage_model.loss.logvar": torch.zeros(())},
    }[extra]  # fmt: skip
    holds(latent_diffusion(ckpt_path=write(tmp_path / name, weights | more, form)), weights)


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_the_models_own_and_noise_tables_stay_exact(weights, tmp_path, name, dtype):
    model = latent_diffusion(ckpt_path=write(tmp_path / name, {key: value.to(dtype) for key, value in weights.items()}))
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    holds(model, {key: value.to(dtype).float() if "." in key else value for key, value in weights.items()})


def test_noise_tables_of_the_file_count_where_they_are_others_than_the_configs(weights, tmp_path):
    other = latent_diffusion(linear_start=0.01, linear_end=0.2).state_dict()
    tables = {key: value for key, value in other.items() if "." not in key}
    holds(latent_diffusion(ckpt_path=write(tmp_path / "m.ckpt", weights | tables)), tables)
    half = {key: value.half() for key, value in tables.items()}
    assert torch.equal(latent_diffusion(ckpt_path=write(tmp_path / "h.ckpt", weights | half)).betas, half["betas"].float())


def test_checkpoints_of_tuned_models_bring_their_words(weights, tmp_path):
    words = {f"embedding_manager.{name}.*": torch.full((1, 32), 3.0) for name in ("string_to_param_dict", "initial_embeddings")}
    path = write(tmp_path / "m.ckpt", weights | words, "lightning")
    holds(latent_diffusion(ckpt_path=path, personalization_config=WORDS), weights | words)
    holds(latent_diffusion(ckpt_path=path), weights)
    other = with_params(WORDS, placeholder_strings=["@"])
    assert not (latent_diffusion(ckpt_path=path, personalization_config=other).embedding_manager.string_to_param_dict["@"] == 3.0).any()


def test_words_with_another_number_of_vectors_are_refused_by_name(weights, tmp_path):
    words = {"embedding_manager.string_to_param_dict.*": torch.zeros(4, 32)}
    with pytest.raises(ValueError, match=r"string_to_param_dict.\* is \[4, 32\] in the file and \[1, 32\] in the model"):
        latent_diffusion(ckpt_path=write(tmp_path / "m.ckpt", weights | words), personalization_config=WORDS)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("name", ["vae.ckpt", "vae.safetensors"])
@pytest.mark.parametrize("form", ["state_dict", "bare", "lightning"])
def test_a_first_stage_is_read_from_its_own_file(weights, tmp_path, prefix, name, form):
    own = {key.removeprefix("first_stage_model."): value * 2 for key, value in weights.items() if key.startswith("first_stage_model.")}
    vae = write(tmp_path / name, {prefix + key: value for key, value in own.items()}, form)
    rest = write(tmp_path / "rest.ckpt", {key: value for key, value in weights.items() if not key.startswith("first_stage_model.")})
    model = latent_diffusion(ckpt_path=rest, first_stage_config=with_params(PICTURES, ckpt_path=vae))
    holds(model, {f"first_stage_model.{key}": value for key, value in own.items()})
    assert not any(tensor.is_meta for tensor in model.parameters())


def test_half_of_a_part_is_an_error_even_where_the_part_has_weights_of_its_own(weights, tmp_path):
    vae = write(tmp_path / "vae.ckpt", {key: value for key, value in weights.items() if key.startswith("first_stage_model.")})
    half = write(tmp_path / "half.ckpt", {key: value for key, value in weights.items() if not key.startswith("first_stage_model.decoder.")})
    with pytest.raises(ValueError, match="keys are missing: first_stage_model.decoder"):
        latent_diffusion(ckpt_path=half, first_stage_config=with_params(PICTURES, ckpt_path=vae))


def test_a_text_encoder_is_read_from_its_own_folder(weights, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    folder = clip_folder(tmp_path / "clip", sizes)
    encoder = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"version": str(folder), "device": "cpu"}}
    own = latent_diffusion(cond_stage_config=encoder).cond_stage_model.state_dict()
    rest = write(tmp_path / "rest.ckpt", {key: value for key, value in weights.items() if not key.startswith("cond_stage_model.")})
    model = latent_diffusion(ckpt_path=rest, cond_stage_config=encoder)
    holds(model.cond_stage_model, own)
    holds(latent_diffusion(ckpt_path=write(tmp_path / "m.ckpt", weights), cond_stage_config=encoder), weights)


def test_a_first_stage_is_read_from_a_whole_models_file(weights, tmp_path):
    vae = write(tmp_path / "whole.safetensors", weights)
    model = latent_diffusion(first_stage_config=with_params(PICTURES, ckpt_path=vae))
    holds(model, {key: value for key, value in weights.items() if key.startswith("first_stage_model.")})


def test_a_checkpoint_with_a_first_stage_of_its_own_wins_and_says_how_to_change_that(weights, tmp_path, caplog):
    own = {key: value * 2 for key, value in weights.items() if key.startswith("first_stage_model.")}
    config = with_params(PICTURES, ckpt_path=write(tmp_path / "vae.ckpt", own))
    base = write(tmp_path / "base.ckpt", weights)
    with caplog.at_level(logging.INFO, logger="ldm"):
        holds(latent_diffusion(ckpt_path=base, first_stage_config=config), weights)
    assert "ignore_keys: [first_stage_model.]" in caplog.text
    kept = latent_diffusion(ckpt_path=base, first_stage_config=config, ignore_keys=["first_stage_model."])
    holds(kept, own)
    holds(kept, {key: value for key, value in weights.items() if key.startswith(("model.", "cond_stage_model."))})


def test_a_first_stages_file_that_is_not_there_is_not_missed_where_the_checkpoint_has_a_first_stage(weights, tmp_path, caplog):
    gone = with_params(PICTURES, ckpt_path=str(tmp_path / "gone.ckpt"))
    base = write(tmp_path / "base.ckpt", weights)
    with caplog.at_level(logging.WARNING, logger="ldm"):
        model = latent_diffusion(ckpt_path=base, first_stage_config=gone)
    holds(model, weights)
    assert not any(tensor.is_meta for tensor in model.parameters())
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("first_stage_config.params.ckpt_path: ") and str(tmp_path / "gone.ckpt") in said and base in said
    assert gone["params"]["ckpt_path"], "the caller's config stays as it is"


@pytest.mark.parametrize("why", ["no base", "base without one", "base's is ignored", "loaded in a way of one's own"])
def test_a_first_stages_file_that_is_not_there_is_an_error_where_nothing_else_brings_it(weights, tmp_path, why, monkeypatch):
    gone = with_params(PICTURES, ckpt_path=str(tmp_path / "gone.ckpt"))
    rest = {key: value for key, value in weights.items() if not key.startswith("first_stage_model.")}
    options = {} if why == "no base" else {"ckpt_path": write(tmp_path / "base.ckpt", rest if why == "base without one" else weights)}
    if why == "base's is ignored":
        options["ignore_keys"] = ["first_stage_model."]
    if why == "loaded in a way of one's own":
        monkeypatch.setattr(LatentDiffusion, "init_from_ckpt", lambda *_: pytest.fail("before the first stage was there"))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone\.ckpt"):
        latent_diffusion(first_stage_config=gone, **options)


def test_half_of_a_first_stage_does_not_stand_in_for_a_file_that_is_not_there(weights, tmp_path):
    half = write(tmp_path / "half.ckpt", {key: value for key, value in weights.items() if not key.startswith("first_stage_model.decoder.")})
    with pytest.raises(ValueError, match="keys are missing: first_stage_model.decoder"):
        latent_diffusion(ckpt_path=half, first_stage_config=with_params(PICTURES, ckpt_path=str(tmp_path / "gone.ckpt")))


def test_without_a_file_of_its_own_a_missing_first_stage_is_an_error(weights, tmp_path):
    rest = {key: value for key, value in weights.items() if not key.startswith("first_stage_model.")}
    with pytest.raises(ValueError, match="keys are missing: first_stage_model.encoder"):
        latent_diffusion(ckpt_path=write(tmp_path / "rest.ckpt", rest))


def test_a_first_stages_training_file_loads_without_its_loss_and_averages(tmp_path):
    source = kl_model(NO_TRAINING)
    state = {**source.state_dict(), "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2), "model_ema.decay": torch.tensor(0.9)}
    loaded = kl_model(NO_TRAINING, ckpt_path=write(tmp_path / "vae.ckpt", state, "lightning"))
    holds(loaded, source.state_dict())


def test_a_nine_channel_network_loads_where_the_config_describes_it(tmp_path):
    options = {"unet_config": with_params(UNET, in_channels=9), "conditioning_key": "hybrid", "first_stage_config": LATENTS}
    source = randomise(latent_diffusion(**options)).state_dict()
    path = write(tmp_path / "inpainting.safetensors", source)
    holds(latent_diffusion(**options, ckpt_path=path), source)
    with pytest.raises(ValueError, match=r"input_blocks.0.0.weight is \[32, 9, 3, 3\] in the file and \[32, 4, 3, 3\] in the model"):
        latent_diffusion(ckpt_path=path, first_stage_config=LATENTS)


def test_what_is_missing_is_listed_by_the_part_it_belongs_to(weights, tmp_path):
    lacking = {key: value for key, value in weights.items() if ".decoder." not in key and ".out." not in key}
    with pytest.raises(ValueError, match="Nothing was loaded") as caught:
        latent_diffusion(ckpt_path=write(tmp_path / "m.ckpt", lacking | {"control_model.zero.weight": torch.ones(1)}))
    assert "model 4 (" in str(caught.value) and "first_stage_model " in str(caught.value) and "control_model.zero.weight" in str(caught.value)


def test_the_log_says_what_becomes_of_each_group(weights, tmp_path, caplog):
    tensors = {key: value for key, value in weights.items() if key != "betas"} | averages(weights)
    with caplog.at_level(logging.INFO, logger="ldm"):
        latent_diffusion(ckpt_path=write(tmp_path / "m.ckpt", tensors))
    assert "use_ema: false" in caplog.text and "tables and numbers 1 (betas): computed from the config" in caplog.text
    assert "averages begin at the weights loaded" in LoadReport(3, missed=["model_ema.decay"]).summary()


def test_a_file_of_words_in_the_place_of_weights_is_named_for_what_it_is(tmp_path):
    model = latent_diffusion(personalization_config=WORDS)
    model.embedding_manager.save(str(tmp_path / "embeddings.pt"))
    with pytest.raises(ValueError, match="a file of learnt words.*--embedding_path"):
        read_state_dict(tmp_path / "embeddings.pt")


def test_an_export_of_the_model_loads_again(weights, tmp_path):
    save_weights(tmp_path / "m.safetensors", latent_diffusion(ckpt_path=write(tmp_path / "m.ckpt", weights)).state_dict())
    holds(latent_diffusion(ckpt_path=str(tmp_path / "m.safetensors")), weights)
