"""patches/0001-locality-regularizer.patch: up to date, only new files, and what git am makes of it."""
from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.golden.case import REPOSITORY, oracle_file

PATCH = REPOSITORY / "patches" / "0001-locality-regularizer.patch"
# What the published repository offers to a new file, beside the files that the patch itself brings.
OFFERED = {
    "ldm.models.diffusion.ddpm", "ldm.models.diffusion.ddim", "ldm.util", "ldm.data.personalized", "ldm.modules.diffusionmodules.util",
}  # fmt: skip
LIBRARIES = {"numpy", "torch", "torchmetrics", "tqdm"}


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_patch", REPOSITORY / "scripts" / "make_patch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """A repository of one strange file, with the patch applied by git am."""
    folder = tmp_path_factory.mktemp("repository")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.invalid", "-c", "commit.gpgsign=false"]

    def git(*arguments):
        return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout

    (folder / "main.py").write_text("theirs\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "theirs")
    git("am", "--quiet", str(PATCH))
    return folder, git


def test_it_is_up_to_date(maker):
    assert PATCH.read_text(encoding="utf-8") == maker.patch_of(maker.carried_files()), "the files have changed since: make patch"


def test_git_am_adds_the_files_as_they_are_here_and_changes_nothing(applied, maker):
    folder, git = applied
    changes = [line.split("\t") for line in git("show", "--format=", "--name-status", "HEAD").splitlines()]
    assert {kind for kind, _ in changes} == {"A"} and sorted(path for _, path in changes) == maker.carried_files()
    for _, path in changes:
        assert (folder / path).read_bytes() == (REPOSITORY / path).read_bytes()
    assert git("status", "--porcelain") == ""


def test_author_and_date_are_fixed(applied):
    _, git = applied
    author = "Latent diffusion with a locality regulariser <locality@example.invalid>"
    assert git("log", "-1", "--format=%an <%ae> %aI").strip() == f"{author} 2026-01-01T00:00:00+00:00"
    assert git("log", "-1", "--format=%s").startswith("Add RegularizedLatentDiffusion")


def test_it_carries_the_whole_package_and_three_yaml_files(maker):
    files = maker.carried_files()
    here = [path for path in (REPOSITORY / "ldm" / "regularization").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(REPOSITORY).as_posix() for path in here} <= set(files) and sum(path.endswith(".yaml") for path in files) == 3


def test_a_file_that_cannot_be_mailed_unchanged_is_refused(maker):
    for content in (b"no end", b"a\r\n", b"a\0\n"):
        with pytest.raises(ValueError, match="a.py"):
            maker.addition("a.py", content)


def test_its_files_import_only_what_is_there(maker):
    python = [path for path in maker.carried_files() if path.endswith(".py")]
    brought = {path[: -len(".py")].replace("/", ".").removesuffix(".__init__") for path in python}
    for path in python:
        names = set()
        for node in ast.walk(ast.parse((REPOSITORY / path).read_text(), feature_version=(3, 8))):
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        strange = {name for name in names if name not in brought | OFFERED and name.split(".")[0] not in LIBRARIES | set(sys.stdlib_module_names)}
        assert not strange, path


def test_its_yaml_files_name_only_classes_that_are_there(maker):
    brought = {path[: -len(".py")].replace("/", ".") for path in maker.carried_files()}
    theirs = {
        "ldm.models.diffusion.ddpm.LatentDiffusion", "ldm.modules.embedding_manager.EmbeddingManager", "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "ldm.models.autoencoder.AutoencoderKL", "torch.nn.Identity", "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "ldm.modules.encoders.modules.BERTEmbedder", "main.DataModuleFromConfig", "main.ImageLogger", "ldm.data.personalized.PersonalizedBase",
    }  # fmt: skip
    for path in maker.carried_files():
        if path.endswith(".yaml"):
            targets = re.findall(r"target: ([\w.]+)", OmegaConf.to_yaml(OmegaConf.load(REPOSITORY / path)))
            assert targets and all(target in theirs or target.rpartition(".")[0] in brought for target in targets)


def test_the_readmes_commands_are_such_as_the_published_code_knows(maker):
    """Yaml files that are there or brought, and flags that are there: the run, without and with the term, and a look at both."""
    text = (REPOSITORY / "patches" / "README.md").read_text(encoding="utf-8")
    published = set(json.loads((REPOSITORY / "tests" / "contract" / "recorded" / "configs.json").read_text()))
    flags = {name: {flag for entry in entries for flag in entry["flags"]} for name, entries in json.loads(oracle_file("facts_cli.json").read_text()).items()}
    flags["main.py"].add("--gpus")  # its Lightning's own
    commands = [line.split() for line in text.splitlines() if line.startswith("python ") and not line.startswith("python PATH")]
    assert [words[1] for words in commands] == ["main.py", "main.py", "scripts/stable_txt2img.py"]
    for words in commands:
        assert {word for word in words if word.startswith("-")} <= flags[words[1]]
        assert {word for word in words if word.startswith("configs/")} <= published | set(maker.carried_files())
    without, with_term = (words for words in commands if words[1] == "main.py")
    yaml = "configs/stable-diffusion/v1-finetune_unfrozen"
    assert [pair for pair in zip(without, with_term) if len(set(pair)) == 2] == [(f"{yaml}.yaml", f"{yaml}_reg.yaml"), ("without", "with")]


def test_the_readme_says_the_steps_that_the_published_sampler_knows():
    text = (REPOSITORY / "patches" / "README.md").read_text(encoding="utf-8")
    known = [steps for steps in range(1, 1001) if len(range(0, 1000, 1000 // steps)) == steps and range(0, 1000, 1000 // steps)[-1] < 999]
    said = re.search(r"its DDIM knows: ([\d, ]+) or (\d+) of 1000", text)
    assert [int(number) for number in said[1].split(",")] + [int(said[2])] == known
