"""patches/apply.py on trees that are, or are not, the commit it expects: stand-ins, whose blob ids are told to it."""
from __future__ import annotations

import importlib.util
import shutil
import subprocess

import pytest

from tests.golden.case import REPOSITORY

LEANS_ON = [
    "main.py", "ldm/util.py", "ldm/data/personalized.py", "ldm/models/diffusion/ddpm.py", "ldm/models/diffusion/ddim.py",
    "ldm/modules/diffusionmodules/util.py", "ldm/modules/embedding_manager.py", "ldm/modules/encoders/modules.py",
]  # fmt: skip


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("apply", REPOSITORY / "patches" / "apply.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert sorted(module.LEANS_ON) == sorted(LEANS_ON)
    return module


@pytest.fixture
def clone(tool, tmp_path, monkeypatch):
    """A git repository whose files are those that the tool expects."""
    folder = tmp_path / "clone"
    for name in LEANS_ON:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    monkeypatch.setattr(tool, "LEANS_ON", {name: tool.blob_id(folder / name) for name in LEANS_ON})
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "theirs")
    return folder


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.invalid", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}


def refused(tool, capsys, folder, *options):
    before = files_in(folder) if folder.is_dir() else None
    assert tool.main([str(folder), *options]) == 1
    assert before is None or files_in(folder) == before
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("apply.py: ")
    return said.err


def test_blob_ids_are_gits(tool, clone):
    assert tool.blob_id(clone / "main.py") == git(clone, "rev-parse", "HEAD:main.py").strip()
    (clone / "main.py").write_bytes(b"# main.py\r\n")
    assert tool.blob_id(clone / "main.py") == tool.LEANS_ON["main.py"], "a checkout with the line ends of Windows is the same commit"


def test_it_applies_verifies_and_undoes(tool, clone, capsys):
    before = files_in(clone)
    assert tool.main([str(clone)]) == 0
    files = tool.added_files(tool.PATCH)
    assert files_in(clone) - before == set(files) and f"{len(files)} files added" in capsys.readouterr().out
    for name in files:
        assert (clone / name).read_bytes() == (REPOSITORY / name).read_bytes()
    (clone / "ldm" / "regularization" / "__pycache__").mkdir()
    (clone / "ldm" / "regularization" / "__pycache__" / "bank.pyc").write_bytes(b"compiled")
    assert tool.main([str(clone), "--undo"]) == 0
    assert files_in(clone) == before and not (clone / "ldm" / "regularization").exists()


def test_it_works_where_there_is_no_clone_and_inside_another_repository(tool, clone, capsys):
    shutil.rmtree(clone / ".git")
    git(clone.parent, "init", "--quiet")
    assert tool.main([str(clone)]) == 0 and (clone / "ldm" / "regularization" / "bank.py").is_file()
    assert tool.main([str(clone), "--undo"]) == 0 and not (clone / "ldm" / "regularization").exists()


def test_it_looks_without_touching(tool, clone, capsys):
    before = files_in(clone)
    assert tool.main([str(clone), "--check"]) == 0 and "the patch is not applied" in capsys.readouterr().out
    assert files_in(clone) == before
    tool.main([str(clone)])
    assert tool.main([str(clone), "--check"]) == 0 and "the patch is applied" in capsys.readouterr().out


def test_a_patched_tree_is_not_patched_again(tool, clone, capsys):
    tool.main([str(clone)])
    capsys.readouterr()
    assert "patched already" in refused(tool, capsys, clone)


def test_an_unpatched_tree_has_nothing_to_undo(tool, clone, capsys):
    assert "is not patched" in refused(tool, capsys, clone, "--undo")


def test_a_dirty_tree_is_refused_and_the_change_named(tool, clone, capsys):
    (clone / "main.py").write_text("# mine\n")
    assert "changes of its own (main.py): commit or stash" in refused(tool, capsys, clone)


def test_untracked_files_are_nobodys_business(tool, clone):
    (clone / "models.ckpt").write_text("weights")
    assert tool.main([str(clone)]) == 0


def test_another_commit_is_refused_and_the_right_one_named(tool, clone, capsys):
    (clone / "main.py").write_text("# later\n")
    git(clone, "commit", "--quiet", "--all", "--message", "later")
    said = refused(tool, capsys, clone)
    assert git(clone, "rev-parse", "--short=10", "HEAD").strip() in said and "differs: main.py" in said and "git checkout 424192de15" in said


@pytest.mark.parametrize("there", [True, False], ids=["another repository", "no folder"])
def test_another_folder_is_refused(tool, tmp_path, capsys, there):
    folder = tmp_path / "elsewhere"
    if there:
        folder.mkdir()
    assert ("no clone of rinongal/textual_inversion" if there else "no folder") in refused(tool, capsys, folder)


def test_an_edited_file_of_the_patch_is_not_removed(tool, clone, capsys):
    tool.main([str(clone)])
    (clone / "ldm" / "prompts.py").write_text("# mine\n")
    capsys.readouterr()
    for options in ([], ["--undo"]):
        assert "ldm/prompts.py" in refused(tool, capsys, clone, *options)


def test_files_under_the_patchs_names_are_not_overwritten(tool, clone, capsys):
    (clone / "ldm" / "prompts.py").write_text("# mine\n")
    assert "ldm/prompts.py" in refused(tool, capsys, clone) and (clone / "ldm" / "prompts.py").read_text() == "# mine\n"


def test_a_committed_patch_is_taken_back_by_git(tool, clone, capsys):
    git(clone, "am", "--quiet", str(tool.PATCH))
    assert "git revert" in refused(tool, capsys, clone, "--undo")
    capsys.readouterr()
    assert "patched already" in refused(tool, capsys, clone)


def test_without_git_it_says_so(tool, clone, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "git was not found" in refused(tool, capsys, clone)
