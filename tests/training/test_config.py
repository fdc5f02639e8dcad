"""Yaml files and words become one config, and every fault of it is found before anything is built."""
from __future__ import annotations

import argparse
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.training import compose
from ldm.training.preflight import check_files, check_sizes, check_words, check_writable
from ldm.training.run_folder import new_run
from ldm.training.validation import ConfigError, check_config
from ldm.util import instantiate_from_config
from tests.training import repeatable, tiny, toy

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for folder in ("configs", "models") for path in (ROOT / folder).rglob("*.yaml"))


def flags(**given) -> argparse.Namespace:
    nothing = {"actual_resume": None, "data_root": None, "embedding_manager_ckpt": "", "placeholder_string": None, "init_word": None, "base": ["a.yaml"]}
    return argparse.Namespace(**{**nothing, **given})


def faults(plain: dict) -> list[str]:
    try:
        check_config(OmegaConf.create(plain))
    except ConfigError as error:
        return error.faults
    return []


# -- composing ---------------------------------------------------------------------------------------------------------------------------


def test_later_files_win_and_words_win_over_files(tmp_path):
    for name, text in (("a", "x: {p: 1, q: 1, r: 1}"), ("b", "x: {q: 2, r: 2}")):
        (tmp_path / f"{name}.yaml").write_text(text)
    assert compose.merge([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["x.r=3", "y=[1,2]"]) == {"x": {"p": 1, "q": 2, "r": 3}, "y": [1, 2]}


TERM = """
model:
  target: a.Model
  params:
    term:
      latents_config: {target: a.Samples, params: {samples: 64, ddim_steps: 50}}
      teacher_config: {target: a.Cached, params: {noisings: 8}}
"""


def composed(tmp_path, *words, over: str | None = None):
    (tmp_path / "term.yaml").write_text(TERM)
    (tmp_path / "over.yaml").write_text(over or "{}")
    return compose.merge([tmp_path / "term.yaml", tmp_path / "over.yaml"], list(words)).model


def test_a_part_of_another_class_takes_no_parameters_of_the_one_that_it_replaces(tmp_path):
    words = ["model.params.term.latents_config={target: a.Noise, params: {any_t: true}}", "model.params.term.teacher_config={target: a.Copy}"]
    changed = {"latents_config": {"target": "a.Noise", "params": {"any_t": True}}, "teacher_config": {"target": "a.Copy"}}
    assert composed(tmp_path, *words).params.term == changed
    file = OmegaConf.to_yaml({"model": {"params": {"term": changed}}})
    assert composed(tmp_path, over=file) == {"target": "a.Model", "params": {"term": changed}}


def test_parameters_given_beside_a_new_part_are_its_own(tmp_path):
    words = ["model.params.term.latents_config={target: a.Noise}", "model.params.term.latents_config.params.samples=3"]
    assert composed(tmp_path, *words).params.term.latents_config == {"target": "a.Noise", "params": {"samples": 3}}


def test_a_part_of_the_same_class_or_of_none_keeps_what_is_not_given(tmp_path):
    for over in ("{target: a.Samples, params: {samples: 8}}", "{params: {samples: 8}}"):
        kept = {"target": "a.Samples", "params": {"samples": 8, "ddim_steps": 50}}
        assert composed(tmp_path, f"model.params.term.latents_config={over}").params.term.latents_config == kept
        assert composed(tmp_path, over=f"model: {{params: {{term: {{latents_config: {over}}}}}}}").params.term.latents_config == kept


def test_a_target_alone_is_set_alone_and_the_model_keeps_its_parameters(tmp_path):
    assert composed(tmp_path, "model.target=a.Subclass") == {**composed(tmp_path), "target": "a.Subclass"}
    assert composed(tmp_path, over="model: {target: a.Subclass}") == {**composed(tmp_path), "target": "a.Subclass"}
    renamed = composed(tmp_path, "model.params.term.teacher_config.target=a.MyCached").params.term.teacher_config
    assert renamed == {"target": "a.MyCached", "params": {"noisings": 8}}


def test_a_reference_to_another_part_is_no_part_of_its_own(tmp_path):
    twice = composed(tmp_path, "model.params.other=${model.params.term.latents_config}", "model.params.other={target: a.Noise}")
    assert twice.params.other == {"target": "a.Noise"} and twice.params.term == composed(tmp_path).params.term


LISTED = "model: {target: a.Model, params: {parts: [{target: a.Samples, params: {samples: 64, steps: 5}}, b], rate: 1.0}}"


@pytest.mark.parametrize("entry", ["parts.0", "parts[0]"])
def test_a_word_reaches_into_a_list_by_number(tmp_path, entry):
    (tmp_path / "a.yaml").write_text(LISTED)
    words = [f"model.params.{entry}.params.samples=1e-5", f"model.params.{entry}.params.seeds=[1,2]", "model.params.parts.1=c", "model.params.rate=2"]
    params = compose.merge([tmp_path / "a.yaml"], words).model.params
    assert params == {"parts": [{"target": "a.Samples", "params": {"samples": 1e-5, "seeds": [1, 2], "steps": 5}}, "c"], "rate": 2}
    params = compose.merge([tmp_path / "a.yaml"], [f"model.params.{entry}={{target: a.Noise}}"]).model.params
    assert params.parts == [{"target": "a.Noise"}, "b"]


@pytest.mark.parametrize("word", ["model.params.parts.2.params.samples=1", "model.params.parts.first=1"])
def test_a_word_for_an_entry_that_a_list_has_not_is_named(tmp_path, word):
    (tmp_path / "a.yaml").write_text(LISTED)
    with pytest.raises(ValueError, match=f"{word}.*list"):
        compose.merge([tmp_path / "a.yaml"], [word])


def test_small_rates_without_a_point_are_numbers_all_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text("rate: 1e-7\n")
    assert compose.merge([tmp_path / "a.yaml"], ["other=1e-7"]) == {"rate": 1e-7, "other": 1e-7}


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: b: c"])
def test_file_that_is_no_config_is_named(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match="bad.yaml"):
        compose.merge([tmp_path / "bad.yaml"], [])
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        compose.merge([tmp_path / "none.yaml"], [])


def test_flags_go_into_the_keys_that_they_stand_for():
    config = OmegaConf.create(tiny.config())
    config.model.params.personalization_config.params.initializer_words = ["a", "b"]
    compose.write_flags(config, flags(actual_resume="m.ckpt", data_root="P", init_word="toy", placeholder_string="@", embedding_manager_ckpt="e.pt"))
    word = config.model.params.personalization_config.params
    assert config.model.params.ckpt_path == "m.ckpt"
    assert word == {"placeholder_strings": ["@"], "initializer_words": ["toy", "b"], "num_vectors_per_token": 1, "embedding_manager_ckpt": "e.pt"}
    for name in ("train", "validation"):
        assert config.data.params[name].params.data_root == "P" and config.data.params[name].params.placeholder_token == "@"


def test_captions_show_the_configs_first_placeholder_unless_the_data_set_names_its_own():
    plain = tiny.config()
    plain["model"]["params"]["personalization_config"]["params"]["placeholder_strings"] = ["@", "*"]
    plain["data"]["params"]["validation"]["params"]["placeholder_token"] = "*"
    config = OmegaConf.create(plain)
    compose.write_flags(config, flags())
    assert config.data.params.train.params.placeholder_token == "@" and config.data.params.validation.params.placeholder_token == "*"


def test_placeholder_is_not_written_into_data_sets_that_have_no_captions_round_one():
    config = OmegaConf.create(tiny.config())
    config.data.params.train = {"target": "ldm.data.characters.CharacterDataset"}
    compose.write_flags(config, flags(placeholder_string="@"))
    assert "params" not in config.data.params.train


# -- faults ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_config_passes_but_for_data_that_a_user_has_to_bring(path):
    plain = compose.as_plain(compose.read_config(path))
    known = [fault for fault in faults(plain) if not fault.startswith(("data.params.train", "data.params.validation", "data: missing"))]
    assert not known


def changed(plain: dict, key: str, value: object) -> dict:
    plain = deepcopy(plain)
    place = plain
    *path, last = key.split(".")
    for name in path:
        place = place.setdefault(name, {})
    place[last] = value
    return plain


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("modell", {}, "modell: unknown; did you mean model?"),
        ("model.parms", {}, "model.parms: unknown; did you mean params?"),
        ("model.params.linear_strat", 0.1, "model.params.linear_strat: unknown; did you mean linear_start?"),
        ("model.params.unet_config.params.num_head", 2, "model.params.unet_config.params.num_head: unknown; did you mean num_heads?"),
        ("model.params.unet_config.target", "ldm.modules.diffusionmodules.openaimodel.UnetModel", "openaimodel.UNetModel?"),
        ("model.params.first_stage_config.params.ddconfig.chmult", [1], "ddconfig.chmult: unknown; did you mean ch_mult?"),
        ("model.params.personalization_config.params.initializer_word", ["x"], "initializer_word: unknown; did you mean initializer_words?"),
        ("model.params.scheduler_config", {"target": "ldm.lr_scheduler.LambdaLinearSchedule"}, "did you mean ldm.lr_scheduler.LambdaLinearScheduler?"),
        ("model.params.first_stage_config.target", "os.system", "target 'os.system' is not allowed"),
        ("model.params.model_lr", "1e-7", "model.params.model_lr: '1e-7' is text, not a number"),
        ("model.params.timesteps", "1000", "model.params.timesteps: '1000' is text, expected a number"),
        ("model.base_learning_rate", None, "model.base_learning_rate: missing"),
        ("data.params.train.params.sise", 3, "data.params.train.params.sise: unknown; did you mean size?"),
        ("data.params.batch_sise", 3, "data.params.batch_sise: unknown; did you mean batch_size?"),
        ("data.params.train.params", {"size": 3}, "data.params.train.params.data_root: missing"),
        ("data.params.validate", {}, "data.params.validate: unknown; did you mean validation?"),
        ("lightning.trainer.acumulate_grad_batches", 3, "lightning.trainer.acumulate_grad_batches: unknown; did you mean accumulate_grad_batches?"),
        ("lightning.callbacks.image_logger.params.batch_freqency", 3, "image_logger.params.batch_freqency: unknown; did you mean batch_frequency?"),
        ("lightning.callbacks.mine", {"target": "main.ImageLoger"}, "lightning.callbacks.mine.target"),
        ("lightning.modelcheckpoint.parms", {}, "lightning.modelcheckpoint.parms: unknown; did you mean params?"),
        ("model.params.regularization_config", {"target": "x"}, "set model.target to ldm.models.diffusion.regularized.RegularizedLatentDiffusion"),
    ],
)
def test_fault_is_named_with_its_key_and_the_nearest_right_spelling(key, value, fault):
    plain = tiny.config(Path("P"))
    assert not faults(plain)
    found = faults(changed(plain, key, value))
    assert any(fault in line for line in found), found


