"""Rows of the study: their schema, how the file goes on, the bars, the page."""
from __future__ import annotations

import json

import pytest

from ldm.data.characters import NEW_CHARACTERS, VALUES
from ldm.evaluation.bars import bars_of
from ldm.evaluation.comparison import READ_PROMPTS, Counts
from ldm.evaluation.results_file import ResultsFile, concept_name, make_row, named_character
from ldm.evaluation.results_page import BEGIN, END, write_results_page

# the keys of a row, in order, as readers of results/characters.json know them
KEYS = [
    "concept", "seed", "model", "trait_rate_class", "trait_rate_concept", "drift_class", "drift_heldout", "denoising_loss", "edit_hat", "edit_background",
    "attribute_frequencies_class", "samples_per_prompt", "loss_draws", "split",
]  # fmt: skip
MODELS = ("frozen", "unregularized", "regularized")
SETTINGS = {"base_sha256": "abc", "sampling": "DDIM 50 steps, eta 0, guidance 5", "counts": "64 samples a prompt"}
DRIFT = {"frozen": 0.0, "unregularized": 0.26, "regularized": 0.01}
LOSS = {"frozen": 0.3, "unregularized": 0.1, "regularized": 0.102}


def row(number=0, seed=0, model="frozen", split="report", **changes):
    character = NEW_CHARACTERS[split][number]
    trait = {"eyes": character.eyes, "colour": character.colour}
    ordinary = {**dict.fromkeys(VALUES), "kind": "character", "eyes": "button", "colour": "red", "body": "round", "mouth": "smile", "background": "plain"}
    leaks = model == "unregularized"
    readings = {prompt: [{**ordinary, **(trait if leaks or (prompt.startswith("*") and model != "frozen") else {})}] * 4 for prompt in READ_PROMPTS}
    readings["* wearing a red hat"] = [{**reading, "headwear": "hat", "hat_colour": "red"} for reading in readings["* wearing a red hat"]]
    readings["* in a forest"] = [{**reading, "background": "forest"} for reading in readings["* in a forest"]]
    network = {"drift_class": DRIFT[model], "drift_heldout": DRIFT[model] / 2, "denoising_loss": LOSS[model]}
    return {**make_row(character, split, seed, model, network=network, readings=readings, counts=Counts(samples=4, loss_draws=8)), **changes}


def rows(**changes):
    return [row(number, seed, model, **changes) for number in (0, 1, 2) for seed in (0, 1) for model in MODELS]


def bar(bars, words):
    (found,) = [one for one in bars if words in one["measured"]]
    return found


def test_a_row_has_exactly_the_keys_of_the_schema():
    made = row(model="unregularized")
    assert list(made) == KEYS
    assert made["trait_rate_class"] == made["trait_rate_concept"] == made["edit_hat"] == made["edit_background"] == 1.0
    assert {name: list(table) for name, table in made["attribute_frequencies_class"].items()} == {name: list(values) for name, values in VALUES.items()}
    assert json.loads(json.dumps(made)) == made


def test_no_two_new_characters_share_a_name():
    names = [concept_name(character) for characters in NEW_CHARACTERS.values() for character in characters]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "words"), [("nowhere/0", "no split"), ("dev/99", "dev/0 … dev/3"), ("dev", "dev/0 … dev/3"), ("dev/-1", "dev/0 … dev/3")])
def test_a_wrong_name_is_told_the_right_ones(name, words):
    with pytest.raises(ValueError, match=words):
        named_character(name)


def test_rows_are_on_disk_as_soon_as_they_are_added_and_are_found_again(tmp_path):
    first = ResultsFile(tmp_path / "results" / "characters.json")
    first.go_on_with("report", SETTINGS)
    first.add(row())
    again = ResultsFile(first.path)
    again.read()
    again.go_on_with("report", SETTINGS)
    assert again.has((concept_name(NEW_CHARACTERS["report"][0]), 0, "frozen"))
    assert not again.has((concept_name(NEW_CHARACTERS["report"][0]), 1, "frozen"))
    assert list(json.loads(first.path.read_text())) == ["rows", "summary"]


