"""The regularised configurations: their unregularised twins plus the term, and nothing else."""
from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from ldm.data.character_world import THINGS
from ldm.evaluation.prompts import read_prompts
from ldm.models.diffusion.regularized import build_regularizer
from ldm.prompts import imagenet_templates_small
from ldm.regularization import (
    AdapterOff,
    CachedTeacher,
    ClassPrompts,
    ConstantWeight,
    GuidedMSE,
    Mixture,
    NoiseMSE,
    PriorSamples,
    Words,
)
from ldm.training.validation import check_config
from tests.golden.case import REPOSITORY

SHIPPED = sorted((REPOSITORY / "configs").rglob("*_reg.yaml"))
GUIDED = ("finetune_unfrozen_reg",)  # where word and network learn at once, the class leans towards the new character's looks in guided samples
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
    adapters, small = "lora" in path.stem, path.parent.name == "characters"
    teacher = AdapterOff if adapters else CachedTeacher
    conditioning, loss = (Mixture if small else ClassPrompts), (GuidedMSE if path.stem in GUIDED else NoiseMSE)
    assert [type(part) for part in parts] == [ConstantWeight, conditioning, PriorSamples, teacher, loss]
    prior = regularizer.latents
    assert (prior.samples, prior.ddim_steps, prior.guidance_scale) == (256 if small else 64, 50, 1.0)
    assert adapters or regularizer.teacher.noisings == (8 if small else 16)
    assert regularizer.seed == 23 and regularizer.on
    weight = {"weight": 2.5 if path.stem in GUIDED else 7.5, "every": 1, "warmup_steps": 0} if small else SD
    assert vars(regularizer.weight) == weight and regularizer.batch_size == (8 if small else 1)


def test_guided_outputs_are_held_at_the_guidance_that_the_characters_are_drawn_with():
    for path in SHIPPED:
        config = OmegaConf.load(path)
        regularizer = build_regularizer(config.model.params.regularization_config)
        if isinstance(regularizer.loss, GuidedMSE):
            images = config.lightning.callbacks.image_logger.params.log_images_kwargs
            assert regularizer.loss.guidance_scale == images.unconditional_guidance_scale, path


def test_a_characters_prompts_are_the_captions_bare_and_dressed_and_none_that_is_measured_as_held_out():
    config = OmegaConf.load(REPOSITORY / "configs" / "characters" / "finetune_unfrozen_reg.yaml")
    conditioning = build_regularizer(config.model.params.regularization_config).conditioning
    conditioning.bind(Words(("*",), "character", ("a photo of a {}",)))
    known = conditioning.known_prompts()
    assert {"a photo of a character", "the character", "a character wearing a red hat"} <= set(known)
    held_out = [prompt.text for prompt in read_prompts(REPOSITORY / "assets" / "characters" / "prompts" / "heldout.txt")]
    shapes = {re.sub("|".join(THINGS), "{}", text) for text in held_out}
    assert not shapes & {prompt.replace("character", "{}") for prompt in known}


def test_what_measures_a_drift_budget_is_apart_from_the_term_and_from_what_judges_it():
    prompts = REPOSITORY / "assets" / "characters" / "prompts"
    meter, judge = ({prompt.text for prompt in read_prompts(prompts / f"budget_{name}.txt")} for name in ("meter", "heldout"))
    config = OmegaConf.load(REPOSITORY / "configs" / "characters" / "finetune_unfrozen_reg.yaml")
    conditioning = build_regularizer(config.model.params.regularization_config).conditioning
    conditioning.bind(Words(("*",), "character", tuple(imagenet_templates_small)))
    known = set(conditioning.known_prompts())
    assert len(known) > 27 + 13 and len(meter) > 5 and len(judge) > 5
    assert not known & meter and not known & judge and not meter & judge


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


KINDS_OF_PIVOTAL = ("pivotal", "pivotal_reg", "pivotal_lora", "pivotal_lora_reg")
PIVOTAL = [REPOSITORY / "configs" / start for kind in KINDS_OF_PIVOTAL for start in (f"characters/{kind}.yaml", f"stable-diffusion/v1-{kind}.yaml")]


@pytest.mark.parametrize("path", [path for path in PIVOTAL if "lora" in path.stem], ids=lambda path: path.stem)
def test_adapters_differ_from_the_whole_network_in_who_is_tuned_alone(path):
    """And, regularised, in the teacher, which then needs neither a copy nor a store."""
    adapted, whole = as_values(path), as_values(path.with_name(path.name.replace("_lora", "")))
    assert adapted["model"]["params"].pop("adapter_config")["target"] == "ldm.models.adapters.LowRankAdapters"
    assert whole["model"]["params"].pop("unfreeze_model") is True and "unfreeze_model" not in adapted["model"]["params"]
    for known in (adapted, whole):
        known["model"]["params"].pop("model_lr")
        known["model"]["params"].get("regularization_config", {"params": {"teacher_config": None}})["params"].pop("teacher_config")
    assert adapted == whole


@pytest.mark.parametrize("path", [path for path in PIVOTAL if "lora" not in path.stem], ids=lambda path: path.stem)
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
        if path.parent.name == "characters":  # `test_the_term_is_the_recommended_one` says how the terms differ
            known["model"]["params"].pop("regularization_config", None)
    assert changed == one_phase
