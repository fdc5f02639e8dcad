"""What goes into a checkpoint and comes back: words, counters, frozen bases, averages."""
from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from tests.models.diffusion.test_training import CACHED, fit
from tests.models.diffusion.tiny import WORDS, latent_diffusion, randomise, with_params

PROGRESSIVE = with_params(WORDS, num_vectors_per_token=2, progressive_words=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base checkpoint without words."""
    path = tmp_path_factory.mktemp("base") / "base.ckpt"
    torch.save({"state_dict": randomise(latent_diffusion(), seed=1).state_dict()}, path)
    return str(path)


def saved(model) -> dict:
    """What a Trainer hands to the hook and writes."""
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    return copy.deepcopy(checkpoint)


def restored(model, checkpoint: dict):
    checkpoint = copy.deepcopy(checkpoint)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    return model


def test_the_constructor_loads_a_checkpoint(base):
    model = latent_diffusion(ckpt_path=base)
    for key, value in torch.load(base)["state_dict"].items():
        assert torch.equal(model.state_dict()[key], value)
    kept = latent_diffusion(ckpt_path=base, ignore_keys=["model.diffusion_model.out."])
    assert not kept.model.diffusion_model.out[2].weight.any(), "left as initialised, with zeros"


def test_safetensors_load_too(base, tmp_path):
    save_file({key: value.clone() for key, value in torch.load(base)["state_dict"].items()}, tmp_path / "base.safetensors")
    model = latent_diffusion(ckpt_path=str(tmp_path / "base.safetensors"))
    assert model.model.diffusion_model.out[2].weight.any()


def test_only_the_network_can_be_loaded(base):
    model = latent_diffusion()
    text = model.cond_stage_model.state_dict()
    model.init_from_ckpt(base, only_model=True)
    assert model.model.diffusion_model.out[2].weight.any()
    assert all(torch.equal(value, text[key]) for key, value in model.cond_stage_model.state_dict().items())


def test_start_vectors_are_the_checkpoints(base):
    """The words are made after the text encoder was loaded."""
    table = torch.load(base)["state_dict"]
    prefix = "cond_stage_model.transformer.text_model.embeddings."
    sculpture = table[f"{prefix}token_embedding.weight"][8757] + table[f"{prefix}position_embedding.weight"][0]
    model = latent_diffusion(ckpt_path=base, personalization_config=WORDS)
    torch.testing.assert_close(model.embedding_manager.string_to_param_dict["*"][0], sculpture)


def test_words_in_a_checkpoint_are_loaded_but_a_named_file_wins(base, tmp_path):
    tuned = latent_diffusion(ckpt_path=base, personalization_config=WORDS, unfreeze_model=True)
    with torch.no_grad():
        tuned.embedding_manager.string_to_param_dict["*"].fill_(3.0)
    torch.save({"state_dict": tuned.state_dict()}, tmp_path / "tuned.ckpt")
    again = latent_diffusion(ckpt_path=str(tmp_path / "tuned.ckpt"), personalization_config=WORDS)
    assert (again.embedding_manager.string_to_param_dict["*"] == 3.0).all()
    with torch.no_grad():
        tuned.embedding_manager.string_to_param_dict["*"].fill_(5.0)
    tuned.embedding_manager.save(str(tmp_path / "embeddings.pt"))
    named = with_params(WORDS, embedding_manager_ckpt=str(tmp_path / "embeddings.pt"))
    winner = latent_diffusion(ckpt_path=str(tmp_path / "tuned.ckpt"), personalization_config=named)
    assert (winner.embedding_manager.string_to_param_dict["*"] == 5.0).all()
    assert winner.embedding_manager.string_to_param_dict["*"].requires_grad
    three = with_params(named, num_vectors_per_token=3)
    with pytest.raises(ValueError, match="has 1 vectors, but num_vectors_per_token is 3"):
        latent_diffusion(personalization_config=three)


def test_averages_that_a_checkpoint_lacks_begin_at_its_weights(base):
    model = latent_diffusion(ckpt_path=base, use_ema=True, ema_decay=0.5)
    trained = model.model.diffusion_model.out[2].weight.detach().clone()
    with model.ema_scope():
        assert torch.equal(model.model.diffusion_model.out[2].weight, trained)
    assert model.model_ema.decay == 0.5


# -- frozen networks -------------------------------------------------------------------------------------------------------------------


def test_a_frozen_run_saves_all_but_its_base_and_goes_on(base):
    model = latent_diffusion(ckpt_path=base, personalization_config=WORDS)
    fit(model, 3)
    checkpoint = saved(model)
    assert not any(key.startswith(("model.", "cond_stage_model.", "first_stage_model.")) for key in checkpoint["state_dict"])
    assert {"embedding_manager.string_to_param_dict.*", "embedding_manager.initial_embeddings.*", "betas"} <= set(checkpoint["state_dict"])
    notes = checkpoint["latent_diffusion"]
    assert notes["base_path"] == base and len(notes["base_sha256"]) == 64
    assert all(type(value) in (int, str) for value in notes.values()), "files must open with weights_only=True"
    fresh = latent_diffusion(ckpt_path=base, personalization_config=WORDS)
    assert not torch.equal(fresh.embedding_manager.string_to_param_dict["*"], model.embedding_manager.string_to_param_dict["*"])
    restored(fresh, checkpoint)
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_another_base_is_refused_with_both_hashes(base, tmp_path):
    checkpoint = saved(latent_diffusion(ckpt_path=base, personalization_config=WORDS))
    torch.save({"state_dict": randomise(latent_diffusion(), seed=2).state_dict()}, tmp_path / "other.ckpt")
    other = latent_diffusion(ckpt_path=str(tmp_path / "other.ckpt"), personalization_config=WORDS)
    with pytest.raises(ValueError, match=f"--actual_resume {base}") as error:
        other.on_load_checkpoint(checkpoint)
    assert checkpoint["latent_diffusion"]["base_sha256"] in str(error.value) and other._base_hash() in str(error.value)


def test_a_moved_base_with_equal_tensors_is_the_same_base(base, tmp_path):
    checkpoint = saved(latent_diffusion(ckpt_path=base, personalization_config=WORDS))
    save_file({key: value.clone() for key, value in torch.load(base)["state_dict"].items()}, tmp_path / "moved.safetensors")
    restored(latent_diffusion(ckpt_path=str(tmp_path / "moved.safetensors"), personalization_config=WORDS), checkpoint)


def test_what_is_trained_is_saved_whole(base):
    keys = set(latent_diffusion(personalization_config=WORDS).state_dict())
    for params in (
        {"ckpt_path": base, "unfreeze_model": True, "model_lr": 1e-3},
        {},  # frozen, but there is no file from which it could be loaded again
    ):
        checkpoint = saved(latent_diffusion(personalization_config=WORDS, **params))
        assert set(checkpoint["state_dict"]) == keys and "base_sha256" not in checkpoint["latent_diffusion"]
    two_phases = latent_diffusion(ckpt_path=base, personalization_config=WORDS, model_lr=1e-3)
    two_phases.learning_rate = 1e-3
    two_phases.configure_opt_model()
    assert set(saved(two_phases)["state_dict"]) == keys
    assert set(saved(latent_diffusion(ckpt_path=base))["state_dict"]) == set(latent_diffusion().state_dict())


def test_averages_of_a_frozen_run_are_its_base(base):
    settings = {"ckpt_path": base, "personalization_config": WORDS, "use_ema": True}
    checkpoint = saved(latent_diffusion(**settings))
    assert not any(key.startswith("model_ema.") for key in checkpoint["state_dict"])
    restored(latent_diffusion(**settings), checkpoint)


def test_the_counter_of_progressive_words_goes_on(base):
    model = latent_diffusion(personalization_config=PROGRESSIVE, ckpt_path=base)
    model.embedding_manager.progressive_counter = 1998
    fit(model, 3)
    checkpoint = saved(model)
    assert checkpoint["latent_diffusion"]["progressive_counter"] == 1998 + 3 + 2  # three steps, and validation's two passes
    assert not any("progressive" in key for key in checkpoint["state_dict"])
    fresh = restored(latent_diffusion(personalization_config=PROGRESSIVE, ckpt_path=base), checkpoint)
    assert fresh.embedding_manager.progressive_counter == 2003


def test_a_checkpoint_without_notes_still_loads():
    model = latent_diffusion(**CACHED)
    restored(latent_diffusion(**CACHED), {"state_dict": model.state_dict()})
