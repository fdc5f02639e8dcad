"""The commands, from words to files: compare_runs on runs of the training command, the demo and the study at toy size, and what they say to bad input."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from ldm.checkpoints import save_weights
from ldm.evaluation import demonstration, study, tuning
from ldm.evaluation.command import run_command
from ldm.training.run import main as training_command
from tests.evaluation import small_characters
from tests.evaluation.scripts import script
from tests.evaluation.test_results import KEYS
from tests.golden.case import REPOSITORY

FEW = ["--steps", "2", "--samples", "3", "--drift-draws", "2", "--loss-draws", "4", "--device", "cpu"]
PAGE = [*FEW, "--shown", "2"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of a *\na character\n* in a forest\na house\n")
    return path


@pytest.fixture
def toy_size(monkeypatch, tmp_path):
    """The shipped configs replaced by small ones; the training command runs in this process. Returns the words of each of its calls."""
    configs, calls = small_characters.write_configs(tmp_path), []
    for module in (tuning, demonstration, study):
        monkeypatch.setattr(module, "CHARACTER_CONFIGS", configs)

    def run(words, check):
        calls.append(words[2:])
        return subprocess.CompletedProcess(words, training_command(words[2:]))

    monkeypatch.setattr(tuning.subprocess, "run", run)
    return calls


def test_compare_runs_writes_the_page_of_two_runs(command, pair, prompts, tmp_path):
    out = tmp_path / "page"
    words = ["--base-checkpoint", pair.base, "--runs", *pair.runs.values(), "--prompts", prompts, "--out", out]
    code, said = command("compare_runs", *words, *PAGE)
    assert code == 0, said
    content = json.loads((out / "report.json").read_text())
    frozen, plain, held = content["models"]
    assert [frozen["role"], plain["role"], held["role"]] == ["frozen", "unregularized", "regularized"]
    assert frozen["numbers"]["drift_class"] == frozen["numbers"]["drift_heldout"] == 0.0
    assert plain["numbers"]["drift_class"] > 0 and held["numbers"]["drift_heldout"] > 0
    assert set(held["curves"]) == {"loss", "locality"} and [step for step, _ in plain["curves"]["loss"]] == [0, 1, 2]
    assert "trait_rate_class" not in plain["numbers"]  # no character was named: nothing to be read
    page = (out / "report.html").read_text()
    assert page.count("<img ") == 2 + 4 * 3 + 2
    assert "the training pictures themselves" in page
    assert said.strip().splitlines()[-1] == f"page: {out / 'report.html'}"


def test_a_named_character_is_read_from_the_samples(command, pair, prompts, classifiers, tmp_path):
    words = ["--base-checkpoint", pair.base, "--runs", pair.runs["unregularized"], "--prompts", prompts, "--out", tmp_path, "--names", "mine"]
    code, said = command("compare_runs", *words, "--character", "dev/0", "--classifiers", classifiers, *PAGE)
    assert code == 0, said
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["models"][1]["name"] == "mine"
    assert all(0 <= content["models"][1]["numbers"][name] <= 1 for name in ("trait_rate_class", "trait_rate_concept", "edit_hat", "edit_background"))
    assert "fresh pictures of the concept" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--runs": ["nowhere"]}, "no folder nowhere"),
        ({"--prompts": ["nowhere.txt"]}, "no file nowhere.txt"),
        ({"--base-checkpoint": ["nowhere.ckpt"]}, "no file nowhere.ckpt"),
        ({"--names": ["one", "two"]}, "2 names for 1 runs"),
        ({"--character": ["dev/77"]}, "dev/0"),
        ({"--samples": ["0"]}, "--samples is 0"),
        ({"--fresh-pictures": ["nowhere"]}, "there is no nowhere"),
        ({"--config": ["nowhere.yaml"]}, "no file nowhere.yaml"),
        ({"--device": ["nonsense"]}, "--device nonsense"),
    ],
)
def test_bad_words_get_one_line_and_an_exit_code(command, pair, prompts, tmp_path, changed, words):
    given = {"--base-checkpoint": [pair.base], "--runs": [pair.runs["unregularized"]], "--prompts": [prompts], "--out": [tmp_path / "page"], **changed}
    code, said = command("compare_runs", *[word for flag, values in given.items() for word in (flag, *values)])
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert words in line and "Traceback" not in said
    assert not (tmp_path / "page").exists()


def test_runs_of_one_name_are_refused(command, pair, prompts, tmp_path):
    words = ["--base-checkpoint", pair.base, "--runs", *pair.runs.values(), "--names", "one", "one", "--prompts", prompts, "--out", tmp_path / "page"]
    code, said = command("compare_runs", *words)
    assert code == 1 and "--names: one, one" in said and "Traceback" not in said
    assert not (tmp_path / "page").exists()


def test_a_base_of_another_model_is_refused(command, pair, prompts, tmp_path):
    other = tmp_path / "other.safetensors"
    save_weights(other, {"weight": torch.zeros(3)})
    words = ["--base-checkpoint", other, "--runs", pair.runs["unregularized"], "--prompts", prompts, "--out", tmp_path / "page"]
    code, said = command("compare_runs", *words, *PAGE)
    assert code == 1 and str(other) in said and "Traceback" not in said
    assert not (tmp_path / "page").exists()


def test_the_demo_tunes_twice_and_says_what_came_of_it(command, pair, classifiers, toy_size, tmp_path):
    out = tmp_path / "demo"
    prompts = REPOSITORY / "assets" / "characters" / "prompts" / "demo.txt"
    code, said = command("demo", "--base-checkpoint", pair.base, "--classifiers", classifiers, "--prompts", prompts, "--out", out, *PAGE)
    assert code == 0, said
    assert len(list((out / "pictures").iterdir())) == 5
    seeds = [words[words.index("-s") + 1] for words in toy_size]
    assert len(seeds) == 2 and len(set(seeds)) == 1
    for name in ("report.html", "report.json", "report.png"):
        assert (out / name).stat().st_size > 1000
    *_, verdict, page = [line for line in said.splitlines() if line.strip()]
    assert page == f"page: {out / 'report.html'}"
    assert "“a character” shows the new character's traits (eyes, colour) in" in said and verdict in said


def test_the_study_writes_rows_of_the_schema_and_goes_on_where_it_stopped(command, pair, classifiers, toy_size, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "class.txt").write_text("a character\n")
    (prompts / "heldout.txt").write_text("a house\n")
    out = tmp_path / "results" / "characters.json"
    words = ["--split", "dev", "--characters", "0", "--out", out, "--runs", tmp_path / "study", "--base-checkpoint", pair.base, "--classifiers", classifiers]
    words += ["--prompts", prompts, *FEW]
    code, said = command("study_characters", *words, "--seeds", "0")
    assert code == 0, said
    content = json.loads(out.read_text())
    assert [(row["model"], row["seed"], row["split"]) for row in content["rows"]] == [(model, 0, "dev") for model in study.MODELS]
    assert all(list(row) == KEYS for row in content["rows"])
    assert content["rows"][0]["drift_class"] == content["rows"][0]["drift_heldout"] == 0.0
    assert len(content["summary"]["dev"]["bars"]) == 12
    assert len(toy_size) == 2 and "minutes" in said

    # a row lost, a seed more: what is there is not measured again, what was trained is not trained again
    content["rows"].pop()
    out.write_text(json.dumps(content))
    code, said = command("study_characters", *words, "--seeds", "0", "1")
    assert code == 0, said
    again = json.loads(out.read_text())
    assert again["rows"][:2] == content["rows"] and len(again["rows"]) == 6
    assert len(toy_size) == 2 + 2 and "6 rows asked for, 2 of them" in said

    code, said = command("study_characters", *words, "--seeds", "0", "1", "--scale", "2")
    assert code == 1 and "sampling differ" in said

    # draws are without guidance, of the frozen model alone: rows that are measured otherwise rest on the same ones
    code, said = command("study_characters", *words, "--seeds", "0", "--scale", "2", "--fresh")
    assert code == 0, said
    assert len(list((tmp_path / "study").glob("draws-*.safetensors"))) == 2


def test_a_training_run_that_fails_ends_the_study_with_its_words(command, pair, classifiers, toy_size, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning.subprocess, "run", lambda words, check: subprocess.CompletedProcess(words, 3))
    prompts = REPOSITORY / "assets" / "characters" / "prompts"
    words = ["--split", "dev", "--characters", "0", "--seeds", "0", "--out", tmp_path / "rows.json", "--runs", tmp_path / "study"]
    code, said = command("study_characters", *words, "--base-checkpoint", pair.base, "--classifiers", classifiers, "--prompts", prompts, *FEW)
    assert code == 1 and "exit code 3" in said
    assert [row["model"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["frozen"]


def test_a_finished_run_is_used_again_only_if_nothing_about_it_changed(pair, toy_size, tmp_path):
    config = tuning.CHARACTER_CONFIGS["unregularized"]
    options = {"logdir": tmp_path / "logs", "name": "a", "reuse": True}
    first = tuning.tune(config, pair.base, pair.pictures, seed=1, **options)
    assert tuning.tune(config, pair.base, pair.pictures, seed=1, **options) == first and len(toy_size) == 1
    assert tuning.tune(config, pair.base, pair.pictures, seed=2, **options) != first and len(toy_size) == 2


def test_a_run_of_other_code_is_made_again_and_one_of_other_measures_is_not(pair, toy_size, tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    for name in ("main.py", "ldm/regularization/weight.py", "ldm/evaluation/metrics.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("a = 1\n")
    of_tree = tuning.training_code
    monkeypatch.setattr(tuning, "training_code", lambda: of_tree(tree))
    how = {"logdir": tmp_path / "logs", "name": "a", "seed": 1, "reuse": True}

    def tuned():
        return tuning.tune(tuning.CHARACTER_CONFIGS["unregularized"], pair.base, pair.pictures, **how)

    first = tuned()
    (tree / "ldm/evaluation/metrics.py").write_text("a = 2\n")
    assert tuned() == first and len(toy_size) == 1
    (tree / "ldm/regularization/weight.py").write_text("a = 2\n")
    second = tuned()
    assert second != first and len(toy_size) == 2
    (tree / "ldm/regularization/losses.py").write_text("a = 1\n")
    assert tuned() not in (first, second) and len(toy_size) == 3


def test_the_command_of_a_run_is_the_one_that_users_give(pair, toy_size, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tuning.subprocess, "run", lambda words, check: seen.append(words) or subprocess.CompletedProcess(words, 1))
    with pytest.raises(ValueError, match="exit code 1"):
        tuning.tune(tuning.CHARACTER_CONFIGS["regularized"], pair.base, pair.pictures, logdir=tmp_path, name="a", seed=4, overrides=["x.y=1"])
    assert seen[0][:2] == [sys.executable, str(REPOSITORY / "main.py")]
    assert not any(tmp_path.glob("*.json"))


def test_ctrl_c_is_no_traceback(monkeypatch, capfd):
    module = script("results_page")

    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["results_page.py"])
    assert run_command(stopped, module.parser()) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_checking_a_model_that_is_not_there_is_told_in_one_line(command, classifiers, tmp_path):
    code, said = command("check_characters", "--model", tmp_path / "none.safetensors", "--classifiers", classifiers, "--out", tmp_path / "out.json")
    assert code == 1 and f"{tmp_path / 'none.safetensors'}" in said and "Traceback" not in said
    assert not (tmp_path / "out.json").exists()