def test_all_faults_are_reported_at_once():
    plain = changed(changed(changed(tiny.config(), "model.params.linear_strat", 1), "lightning.trainer.max_stps", 1), "model.params.unet_config.params.dept", 1)
    with pytest.raises(ConfigError) as caught:
        check_config(OmegaConf.create(plain))
    assert len(caught.value.faults) == 5 and all(word in str(caught.value) for word in ("linear_strat", "max_stps", "dept", "5 faults", "data_root"))


@pytest.mark.parametrize("empty", [None, {}, "left out"])
def test_regularised_model_with_an_empty_regulariser_is_an_error(empty):
    """A38."""
    plain = changed(tiny.config(Path("P")), "model.target", "ldm.models.diffusion.regularized.RegularizedLatentDiffusion")
    if empty != "left out":
        plain["model"]["params"]["regularization_config"] = empty
    found = faults(plain)
    assert len(found) == 1 and found[0].startswith("model.params.regularization_config: empty")


def test_parts_of_a_regulariser_are_checked_inside_lists_too():
    part = "ldm.regularization"
    mixture = {"target": f"{part}.conditioning.Mixture", "params": {"parts": [{"target": f"{part}.conditioning.ClassPromts"}], "weights": [1]}}
    regulariser = {"target": f"{part}.regularizer.LocalityRegularizer", "params": {"conditioning_config": mixture, "batchsize": 1}}
    plain = changed(tiny.config(Path("P")), "model.target", "ldm.models.diffusion.regularized.RegularizedLatentDiffusion")
    found = faults(changed(plain, "model.params.regularization_config", regulariser))
    misspelt, unknown = found
    assert "batchsize: unknown; did you mean batch_size?" in misspelt and "parts[0].target" in unknown and "ClassPrompts" in unknown


