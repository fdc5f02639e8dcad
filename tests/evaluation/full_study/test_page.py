"""What the page of the full study says, for rows of which it is known what must be said."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from ldm.evaluation.full_study.arms import FROZEN, IDEAS, MIXTURE, UNREGULARIZED, UNREGULARIZED_TWO_PHASE, Arm, arm_of, rival_arms
from ldm.evaluation.full_study.chart import shown_lines
from ldm.evaluation.full_study.finalists import finals_arms
from ldm.evaluation.full_study.page import BEGIN, END, table, write_full_page, written
from ldm.evaluation.full_study.rivals import EFFECTS, rivals_over_strengths
from ldm.evaluation.full_study.sentences import lazily, sentences
from ldm.evaluation.full_study.statistics import standings
from ldm.evaluation.results_page import write_results_page
from tests.evaluation.full_study.world import CONCEPTS, made_row, made_rows
from tests.golden.case import REPOSITORY


def ours(conditioning, strength=1.5, latents="prior"):
    return Arm("locality", conditioning, latents, strength)


KV, L2 = Arm("kv_only", strength=1e-3), Arm("base_weights", strength=1e-2)
SCREEN = made_rows([(ours(name, weight), 0.99, decades) for name in (*IDEAS, MIXTURE) for weight, decades in ((1.5, 0.5), (7.5, 1.0))] + [(KV, 0.9, 0.5)])


def said_of(decades: dict[str, float], *, identity: float = 1.0, noise: float = 0.0, concepts=CONCEPTS, rivals=((KV, 1.0, 0.3),)) -> str:
    """The sentences where our arms drift by so many decades less; noise: by how much more or less it is for every other character."""
    rows = made_rows([(ours(name), identity, value) for name, value in decades.items()] + list(rivals), stage="finals", concepts=concepts)
    for row in rows:
        if row["method"] == "locality" and row["conditioning"] != MIXTURE:
            row["drift_off_pattern"] *= 10 ** (noise if CONCEPTS.index(row["concept"]) % 2 else -noise)
    return "\n".join(sentences(rows, standings(SCREEN)))


def line_with(text: str, *words: str) -> str:
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return found


EVEN = dict.fromkeys((*IDEAS, MIXTURE), 1.0)


def test_an_idea_that_beats_the_mixture_is_told_by_how_much():
    said = said_of({**EVEN, "hypersphere": 1.5, "encoding": 0.5})
    assert "beats “empty + class” off-pattern: its drift is 3.16 times (3.16 to 3.16) less" in line_with(said, "Idea 5, the hypersphere, beats")
    worse = line_with(said, "Idea 4", "“empty + class”")
    assert "does not beat “empty + class” off-pattern: its drift is 3.16 times (3.16 to 3.16) more" in worse


def test_a_difference_that_chance_would_make_beats_nothing():
    said = said_of({**EVEN, "hypersphere": 1.2}, noise=0.5)
    assert "does not beat “empty + class” off-pattern: no difference beyond chance" in line_with(said, "Idea 5", "“empty + class”")


def test_an_idea_pays_where_its_drift_is_less_and_only_with_the_identity_kept():
    said = said_of({**EVEN, "empty": 0.0})
    assert "does not pay: its drift is not less" in line_with(said, "Idea 1", "identity")
    assert "pays in-pattern and off-pattern; drift is 10 times (10 to 10) less in-pattern" in line_with(said, "Idea 2", "identity")
    assert "pays in-pattern, and not off-pattern" in line_with(said_of({**EVEN, "class": 0.4}, noise=0.9), "Idea 2", "identity")
    assert "does not pay at this weight: it costs identity" in line_with(said_of(EVEN, identity=0.9), "Idea 2", "identity 0.900")


def test_of_an_idea_that_costs_identity_the_arms_that_did_not_in_the_screen_are_named():
    assert "`locality/class/prior/7.5` 10 times less at identity 0.99." in line_with(said_of(EVEN, identity=0.9), "Idea 2", "identity 0.900")
    assert "Other arms" not in said_of(EVEN)


def test_an_arm_of_two_phases_is_held_beside_the_unregularised_run_of_two_phases_too():
    arm = replace(ours("class"), phases=2)
    rows = made_rows([(arm, 1.0, 1.5), (UNREGULARIZED_TWO_PHASE, 1.0, 0.5), (KV, 1.0, 0.3)], stage="finals")
    said = "\n".join(sentences(rows, standings(SCREEN)))
    for line in (line_with(said, "Idea 2", "pays"), line_with(said, "least off-pattern drift of ours")):
        assert "31.6 times (31.6 to 31.6) less" in line and "two phases: 10 times (10 to 10) less off-pattern." in line
    assert "two phases" not in line_with(said, "drift of the rivals")


def test_with_two_characters_nothing_is_called_certain():
    said = said_of(EVEN, concepts=("a", "b"))
    assert "too few characters" in line_with(said, "Idea 1", "identity") and "too few characters" in line_with(said, "Idea 5", "“empty + class”")
    assert " to " not in line_with(said, "least off-pattern drift of ours")


def test_an_idea_that_was_not_there_is_named():
    said = said_of({"class": 1.0})
    assert "Idea 5, the hypersphere: not in the finals." in said and "not both in the finals" in said


def test_ours_and_the_best_rival_at_equal_identity_and_by_hypervolume():
    said = said_of(EVEN, rivals=((KV, 1.0, 0.3), (L2, 0.96, 1.5)))
    assert "`base_weights/0.01`: 31.6 times" in line_with(said, "drift of the rivals") and "the rival is ahead" in said
    finals = line_with(said, "finals: ours")
    assert "ours 0.200 together, 0.200 the best of them alone; the best rival, `base_weights/0.01`, 0.240" in finals  # 0.2 · 1.0, and 0.16 · 1.5
    assert "`kv_only` 0.050" in line_with(said, "in the screen")


def test_an_idea_at_once_beside_a_mixture_of_two_phases_is_told_of_as_it_did_in_the_screen():
    rows = made_rows([(ours("encoding"), 1.0, 1.0), (replace(ours(MIXTURE), phases=2), 1.0, 1.3)], stage="finals")
    said = line_with("\n".join(sentences(rows, standings(SCREEN))), "Idea 4", "“empty + class”")
    assert "learns word and network at once, and the mixture does not" in said
    assert "`locality/encoding/prior/7.5` 10 times less than unregularised at identity 0.99, `locality/empty+class/prior/7.5` 10 times" in said
    assert "The former" not in said_of(EVEN)


def test_without_a_rival_of_that_identity_ours_stands_beside_the_one_that_drifts_least():
    said = said_of(EVEN, rivals=((KV, 0.5, 0.5), (L2, 0.9, 0.3)))
    assert "there is none of the rivals" in said
    assert "`kv_only/0.001`: 3.16 times (3.16 to 3.16) less than unregularised, at identity 0.500" in line_with(said, "Whatever the identity")
    assert "ours has 3.16 times (3.16 to 3.16) less off-pattern drift; ours is ahead" in line_with(said, "Between these two")
    assert "Whatever the identity" not in said_of(EVEN, rivals=((KV, 1.0, 0.5), (L2, 0.9, 0.9)))


def test_edits_are_told_of_each_number_of_phases():
    twice, plain_twice = replace(ours("class"), phases=2), Arm("unregularized", phases=2)
    rows = made_rows([(ours("empty"), 1.0, 1.0), (ours(MIXTURE), 1.0, 1.0), (twice, 1.0, 1.0), (plain_twice, 1.0, 0.3)], stage="finals")
    hats = {UNREGULARIZED: 0.5, ours("empty"): 0.75, ours(MIXTURE): 0.9, twice: 0.25, plain_twice: 0.2}
    for row in rows:
        row["edit_hat"] = hats.get(arm_of(row), 1.0)
    said = "\n".join(sentences(rows, standings(SCREEN)))
    assert "learnt at once, in 0.50 of the unregularised run's samples and in 0.75 to 0.90 of ours." in said
    assert "learnt in two phases, in 0.20 of the unregularised run's samples and in 0.25 of ours." in said
    assert "two phases" not in said_of(EVEN)


def test_a_line_of_strengths_is_shown_for_each_method():
    worse = [(ours("class", weight, "noise"), 0.9, 0.1) for weight in (0.3, 1.5)]
    found = standings([*SCREEN, *[row for row in made_rows(worse) if row["method"] == "locality"]])
    lines = shown_lines(found.values())
    assert list(lines) == [f"locality/{name}/prior" for name in (*IDEAS, MIXTURE)] + ["kv_only"]
    assert [one.arm.strength for one in lines["locality/class/prior"]] == [1.5, 7.5]


def write_rows(path, rows):
    summary = {split: {"settings": {"sampling": f"DDIM of {split}"}} for split in ("dev", "later")}
    path.write_text(json.dumps({"rows": rows, "summary": summary, "costs": {}, "plan": {}}))
    return path


def test_the_page_gets_table_picture_and_sentences_between_its_markers(tmp_path):
    finals = made_rows([(ours(name), 0.98, 1.0) for name in (*IDEAS, MIXTURE)] + [(KV, 0.97, 0.3)], stage="finals")
    path = write_rows(tmp_path / "rows.json", [*SCREEN, *finals])
    page, chart = tmp_path / "docs" / "results.md", tmp_path / "results" / "full.png"
    page.parent.mkdir()
    page.write_text(f"by hand\n{BEGIN}\nold\n{END}\nalso by hand\n")
    write_full_page(path, page, chart)
    text = page.read_text()
    assert text.startswith("by hand\n") and text.endswith("also by hand\n") and "\nold\n" not in text
    assert "](../results/full.png)" in text and "DDIM of later" in text and "4 characters × 1 seed" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| locality/hypersphere/prior/1.5 |")][:1]
    assert line.split(" | ")[1:6] == ["copy", "0.980 ± 0.000", "0.200 ± 0.000", "0.300 ± 0.000", "10 (10 … 10)"]
    assert line.endswith("| 0.000 | × 2.00 | × 1.10 |")
    assert "| locality/class/prior/1.5 | 1 ± 0.1, ≤ 1.2 |" in text  # nats
    with Image.open(chart) as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    before = page.read_bytes(), chart.read_bytes()
    write_full_page(path, page, chart)
    assert (page.read_bytes(), chart.read_bytes()) == before


def test_the_widest_difference_of_an_attribute_is_from_the_frozen_models_own_samples():
    rows = made_rows([(ours("class"), 1.0, 1.0)], stage="finals")
    for row in rows:
        if row["method"] == "frozen" and row["concept"] == "a":
            row["attribute_frequencies_class"]["mouth"] = {"smile": 1.0, "open": 0.0, "flat": 0.0, "teeth": 0.0}
    assert "| 0.188 | × 2.00" in line_with(table(rows), "| locality/class/prior/1.5 |")  # (1 − 1/4) / 4 characters
    without = [row for row in rows if row["method"] != "locality" or row["concept"] != "a"]
    assert "| 0.000 | × 2.00" in line_with(table(without), "| locality/class/prior/1.5 |")


def test_a_screen_alone_makes_a_page_too():
    text = written(SCREEN, [], {}, "chart.png")
    assert "The finals are not there yet." in text and "| locality/class/prior | 0.190 | 1.5: 0.99, 3.16; 7.5: 0.99, 10 |" in text


def test_a_screen_that_is_not_complete_says_how_much_of_it_there_is():
    arms = list(dict.fromkeys(Arm(row["method"], row["conditioning"], row["latents"], row["strength"]) for row in SCREEN))
    half = [row for row in SCREEN if row["concept"] != "b" or row["method"] != "kv_only"]
    assert "Not complete" not in written(SCREEN, [], {}, "chart.png", arms)
    assert f"of the {len(arms)} arms {len(arms) - 1} are measured" in written(half, [], {}, "chart.png", arms)


def test_finals_of_which_a_seed_is_half_measured_say_so_and_compare_seed_with_seed():
    arm = ours("class", 7.5)
    finals = [made_row(one, "a", seed, decades=less, stage="finals") for one, less in ((FROZEN, 0.0), (UNREGULARIZED, 0.0), (arm, 1.0)) for seed in (0, 1)]
    for row in finals:
        if row["method"] == "unregularized" and row["seed"] == 1:
            row["drift_off_pattern"] *= 100
    half = [row for row in finals if row["method"] != "locality" or row["seed"] == 0]
    text = written(SCREEN, half, {}, "chart.png")
    planned = finals_arms(SCREEN)
    assert arm in planned and f"Not complete: of the {len(planned)} arms 2 are measured" in text
    assert line_with(text, "| locality/class/prior/7.5 | cached").split(" | ")[5:7] == ["10", "10"]
    whole = made_rows([(one, 1.0, 1.0) for one in planned if one not in (FROZEN, UNREGULARIZED)], stage="finals")
    assert "Not complete" not in written(SCREEN, whole, {}, "chart.png")


def test_rows_that_are_not_there_are_told(command, tmp_path):
    code, said = command("full_results_page", "--rows", tmp_path / "none.json")
    assert code == 1 and "study_full.py measures them" in said and "Traceback" not in said
    path = write_rows(tmp_path / "rows.json", [made_row(arm) for arm in (FROZEN, UNREGULARIZED)])
    page = tmp_path / "results.md"
    page.write_text("by hand")
    code, said = command("full_results_page", "--rows", path, "--page", page, "--chart", tmp_path / "chart.png")
    assert code == 1 and "no lines" in said and page.read_text() == "by hand" and not (tmp_path / "chart.png").exists()
    with pytest.raises(ValueError, match="no row of the screen"):
        write_full_page(write_rows(tmp_path / "empty.json", []), page, tmp_path / "chart.png")


def test_what_every_kth_step_saves_and_costs_is_told_beside_its_twin():
    busy = Arm("locality", "shipped", "prior", 1.5)
    lazy = replace(busy, every=5)
    rows = made_rows([(busy, 1.0, 1.5), (lazy, 0.9, 1.4), (replace(busy, strength=7.5, every=5), 1.0, 1.0)])
    for row in rows:
        row["step_ratio"] = 1.17 if row["every"] == 5 else 1.87
    (said,) = lazily(rows)
    assert "every-5/1.5`: a step takes × 1.17 instead of × 1.87; off-pattern drift is 1.26 times (1.26 to 1.26) that of every step" in said
    assert "identity 0.900 ± 0.000 instead of 1.000" in said


@pytest.mark.parametrize(
    ("decades", "said"),
    [
        ((0.1, 0.5, 1.0), "drift on the class's prompts falls at every step"),
        ((0.1, 0.05, 1.0), "drift on the class's prompts falls from end to end, but not at every step"),
        ((1.0, 0.5, 0.1), "Not so here: drift on the class's prompts does not fall"),
    ],
)
def test_a_rivals_course_is_held_against_its_paper(decades, said):
    strengths = (1e-4, 1e-3, 1e-2)
    text = rivals_over_strengths(made_rows([(Arm("base_weights", strength=s), 0.9, value) for s, value in zip(strengths, decades, strict=True)]))
    assert said in line_with(text, "`base_weights`") and f"| base_weights | 0.01 | 0.90 | 0.30 | {10 ** decades[-1]:.3g} |" in text
    stopped = [(Arm("early_stopping", strength=share), 0.9, less) for share, less in ((0.1, 1.0), (0.5, 0.5), (0.9, 0.1))]
    rising = rivals_over_strengths(made_rows(stopped))
    assert "rises at every step" in rising and "most identity, 0.90, is at strength 0.1, with 10 times less" in rising
    forgetful = rivals_over_strengths(made_rows([(Arm("kv_only", strength=1e-4), 0.3, 1.0), (Arm("kv_only", strength=1e-3), 0.9, -0.3)]))
    assert "most identity, 0.90, is at strength 0.001, with 2 times more off-pattern drift" in forgetful


def test_every_rival_has_an_effect_to_be_held_against():
    assert set(EFFECTS) == {arm.method for arm in rival_arms()}


def test_the_chart_shows_a_line_of_one_phase_beside_that_of_two():
    once, better = ours("class"), replace(ours("class", 7.5), phases=2)
    rival = replace(KV, phases=2)
    arms = [(once, 0.9, 0.5), (ours("class", latents="noise"), 0.9, 0.1), (better, 1.0, 1.5), (KV, 0.9, 0.2), (rival, 1.0, 0.4)]
    assert list(shown_lines(standings(made_rows(arms)).values())) == [once.line, better.line, KV.line, rival.line]


def test_the_page_says_what_the_rows_say(tmp_path):
    """Both tables of docs/results.md, by the scripts that write them."""
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    shipped = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    page.write_text(shipped, encoding="utf-8")
    write_results_page(REPOSITORY / "results" / "characters.json", page)
    write_full_page(REPOSITORY / "results" / "characters_full.json", page, tmp_path / "results" / "characters_full.png")
    assert page.read_text(encoding="utf-8") == shipped
