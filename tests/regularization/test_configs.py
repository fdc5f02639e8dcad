"""The regularised configurations: their unregularised twins plus the term, and nothing else."""
from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from ldm.models.diffusion.regularized import build_regularizer
from ldm.regularization import CachedTeacher, ClassPrompts, ConstantWeight, NoiseMSE, PriorSamples
from ldm.training.validation import check_config
from tests.golden.case import REPOSITORY

SHIPPED = sorted((REPOSITORY / "configs").rglob("*_reg.yaml"))
SD = {"weight": 10.0, "every": 8, "warmup_steps": 0}


def as_values(path):
    return OmegaConf.to_container(OmegaConf.load(path))


def test_all_three_are_there():
    assert {path.parent.name for path in SHIPPED} == {"stable-diffusion", "latent-diffusion", "characters"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_only_target_and_term_differ_from_the_twin(path):
    twin, config = as_values(path.with_name(path.name.replace("_reg.yaml", ".yaml"))), as_values(path)
    assert config["model"].pop("target") == "ldm.models.diffusion.regularized.RegularizedLatentDiffusion"
    assert twin["model"].pop("target") == "ldm.models.diffusion.ddpm.LatentDiffusion"
    assert config["model"]["params"].pop("regularization_config")
    assert config == twin and [list(section) for section in config.values()] == [list(section) for section in twin.values()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_term_is_the_recommended_one(path):
    regularizer = build_regularizer(OmegaConf.load(path).model.params.regularization_config)
    parts = regularizer.weight, regularizer.conditioning, regularizer.latents, regularizer.teacher, regularizer.loss
    assert [type(part) for part in parts] == [ConstantWeight, ClassPrompts, PriorSamples, CachedTeacher, NoiseMSE]
    assert (regularizer.latents.samples, regularizer.latents.ddim_steps, regularizer.latents.guidance_scale, regularizer.teacher.noisings) == (64, 50, 1.0, 16)
    assert regularizer.seed == 23 and regularizer.on
    if path.parent.name != "characters":
        assert vars(regularizer.weight) == SD and regularizer.batch_size == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_training_command_finds_no_fault(path):
    config = OmegaConf.load(path)
    for name in ("train", "validation"):  # what a flag brings
        config.data.params[name].params.data_root = "photos"
    check_config(config)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_opens_with_a_note_that_names_its_own_command(path):
    note = path.read_text(encoding="utf-8").split("model:\n")[0]
    assert f"--base {path.relative_to(REPOSITORY)}" in note and "run:" in note


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*pivotal*.yaml")), ids=lambda path: path.stem)
def test_two_phases_fix_the_word_before_the_network_moves(path):
    """Everything is tuned in the second phase, which lasts; what of the word is cached is known from then on."""
    config = OmegaConf.load(path)
    swap = config.lightning.callbacks.mode_swap
    assert swap.target == "main.ModeSwapCallback" and swap.params.train_embeddings_after is False
    assert 0 < swap.params.swap_step < config.lightning.trainer.max_steps and config.model.params.unfreeze_model is True
    one_phase = as_values(path.with_name(path.name.replace("pivotal", "finetune_unfrozen")))
    changed = as_values(path)
    del changed["lightning"]["callbacks"]["mode_swap"]
    for known in (changed, one_phase):
        del known["model"]["base_learning_rate"], known["model"]["params"]["model_lr"], known["lightning"]["trainer"]["max_steps"]
    assert changed == one_phase
