"""Targets resolve within the project and a short list, and a wrong one says what was meant; the small helpers."""
from __future__ import annotations

import logging

import pytest
import torch
from omegaconf import OmegaConf

from ldm import util
from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.util import get_obj_from_str, instantiate_from_config

CYCLE = {"warm_up_steps": [1], "f_min": [0.0], "f_max": [1.0], "f_start": [0.0], "cycle_lengths": [10]}


def test_config_becomes_the_object_with_params_and_keywords_joined():
    config = OmegaConf.create({"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": CYCLE})
    schedule = instantiate_from_config(config, verbosity_interval=7)
    assert type(schedule) is LambdaLinearScheduler
    assert schedule.verbosity_interval == 7 and schedule.cycle_lengths == [10]


@pytest.mark.parametrize("params", [{}, {"params": None}, {"params": {}}])
def test_params_may_be_left_out(params):
    assert isinstance(instantiate_from_config({"target": "torch.nn.Identity", **params}), torch.nn.Identity)


@pytest.mark.parametrize("mark", ["__is_first_stage__", "__is_unconditional__"])
def test_marks_that_need_no_module_give_none(mark):
    assert instantiate_from_config(mark) is None


@pytest.mark.parametrize("config", [{"params": {}}, {}, "ldm.lr_scheduler.LambdaLinearScheduler"])
def test_a_missing_target_is_a_key_error(config):
    with pytest.raises(KeyError, match="target"):
        instantiate_from_config(config)


ELSEWHERE = ["os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.nn.Linear", "pytorch_lightning.Trainer", "Identity", "ldm", "ldmx.util"]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_targets_elsewhere_are_refused(target):
    with pytest.raises(ValueError, match=f"target '{target}' is not allowed: targets lie in ldm"):
        get_obj_from_str(target)


@pytest.mark.parametrize("target", ["torch.optim.AdamW", "torch.optim.lr_scheduler.LambdaLR", "pytorch_lightning.loggers.TensorBoardLogger"])
def test_library_classes_that_runs_name_resolve(target):
    assert get_obj_from_str(target).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    "target, nearest",
    [
        ("ldm.lr_scheduler.LamdaLinearScheduler", "ldm.lr_scheduler.LambdaLinearScheduler"),
        ("ldm.lr_schedler.LambdaLinearScheduler", "ldm.lr_scheduler.LambdaLinearScheduler"),
        ("lmd.lr_scheduler.LambdaLinearScheduler", "ldm.lr_scheduler.LambdaLinearScheduler"),
        ("torch.optim.AdmaW", "torch.optim.AdamW"),
        ("torch.optm.AdamW", "torch.optim.AdamW"),
    ],
)
def test_a_misspelt_target_names_the_nearest(target, nearest):
    with pytest.raises(ValueError) as error:
        get_obj_from_str(target)
    assert f"did you mean {nearest}?" in str(error.value) and target in str(error.value)


def test_the_codebook_loss_of_taming_is_ours_which_downloads_nothing():
    found = get_obj_from_str("taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator")
    assert found.__module__ == "ldm.modules.losses.vqperceptual"


def test_a_missing_package_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(util, "LIBRARY_TARGETS", ("a_package_nobody_has.optim.",))
    with pytest.raises(ValueError, match="the package a_package_nobody_has is not installed"):
        get_obj_from_str("a_package_nobody_has.optim.Adam8bit")


def test_an_import_that_fails_inside_a_module_is_not_taken_for_a_misspelling(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(util, "OURS", ("needy",))
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        get_obj_from_str("needy.Thing")


def test_reload_reads_the_module_anew(tmp_path, monkeypatch):
    (tmp_path / "changing.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(util, "OURS", ("changing",))
    assert get_obj_from_str("changing.VALUE") == 1
    (tmp_path / "changing.py").write_text("VALUE = 'another'\n")
    assert get_obj_from_str("changing.VALUE") == 1
    assert get_obj_from_str("changing.VALUE", reload=True) == "another"


def test_all_faults_of_the_params_are_reported_at_once():
    params = {**CYCLE, "warmup_steps": [3], "f_maximum": [1.0]}
    del params["cycle_lengths"]
    with pytest.raises(ValueError) as error:
        instantiate_from_config({"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": params}, verbosity_interval=1)
    text = str(error.value)
    assert "ldm.lr_scheduler.LambdaLinearScheduler" in text
    assert "warmup_steps: unknown, did you mean warm_up_steps?" in text and "f_maximum: unknown" in text and "cycle_lengths: missing" in text


def test_a_key_given_twice_is_refused():
    with pytest.raises(ValueError, match="f_min: given by the code and by params"):
        instantiate_from_config({"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": CYCLE}, f_min=[0.5])


class Base:
    def __init__(self, width, *, depth=1):
        self.width, self.depth = width, depth


class Handing(Base):
    def __init__(self, colour, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Open:
    def __init__(self, width, **ignored):
        self.width = width


def test_parameters_of_the_constructors_above_are_accepted_too():
    assert util.accepted_parameters(Base) == {"width", "depth"}
    assert util.accepted_parameters(Handing) == {"colour", "width", "depth"}
    assert util.accepted_parameters(Open) is None


def test_default_calls_a_plain_function_and_nothing_else():
    assert util.default(0, 5) == 0
    assert util.default(None, lambda: 5) == 5
    assert util.default(None, int) is int
    assert not util.exists(None) and util.exists(0)


def test_texts_become_pictures_black_on_white():
    texts = ["a photo of *", "", "word " * 30]
    pictures = util.log_txt_as_img((128, 64), texts)
    assert pictures.shape == (3, 3, 64, 128) and pictures.dtype == torch.float32
    assert pictures.max() == 1.0 and -1.0 <= pictures.min() < -0.9
    assert (pictures[1] == 1.0).all()
    written = (pictures < 0).flatten(1).sum(1)
    assert written[2] > written[0] > 0


def test_a_long_text_goes_on_in_further_lines():
    (one_line,) = util.log_txt_as_img((256, 64), ["x" * 30])
    (two_lines,) = util.log_txt_as_img((256, 64), ["x" * 41])
    assert (one_line[:, 14:] == 1.0).all() and (two_lines[:, 14:] < 0).any()


@pytest.mark.parametrize("shape, is_image, is_map", [((2, 3, 4, 4), True, False), ((2, 8, 4, 4), False, True), ((3, 4, 4), False, False)])
def test_pictures_and_feature_maps_are_told_apart(shape, is_image, is_map):
    assert util.isimage(torch.zeros(shape)) is is_image and util.ismap(torch.zeros(shape)) is is_map
    assert util.isimage("text") is False and util.ismap(None) is False


def test_mean_flat_leaves_the_batch():
    x = torch.arange(24.0).reshape(2, 3, 4)
    torch.testing.assert_close(util.mean_flat(x), torch.tensor([5.5, 17.5]))


def test_count_params_counts_frozen_ones_too(caplog):
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    with caplog.at_level(logging.INFO):
        assert util.count_params(layer, verbose=True) == 8
    assert "Linear has 0.00 M parameters" in caplog.text
