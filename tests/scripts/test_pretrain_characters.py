"""A stage of the pretraining is found again only if nothing that it is made from has changed."""
import importlib.util
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def pretrain(monkeypatch):
    """The script as a module, whose commands are noted; training leaves a checkpoint as main.py would."""
    spec = importlib.util.spec_from_file_location("pretrain_characters", REPOSITORY / "scripts" / "pretrain_characters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.called = []

    def command(*words):
        module.called.append(words)
        if "-n" in words:
            checkpoints = Path(words[words.index("--logdir") + 1]) / f"2026_{words[words.index('-n') + 1]}" / "checkpoints"
            checkpoints.mkdir(parents=True)
            (checkpoints / "last.ckpt").write_text(" ".join(words))

    monkeypatch.setattr(module, "command", command)
    return module


def test_a_finished_stage_is_not_repeated(pretrain, tmp_path):
    first = pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=1")
    assert pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=1") == first
    assert len(pretrain.called) == 1


def test_a_stopped_stage_is_gone_on_with(pretrain, tmp_path):
    first = pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=1")
    (first.parents[1] / "finished").unlink()
    assert pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=1") == first
    assert pretrain.called[-1][pretrain.called[-1].index("-r") + 1] == str(first.parents[1])


def test_other_overrides_or_another_start_make_it_anew(pretrain, tmp_path):
    start = tmp_path / "start.ckpt"
    start.write_text("one")
    made = [pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=1"), pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=2")]
    made.append(pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=2", start_from=start))
    start.write_text("another")
    made.append(pretrain.train("crops", pretrain.FIRST_STAGE, tmp_path, "a=2", start_from=start))
    assert len(set(made)) == 4 and len(pretrain.called) == 4


def test_a_fingerprint_rests_on_bytes_not_on_names(pretrain, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("same")
    other.write_text("same")
    assert pretrain.fingerprint(one, "x") == pretrain.fingerprint(other, "x") != pretrain.fingerprint(other, "y")
    assert pretrain.fingerprint("a", "b") != pretrain.fingerprint("ab")


def test_a_missing_first_stage_is_told_in_one_line(pretrain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain_characters.py", "--logdir", str(tmp_path), "--first-stage", str(tmp_path / "none.ckpt")])
    assert pretrain.run_command(pretrain.main, pretrain.parser()) == 1
    assert capsys.readouterr().err == f"error: no file {tmp_path / 'none.ckpt'} (looked from {Path.cwd()})\n"
