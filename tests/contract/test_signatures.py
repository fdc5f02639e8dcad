"""Names, parameters, their order and their defaults are what users' code, yaml files and saved runs rely on."""
from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.case import ORACLE

RECORD = json.loads((Path(__file__).parent / "recorded" / "signatures.json").read_text())
NAMES = {**RECORD["fixed"], **RECORD["also_used"]}

# Not part of this project: reports of its own are under ldm.evaluation.
OUT_OF_SCOPE = tuple(name for name in NAMES if name.startswith("evaluation."))
# Called by Lightning, which has changed their parameters since; that they are called rightly is shown by the runs in tests/training.
OF_LIGHTNING = ("training_step", "on_train_batch_start", "on_train_batch_end", "on_validation_batch_end", "configure_optimizers")
# Hooks that Lightning no longer calls; theirs are on_fit_start and on_exception now.
GONE_FROM_LIGHTNING = ("main.SetupCallback:on_pretrain_routine_start", "main.SetupCallback:on_keyboard_interrupt")
# A re-export of the function in ldm.util, whose one parameter has another name; it is called by position everywhere.
ONE_FUNCTION_TWO_HOMES = ("ldm.modules.attention.exists",)
# A default that depends on the machine is recorded in words.
IN_WORDS = ("cuda where it is available, else cpu",)

KINDS = {
    None: inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "keyword_only": inspect.Parameter.KEYWORD_ONLY,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}


def named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def plain(value: Any) -> Any:
    """Tuples as lists: a default that cannot be changed in place is the same default."""
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def recorded(parameters: list[dict]) -> list[tuple]:
    absent = inspect.Parameter.empty
    return [(p["name"], KINDS[p.get("kind")], p.get("default", absent)) for p in parameters]


def actual(function: Any, *, of_class: bool) -> list[tuple]:
    return [(p.name, p.kind, plain(p.default)) for p in inspect.signature(function).parameters.values() if not (of_class and p.name == "self")]


def differences(wanted: list[tuple], have: list[tuple]) -> list[str]:
    """What a caller who knows only `wanted` would stumble over.

    Nobody does over a new keyword-only parameter with a default, or over a required one that has become optional.
    """
    by_place = [inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL]
    found = []
    places, own_places = ([p[0] for p in side if p[1] in by_place] for side in (wanted, have))
    if places != own_places:
        found.append(f"by position: recorded {places}, here {own_places}")
    have_by_name = {p[0]: p for p in have}
    for name, kind, default in wanted:
        if name not in have_by_name:
            found.append(f"{name} is not taken")
            continue
        _, own_kind, own_default = have_by_name[name]
        if own_kind != kind:
            found.append(f"{name} is {own_kind.description}, recorded as {kind.description}")
        if default is not inspect.Parameter.empty and own_default != default and default not in IN_WORDS:
            found.append(f"{name} defaults to {own_default!r}, recorded as {default!r}")
    for name, kind, default in have:
        if name not in {p[0] for p in wanted} and kind == inspect.Parameter.KEYWORD_ONLY and default is inspect.Parameter.empty:
            found.append(f"{name} is new and required")
    return found


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(OUT_OF_SCOPE) - set(ONE_FUNCTION_TWO_HOMES)))
def test_name_has_the_recorded_parameters(name):
    record, here = NAMES[name], named(name)
    if record["kind"] == "function":
        assert not differences(recorded(record["parameters"]), actual(here, of_class=False))
    elif record["constructor"] != "inherited":
        assert not differences(recorded(record["constructor"]), actual(here.__init__, of_class=True))


def test_a_function_with_two_homes_is_one():
    for name in ONE_FUNCTION_TWO_HOMES:
        assert named(name) is named("ldm.util." + name.rpartition(".")[2])


METHODS = {
    f"{name}:{method}"
    for name in set(NAMES) - set(OUT_OF_SCOPE)
    for method in NAMES[name].get("methods", {})
    if not method.startswith("_") or method.startswith("__")
}


@pytest.mark.parametrize("name", sorted(METHODS - set(GONE_FROM_LIGHTNING)))
def test_method_has_the_recorded_parameters(name):
    owner, method = name.split(":")
    here = getattr(named(owner), method)
    if method not in OF_LIGHTNING:
        assert not differences(recorded(NAMES[owner]["methods"][method]["parameters"]), actual(here, of_class=True))


@pytest.mark.parametrize("name", sorted(RECORD["constants"]))
def test_constant_has_the_recorded_value(name):
    assert plain(named(name)) == RECORD["constants"][name]


def test_the_shipped_record_is_the_oracles():
    if not ORACLE.is_dir():
        pytest.skip("../shared/oracle is absent here")
    assert json.loads((ORACLE / "facts_signatures.json").read_text()) == RECORD
