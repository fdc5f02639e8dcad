"""Run folders are named and found as in the original."""
from __future__ import annotations

import datetime

import pytest

from ldm.training.run_folder import new_run, resumed_run

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
TIME = "2026-01-02T03-04-05"


def named(**changes) -> str:
    given = {"data_root": "photos/cat/", "base": ["configs/a/first.yaml", "second.yaml"], "name": "", "postfix": "", "datadir_in_name": True, **changes}
    return str(new_run("logs", now=NOW, **given).path)


def test_folder_is_named_after_data_time_and_run():
    assert named(name="mine") == f"logs/cat{TIME}_mine"
    assert named(name="mine", postfix="-b") == f"logs/cat{TIME}_mine-b"
    assert named() == f"logs/cat{TIME}_first"
    assert named(datadir_in_name=False) == f"logs/{TIME}_first"
    assert named(data_root=None) == f"logs/{TIME}_first"
    assert named(base=[]) == f"logs/cat{TIME}"
    assert named(name=True) == f"logs/cat{TIME}"


def test_saved_configs_are_named_after_data_and_time():
    assert new_run("logs", data_root="photos/cat", base=[], name="", postfix="", datadir_in_name=True, now=NOW).stamp == f"cat{TIME}"


@pytest.fixture
def earlier(tmp_path):
    """A run folder with two starts' configs and a checkpoint."""
    run = tmp_path / "logs" / f"cat{TIME}_mine"
    for folder in ("configs", "checkpoints"):
        (run / folder).mkdir(parents=True)
    for name in ("cat2026-01-03T00-00-00-project.yaml", f"cat{TIME}-project.yaml", f"cat{TIME}-lightning.yaml"):
        (run / "configs" / name).touch()
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "checkpoints" / "epoch=000003.ckpt").touch()
    return run


def test_resume_of_a_folder_takes_its_last_checkpoint_and_sorted_configs(earlier):
    run = resumed_run(str(earlier) + "/", now=NOW)
    assert run.path == earlier and run.resume_from == earlier / "checkpoints" / "last.ckpt"
    names = [name.rpartition("/")[2] for name in run.saved_configs]
    assert names == [f"cat{TIME}-lightning.yaml", f"cat{TIME}-project.yaml", "cat2026-01-03T00-00-00-project.yaml"]


def test_resume_of_a_file_takes_the_folder_two_levels_up(earlier):
    run = resumed_run(str(earlier / "checkpoints" / "epoch=000003.ckpt"))
    assert run.path == earlier and run.resume_from.name == "epoch=000003.ckpt"


def test_configs_of_a_resumed_start_sort_behind_the_earlier_ones(earlier):
    run = resumed_run(str(earlier))
    new = str(earlier / "configs" / f"{run.stamp}-project.yaml")
    assert run.stamp.startswith("cat") and sorted([new, *run.saved_configs])[-1] == new


def test_create_makes_the_folders(tmp_path):
    run = new_run(str(tmp_path), data_root=None, base=[], name="x", postfix="", datadir_in_name=True)
    run.create()
    assert run.checkpoints.is_dir() and run.configs.is_dir()


def test_create_where_a_file_stands_is_an_error_of_the_users(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(ValueError, match="--logdir"):
        new_run(str(tmp_path / "logs"), data_root=None, base=[], name="x", postfix="", datadir_in_name=True).create()


def test_two_runs_of_one_name_in_one_second_have_a_folder_each(tmp_path, monkeypatch):
    options = {"data_root": None, "base": [], "name": "x", "postfix": "", "datadir_in_name": True, "now": NOW}
    first = new_run(str(tmp_path), **options)
    first.create()
    second = new_run(str(tmp_path), **options)
    assert second.path != first.path and second.path.name.startswith(second.stamp)
    # a process that the second one started is told its folder, which is there by then
    second.create()
    monkeypatch.setenv("LOCAL_RANK", "1")
    told = new_run(str(tmp_path), **options)
    assert told.path == second.path
    told.create()


def test_a_folder_taken_between_naming_and_making_is_left_alone(tmp_path):
    options = {"data_root": None, "base": [], "name": "x", "postfix": "", "datadir_in_name": True, "now": NOW}
    first, second = new_run(str(tmp_path), **options), new_run(str(tmp_path), **options)
    first.create()
    with pytest.raises(ValueError, match="another run.*Start this one again"):
        second.create()


@pytest.mark.parametrize("rank", ["RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"])
def test_processes_of_one_run_share_its_folder_whatever_launched_them(tmp_path, monkeypatch, rank):
    options = {"data_root": None, "base": [], "name": "x", "postfix": "", "datadir_in_name": True, "now": NOW}
    first = new_run(str(tmp_path), **options)
    first.create()
    monkeypatch.setenv(rank, "1")
    other = new_run(str(tmp_path), **options)
    assert other.path == first.path
    other.create()