def test_word_that_looks_like_a_number_may_be_a_placeholder():
    assert not faults(changed(tiny.config(Path("P")), "model.params.personalization_config.params.placeholder_strings", ["1e3"]))


# -- sizes, words, files -------------------------------------------------------------------------------------------------------------------


def test_sizes_of_the_shipped_finetuning_configs_fit():
    for path in SHIPPED:
        if "finetune" in path.name:
            check_sizes(compose.as_plain(compose.read_config(path)))


def test_first_stage_alone_needs_pictures_that_it_can_divide():
    plain = tiny.config(Path("P"))
    plain["model"] = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": tiny.first_stage()["params"]}
    check_sizes(plain)
    with pytest.raises(ValueError, match="cannot divide by 2: take 16 or 18"):
        check_sizes(changed(plain, "data.params.train.params.size", 17))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model.params.channels", 3, "channels is 3, but the first stage makes latents of 4 channels"),
        ("model.params.unet_config.params.out_channels", 3, "out_channels is 3, but the latents have 4 channels"),
        ("model.params.image_size", 4, r"set model.params.image_size: 8, or data.params.train.params.size: 8"),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_named_with_their_keys(key, value, text):
    with pytest.raises(ValueError, match=text):
        check_sizes(changed(tiny.config(Path("P")), key, value))


