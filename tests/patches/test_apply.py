"""patches/apply.py on trees that are, or are not, the commit it expects: stand-ins, whose blob ids are told to it."""
from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess

import pytest

from tests.golden.case import ORACLE, REPOSITORY

LEANS_ON = [
    "main.py", "ldm/util.py", "ldm/data/personalized.py", "ldm/models/diffusion/ddpm.py", "ldm/models/diffusion/ddim.py",
    "ldm/modules/diffusionmodules/util.py", "ldm/modules/embedding_manager.py", "ldm/modules/encoders/modules.py",
]  # fmt: skip


def loaded():
    spec = importlib.util.spec_from_file_location("apply", REPOSITORY / "patches" / "apply.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool():
    module = loaded()
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


def test_the_blob_ids_are_those_of_the_commit():
    facts = ORACLE / "facts_behaviour.md"
    if not facts.is_file():
        pytest.skip("../shared/oracle is absent here")
    assert loaded().LEANS_ON == dict(re.findall(r"(\S+\.py) ([0-9a-f]{40})\b", facts.read_text(encoding="utf-8")))


def test_it_applies_verifies_and_undoes(tool, clone, capsys):
    before = files_in(clone)
    assert tool.main([str(clone)]) == 0
    files = tool.added_files(tool.PATCH)
    said = capsys.readouterr().out
    assert files_in(clone) - before == set(files) and f"{len(files)} files added" in said
    assert said.replace(str(clone), "").isascii(), "not every terminal shows more"
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


def test_a_patch_that_is_staged_is_a_patch(tool, clone, capsys):
    before = files_in(clone)
    tool.main([str(clone)])
    git(clone, "add", "ldm")
    capsys.readouterr()
    assert "patched already" in refused(tool, capsys, clone)
    assert tool.main([str(clone), "--check"]) == 0 and "the patch is applied" in capsys.readouterr().out
    assert tool.main([str(clone), "--undo"]) == 0
    assert files_in(clone) == before and git(clone, "status", "--porcelain") == ""


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


def test_of_many_files_under_its_names_the_one_that_is_another_is_named(tool, clone, capsys):
    mine = sorted(tool.added_files(tool.PATCH))[-1]
    (clone / mine).parent.mkdir(parents=True)
    (clone / mine).write_text("# mine\n")
    said = refused(tool, capsys, clone)
    assert mine in said and "ldm/prompts.py" not in said


def test_a_link_to_nowhere_under_the_patchs_names_is_in_the_way_too(tool, clone, capsys):
    (clone / "ldm" / "prompts.py").symlink_to(clone / "nowhere")
    assert "not this patch's (ldm/prompts.py)" in refused(tool, capsys, clone)


def test_where_a_part_is_missing_it_says_so_and_the_rest_can_be_undone(tool, clone, capsys):
    before = files_in(clone)
    tool.main([str(clone)])
    (clone / "ldm" / "prompts.py").unlink()
    capsys.readouterr()
    assert "a part of the patch only (missing: ldm/prompts.py)" in refused(tool, capsys, clone) and "--undo" in refused(tool, capsys, clone)
    assert tool.main([str(clone), "--check"]) == 1
    assert tool.main([str(clone), "--undo"]) == 0 and files_in(clone) == before


def test_where_it_cannot_write_a_file_it_leaves_none(tool, clone, capsys):
    (clone / "ldm" / "regularization").write_text("a file where the patch wants a folder\n")
    assert "git apply failed" in refused(tool, capsys, clone)
    assert not (clone / "configs").exists()


def test_a_committed_patch_is_taken_back_by_git(tool, clone, capsys):
    git(clone, "am", "--quiet", str(tool.PATCH))
    assert "git revert" in refused(tool, capsys, clone, "--undo")
    said = refused(tool, capsys, clone)
    assert "patched already" in said and "git revert" in said and "--undo" not in said


def test_a_checkout_with_the_line_ends_of_windows_is_patched_and_unpatched(tool, clone, tmp_path, capsys):
    windows = tmp_path / "a folder with spaces"
    git(clone, "clone", "--quiet", "--config", "core.autocrlf=true", str(clone), str(windows))
    before = files_in(windows)
    assert (windows / "main.py").read_bytes().endswith(b"\r\n")
    assert tool.main([str(windows)]) == 0 and (windows / "ldm" / "prompts.py").read_bytes().endswith(b"\r\n")
    assert tool.main([str(windows), "--undo"]) == 0
    assert files_in(windows) == before and git(windows, "status", "--porcelain") == ""


def test_a_patch_file_with_the_line_ends_of_windows_is_the_same_patch(tool, clone, tmp_path, monkeypatch):
    windows = tmp_path / tool.PATCH.name
    windows.write_bytes(tool.PATCH.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(tool, "PATCH", windows)
    assert tool.main([str(clone)]) == 0 and tool.main([str(clone), "--undo"]) == 0
    assert not (clone / "ldm" / "regularization").exists()


def test_another_repository_in_the_environment_is_not_looked_at(tool, clone, tmp_path, monkeypatch):
    """Git's hooks and aliases run programs with GIT_DIR set."""
    git(tmp_path, "init", "--quiet", "other")
    (tmp_path / "other" / "main.py").write_text("another\n")
    git(tmp_path / "other", "add", "--all")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert tool.main([str(clone)]) == 0 and (clone / "ldm" / "prompts.py").is_file()


def test_a_clone_that_git_will_not_read_is_not_taken_for_a_clean_one(tool, clone, capsys):
    """As one that belongs to another user: git says what to do."""
    (clone / ".git" / "config").write_text("[core\n")
    assert "git cannot read" in refused(tool, capsys, clone) and "config" in refused(tool, capsys, clone)


def test_without_the_patch_beside_it_it_says_so(tool, clone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "PATCH", tmp_path / tool.PATCH.name)
    said = refused(tool, capsys, clone)
    assert str(tool.PATCH) in said and "side by side" in said


def test_looking_and_undoing_at_once_is_not_understood(tool, clone, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(clone), "--check", "--undo"])
    assert stopped.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_without_git_it_says_so(tool, clone, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "git was not found" in refused(tool, capsys, clone)