def test_rows_measured_otherwise_are_not_mixed(tmp_path):
    file = ResultsFile(tmp_path / "characters.json")
    file.go_on_with("report", SETTINGS)
    file.add(row())
    with pytest.raises(ValueError, match="base_sha256 differ.*--fresh"):
        file.go_on_with("report", {**SETTINGS, "base_sha256": "other"})
    file.go_on_with("dev", {**SETTINGS, "base_sha256": "other"})  # another split is another comparison
    file.forget("report")
    file.go_on_with("report", {**SETTINGS, "base_sha256": "other"})
    assert file.rows == []


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}', "no json"])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content):
    path = tmp_path / "characters.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="characters.json is no results file"):
        ResultsFile(path).read()


def test_bars_are_met_by_the_values_that_meet_them():
    bars = bars_of(rows())
    assert sorted({one["bar"] for one in bars}) == ["a", "b", "c", "d", "e"]
    assert all(one["met"] and one["met_everywhere"] for one in bars)
    assert bar(bars, "class prompts")["overall"] == pytest.approx(26)
    assert bar(bars, "denoising loss")["overall"] == pytest.approx(1.02)


def test_a_bar_missed_by_one_character_is_not_met_everywhere():
    measured = rows()
    for one in measured:
        if one["model"] == "regularized" and one["concept"] == measured[0]["concept"] and one["seed"] == 0:
            one["trait_rate_class"] = 0.12
    leak = next(one for one in bars_of(measured) if one["bar"] == "b")
    assert leak["overall"] == pytest.approx(0.02) and leak["highest"] == 0.12
    assert leak["met"] and not leak["met_everywhere"]


def test_a_gap_in_frequencies_is_that_of_all_samples_together():
    """Two characters whose gaps go opposite ways have none together; each has one."""
    measured = rows()
    for one in measured:
        if one["model"] == "regularized" and one["seed"] == 0:
            table = {name: dict(values) for name, values in one["attribute_frequencies_class"].items()}
            table["mouth"] = {"smile": 0.7, "open": 0.3, "flat": 0.0, "teeth": 0.0}
            one["attribute_frequencies_class"] = table
    gap = bar(bars_of(measured), "widest difference")
    assert gap["overall"] == pytest.approx(0.15) and gap["highest"] == pytest.approx(0.3) and gap["lowest"] == 0.0
    assert not gap["met"]


def test_an_edit_at_the_very_limit_is_met():
    measured = rows()
    for one in measured:
        one["edit_hat"] = {"frozen": 0.0, "unregularized": 0.73, "regularized": 0.70}[one["model"]]
    hats = [one for one in bars_of(measured) if one["bar"] == "e"][:2]
    assert [one["met_everywhere"] for one in hats] == [True, True]


def test_without_all_three_models_there_are_no_bars():
    assert bars_of([row(model="frozen"), row(model="unregularized")]) == []


def test_the_page_is_written_between_its_markers_and_says_what_was_missed(tmp_path):
    file = ResultsFile(tmp_path / "characters.json")
    file.go_on_with("report", SETTINGS)
    file.rows = rows()
    for one in file.rows:
        if one["model"] == "unregularized":
            one["trait_rate_class"] = 0.5
    file.write()
    page = tmp_path / "results.md"
    page.write_text(f"# Results\nby hand\n{BEGIN}\nold table\n{END}\nalso by hand\n")
    write_results_page(file.path, page)
    text = page.read_text()
    assert text.startswith("# Results\nby hand\n") and text.endswith("also by hand\n") and "old table" not in text
    (missed,) = [line for line in text.splitlines() if "**missed**" in line]
    assert missed.startswith("| a | unregularised: trait rate in “a character” | ≥ 0.8 | 0.5 | 0.5 … 0.5 |")
    assert "guidance 5" in text
    written = page.read_text()
    write_results_page(file.path, page)
    assert page.read_text() == written


def test_a_page_without_markers_is_left_alone(tmp_path):
    file = ResultsFile(tmp_path / "characters.json")
    file.add(row())
    page = tmp_path / "results.md"
    page.write_text("by hand")
    with pytest.raises(ValueError, match="no lines"):
        write_results_page(file.path, page)
    assert page.read_text() == "by hand"
