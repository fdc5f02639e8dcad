"""The words of the training command: its own flags, every argument of Lightning's Trainer, and `dotted.key=value` overrides."""
from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from omegaconf import OmegaConf
from pytorch_lightning import Trainer

OVERRIDE = re.compile(r"[A-Za-z_][\w.\[\]-]*=")
# Arguments of the Trainer that hold objects: they come from the config (`lightning.callbacks`, `lightning.logger`) or from us.
NOT_ON_THE_COMMAND_LINE = frozenset({"self", "logger", "callbacks", "plugins", "model_registry"})


class Parser(argparse.ArgumentParser):
    """A parser whose errors are errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists the flags)")


def str2bool(text: str | bool) -> bool:
    """yes/true/t/y/1 and no/false/f/n/0, in either case."""
    if isinstance(text, bool):
        return text
    word = text.lower()
    if word in ("yes", "true", "t", "y", "1"):
        return True
    if word in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no (write true or false)")


def yaml_value(text: str) -> Any:
    """A word of the command line read as a yaml file would read it: `3` is a number, `true` a truth value, `0,1` stays text.

    So does a time, `00:12:00:00`, which yaml would read as a number to the base of 60.
    """
    if ":" in text:
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except Exception:  # noqa: BLE001 (whatever yaml cannot read is meant as text)
        return text


def trainer_arguments() -> dict[str, Any]:
    """Name → default of every argument of the installed Trainer that can be written as a word."""
    parameters = inspect.signature(Trainer.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in NOT_ON_THE_COMMAND_LINE}


def get_parser(**parser_kwargs: Any) -> argparse.ArgumentParser:
    """The parser of the command's own flags. `parser_kwargs` go to `ArgumentParser`."""
    parser = Parser(allow_abbrev=False, **parser_kwargs)
    switch: dict[str, Any] = {"type": str2bool, "nargs": "?", "const": True}

    run = parser.add_argument_group("the run")
    run.add_argument("-t", "--train", default=False, **switch, help="train (without it the run is set up, and tested if there is test data)")
    run.add_argument("-n", "--name", type=str, nargs="?", const=True, default="", help="name of the run, part of its folder's name")
    run.add_argument("-r", "--resume", type=str, nargs="?", const=True, default="", help="go on with a run: its folder, or one of its checkpoints")
    run.add_argument("-b", "--base", nargs="*", default=[], metavar="YAML", help="config files, merged from left to right")
    run.add_argument("-s", "--seed", type=int, default=23, help="seed of all chance (23)")
    run.add_argument("-f", "--postfix", type=str, default="", help="appended to the run's name")
    run.add_argument("-l", "--logdir", type=str, default="logs", help="folder of the run folders (logs)")
    run.add_argument("-p", "--project", help="accepted and unused, as it always was")
    run.add_argument("-d", "--debug", default=False, **switch, help="show tracebacks and stop in the debugger; the run folder moves to debug_runs")
    run.add_argument("--no-test", default=False, **switch, help="do not test after training")
    run.add_argument("--scale_lr", default=True, **switch, help="multiply the base learning rate by accumulation × devices × batch size (true)")
    run.add_argument("--datadir_in_name", default=True, **switch, help="begin the folder's name with the data folder's (true)")
    run.add_argument("--dry-run", default=False, **switch, help="show what would be done and what it needs, and stop; nothing is written")

    concept = parser.add_argument_group("model and concept")
    concept.add_argument("--actual_resume", type=str, metavar="FILE", help="weights to start from, .ckpt or .safetensors")
    concept.add_argument("--data_root", type=str, metavar="FOLDER", help="the concept's pictures")
    concept.add_argument("--embedding_manager_ckpt", type=str, default="", metavar="FILE", help="embeddings to start from; they win over the checkpoint's")
    concept.add_argument("--placeholder_string", type=str, help="the word to be learnt, in captions too")
    concept.add_argument("--init_word", type=str, help="the word whose vector the new one starts from")
    concept.add_argument("--trust_pickle", default=False, **switch, help="read checkpoints that hold more than weights: they can run code, so only your own")
    return parser


def add_trainer_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds `--gpus`, the older `--resume_from_checkpoint`, and one flag per argument of Lightning's Trainer."""
    group = parser.add_argument_group("arguments of Lightning's Trainer", "each overrides the same key under lightning.trainer")
    group.add_argument("--gpus", type=str, help="`0,` card 0 · `0,1` both · `2` two cards · `0` none · `-1` all")
    group.add_argument("--resume_from_checkpoint", type=str, metavar="FILE", help="checkpoint whose whole training state is restored")
    for name, default in trainer_arguments().items():
        group.add_argument(f"--{name}", type=yaml_value, nargs="?", const=True, default=default, help=argparse.SUPPRESS)
    return parser


def nondefault_trainer_args(opt: argparse.Namespace) -> list[str]:
    """Sorted names of the Trainer arguments that the command line sets to something other than their default."""
    defaults = {**trainer_arguments(), "gpus": None, "resume_from_checkpoint": None}
    return sorted(name for name, default in defaults.items() if getattr(opt, name, default) != default)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the remaining words as `key=value` overrides.

    Raises ValueError for a word that is neither, with the nearest flag.
    """
    parser = add_trainer_arguments(get_parser(prog="main.py", description=__doc__))
    words, overrides = without_overrides(parser, sys.argv[1:] if argv is None else argv)
    opt, rest = parser.parse_known_args(words)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    return opt, [*overrides, *(as_override(word, flags) for word in rest)]


def without_overrides(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other words, overrides): a `dotted.key=value` behind a switch or a list of files would be taken for its argument."""
    greedy = {flag for action in parser._actions if action.type is str2bool or action.nargs == "*" for flag in action.option_strings}
    words, overrides, flag = [], [], None
    for word in argv:
        if word.startswith("-"):
            flag = word
        if flag in greedy and OVERRIDE.match(word) and not os.path.exists(word):
            overrides.append(word)
        else:
            words.append(word)
    return words, overrides


def as_override(word: str, flags: list[str]) -> str:
    """`key=value` or `--key=value` as `key=value`."""
    key, equals, _ = word.partition("=")
    bare = key.lstrip("-")
    if not equals or not bare:
        near = difflib.get_close_matches(key, flags, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{word!r} is neither a flag nor an override of the form dotted.key=value{hint}")
    return word.lstrip("-")
