"""The words of the command line, as the original took them."""
from __future__ import annotations

import argparse
import json

import pytest

from ldm.training.arguments import as_override, get_parser, nondefault_trainer_args, parse, str2bool, trainer_arguments, yaml_value
from tests.golden.case import ORACLE

NOW_OPTIONAL = ("actual_resume", "data_root")


@pytest.mark.skipif(not ORACLE.exists(), reason="needs ../shared/oracle")
def test_every_flag_of_the_original_has_its_type_default_and_arity():
    flags = json.loads((ORACLE / "facts_cli.json").read_text())["main.py"]
    ours = {action.dest: action for action in get_parser()._actions}
    kinds = {"str": str, "int": int, "str2bool": str2bool, "None": None}
    for flag in flags:
        action = ours[flag["dest"]]
        assert set(flag["flags"]) <= set(action.option_strings)
        facts = (action.default, action.type, action.nargs, action.const)
        assert facts == (flag["default"], kinds[flag["type"]], flag["nargs"], flag["const"]), flag["dest"]
        assert action.required == (flag["required"] and flag["dest"] not in NOW_OPTIONAL)


@pytest.mark.parametrize("word", ["yes", "true", "t", "y", "1", "TRUE", True])
def test_words_for_yes(word):
    assert str2bool(word) is True


@pytest.mark.parametrize("word", ["no", "false", "f", "n", "0", "False", False])
def test_words_for_no(word):
    assert str2bool(word) is False


def test_other_words_are_neither():
    with pytest.raises(argparse.ArgumentTypeError, match="maybe"):
        str2bool("maybe")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--max_steps", "20"], "max_steps", 20),
        (["--precision", "16"], "precision", 16),
        (["--precision", "bf16-mixed"], "precision", "bf16-mixed"),
        (["--accumulate_grad_batches=4"], "accumulate_grad_batches", 4),
        (["--devices", "0,1"], "devices", "0,1"),
        (["--accelerator", "gpu"], "accelerator", "gpu"),
        (["--gpus", "0,"], "gpus", "0,"),
        (["--gpus", "-1"], "gpus", "-1"),
        (["--benchmark", "true"], "benchmark", True),
        (["--limit_val_batches", "0.5"], "limit_val_batches", 0.5),
        (["--max_time", "00:12:00:00"], "max_time", "00:12:00:00"),
        (["--resume_from_checkpoint", "x.ckpt"], "resume_from_checkpoint", "x.ckpt"),
    ],
)
def test_every_argument_of_the_trainer_is_a_flag_and_counts_where_it_is_not_the_default(words, name, value):
    opt, rest = parse(words)
    assert not rest and nondefault_trainer_args(opt) == [name] and getattr(opt, name) == value


def test_without_flags_the_trainer_keeps_its_defaults():
    opt, rest = parse([])
    assert nondefault_trainer_args(opt) == [] and rest == [] and {"max_steps", "precision", "strategy"} <= set(trainer_arguments())


@pytest.mark.parametrize(
    "words",
    [
        ["-t", "a.b=3"],
        ["a.b=3", "-t"],
        ["-t", "--a.b=3"],
        ["-b", "x.yaml", "a.b=3", "-t"],
        ["-n", "x", "-t", "true", "a.b=3"],
        ["--no-test", "a.b=3", "-t"],
    ],
)
def test_override_is_one_wherever_it_stands(words):
    opt, rest = parse(words)
    assert rest == ["a.b=3"] and opt.train is True


def test_value_of_a_flag_may_hold_an_equals_sign():
    opt, rest = parse(["--data_root", "a=b", "-n", "c=d"])
    assert opt.data_root == "a=b" and opt.name == "c=d" and rest == []


def test_misspelt_flag_gets_the_nearest_one():
    with pytest.raises(ValueError, match="--max_steps"):
        parse(["--max_stepps", "3"])
    with pytest.raises(ValueError, match="did you mean --init_word"):
        as_override("--init_wird", ["--init_word", "--name"])


def test_wrong_value_is_an_error_like_all_others():
    with pytest.raises(ValueError, match="seed"):
        parse(["-s", "many"])


def test_text_that_yaml_cannot_read_is_meant_as_text():
    assert yaml_value("{") == "{" and yaml_value("1e-3") == 1e-3 and yaml_value("none") == "none"
