"""What holds for every file of the library, read from its source."""
from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from setuptools import find_packages

from tests.golden.case import REPOSITORY

LIBRARY = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "ldm").rglob("*.py"))
MOST_LINES = 500
TALKS_TO_A_TERMINAL = {"print", "breakpoint", "input"}


def tree_of(path: str) -> ast.Module:
    return ast.parse((REPOSITORY / path).read_text())


@pytest.mark.parametrize("path", LIBRARY)
def test_library_logs_and_does_not_print(path):
    calls = [node.func.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not TALKS_TO_A_TERMINAL & set(calls)


@pytest.mark.parametrize("path", LIBRARY)
def test_no_literal_decides_where_tensors_lie(path):
    """Device and dtype follow the data. Recorded signatures keep their `device="cuda"`: a default is not a decision."""
    for call in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)):
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        assert method != "cuda", f"line {call.lineno}: .cuda()"
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        literal = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        if method in ("to", "device") or any(keyword.arg == "device" for keyword in call.keywords):
            assert not [text for text in literal if text.startswith("cuda")], f"line {call.lineno}: moves to a named device"


@pytest.mark.parametrize("path", LIBRARY)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len((REPOSITORY / path).read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", [path for path in LIBRARY if not path.endswith("__init__.py")])
def test_a_file_opens_by_saying_what_it_is(path):
    assert ast.get_docstring(tree_of(path)), "the first paragraph says what this file is"


def test_every_folder_of_the_library_is_an_installed_package():
    with_code = {".".join(Path(path).parent.parts) for path in LIBRARY}
    assert with_code == set(find_packages(str(REPOSITORY), include=["ldm", "ldm.*"]))


def test_every_library_that_is_imported_is_declared():
    """Relying on what another package happens to bring breaks on the day it no longer does."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    declared = {name.lower() for name in re.findall(r'^    "([A-Za-z0-9_.-]+)', text, re.M) + re.findall(r'= \["([a-z-]+)>=', text)}
    known = packages_distributions()
    undeclared = {}
    for path in [*LIBRARY, "main.py"]:
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"", "ldm", "main"}:
                if not declared & {name.lower() for name in known.get(top, [top])}:
                    undeclared.setdefault(top, path)
    assert not undeclared


def test_nothing_tracked_names_a_machine():
    """Paths of one machine help nobody else; tests may name ../shared."""
    listing = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in listing.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".sh", "") and path.is_file() and path != Path(__file__):
            text = path.read_text(errors="ignore")
            found += [f"{name}: {place}" for place in ("/work/", "/opt/venv", "/home/", "/root/") if place in text]
    assert not found


def test_make_help_lists_only_targets_that_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # `make test` calls this
    shown = subprocess.run(["make", "help"], cwd=REPOSITORY, env=alone, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[1] for line in shown.splitlines()]
    assert {"help", "venv", "test", "lint"} <= set(listed)
    for target in listed:
        assert f"\n{target}:" in makefile
        dry = subprocess.run(["make", "-n", target], cwd=REPOSITORY, env=alone, capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr
        scripts = [word for word in dry.stdout.split() if word.endswith(".py")]
        assert all((REPOSITORY / script).is_file() for script in scripts), f"make {target} runs what is not there: {scripts}"