def test_pictures_that_the_network_cannot_halve_are_named_with_the_nearest_sizes():
    """A latent of 7 halved is 4, and 4 doubled is 8: the way up would not meet the way down."""
    plain = changed(changed(tiny.config(Path("P")), "model.params.unet_config.params.channel_mult", [1, 1, 1]), "model.params.image_size", 7)
    for name in ("train", "validation"):
        plain["data"]["params"][name]["params"]["size"] = 14
    with pytest.raises(ValueError, match=r"size is 14: the network halves pictures of 7 × 7 latents 2 times, .* multiples of 8 pixels: take 8 or 16"):
        check_sizes(plain)
    network = instantiate_from_config(plain["model"]["params"]["unet_config"])
    c = torch.zeros(1, 4, tiny.WIDTH)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, tiny.CHANNELS, 7, 7), torch.zeros(1), context=c)
    assert network(torch.zeros(1, tiny.CHANNELS, 8, 8), torch.zeros(1), context=c).shape[-1] == 8


def test_subclass_of_the_regularised_model_may_have_a_regulariser():
    repeatable.install()
    plain = compose.as_plain(compose.read_config(ROOT / "configs/characters/finetune_unfrozen_reg.yaml"))
    plain["model"]["target"] = f"{repeatable.MODULE}.Repeatable"
    assert not [fault for fault in faults(plain) if fault.startswith("model")]
    plain["model"]["target"] = f"{repeatable.MODULE}.RepeatablePlain"
    assert any("has no such term and would ignore it" in fault for fault in faults(plain))


def test_caption_word_that_is_not_learnt_is_an_error():
    with pytest.raises(ValueError, match="'%'.*'\\*'"):
        check_words(changed(tiny.config(Path("P")), "data.params.train.params.placeholder_token", "%"))


@pytest.mark.parametrize("count", [8, 1])
def test_vectors_that_find_room_pass(count):
    check_words(changed(tiny.config(Path("P")), "model.params.personalization_config.params.num_vectors_per_token", count))


@pytest.mark.parametrize("count", [2048, 77, 75, 0, -1, 1.5])
def test_vectors_that_find_no_room_are_refused_with_the_largest_number(count):
    """A07."""
    with pytest.raises(ValueError, match=r"whole number from 1 to \d\d: a caption has 77 places"):
        check_words(changed(tiny.config(Path("P")), "model.params.personalization_config.params.num_vectors_per_token", count))


def test_words_are_tried_without_the_memory_of_the_encoder():
    """ViT-L/14's text tower has 123 million weights: none is made."""
    plain = tiny.config(Path("P"))
    plain["model"]["params"]["cond_stage_config"] = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    plain["model"]["params"]["personalization_config"]["params"]["initializer_words"] = ["opossum"]
    started = time.monotonic()
    with pytest.raises(ValueError, match="opossum"):
        check_words(plain)
    assert time.monotonic() - started < 30


def test_weights_are_named_by_the_flag_that_gives_them(tmp_path):
    (tmp_path / "e.pt").touch()
    plain = changed(toy.config(), "model.params.personalization_config", {"params": {"embedding_manager_ckpt": str(tmp_path / "e.pt")}})
    with pytest.raises(ValueError, match="--embedding_manager_ckpt: .*e.pt"):
        check_files(OmegaConf.create(plain))
    with pytest.raises(FileNotFoundError, match="--actual_resume: .*none.ckpt"):
        check_files(OmegaConf.create(changed(toy.config(), "model.params.ckpt_path", "none.ckpt")))


def test_place_of_the_run_folder_is_tried_without_making_it(tmp_path):
    def run(logs):
        return new_run(str(logs), data_root=None, base=[], name="x", postfix="", datadir_in_name=True)

    check_writable(run(tmp_path / "deep" / "logs"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        check_writable(run(tmp_path / "file" / "logs"))
