"""The page: self-contained, every picture with words in its place, nothing that a user wrote taken for HTML."""
from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from ldm.evaluation.comparison import Counts, Plan, Result
from ldm.evaluation.curves import read_curves, smoothed
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.report import write_report

NASTY = "<script>alert('x')</script> & \"a character\""
PROMPTS = [Prompt("a photo of a *", "concept"), Prompt(NASTY, "class"), Prompt("a house", "unlike")]
NUMBERS = {
    "frozen": {"drift_class": 0.0, "drift_heldout": 0.0, "denoising_loss": 0.2},
    "unregularized": {"drift_class": 0.05, "drift_heldout": 0.04, "denoising_loss": 0.1},
    "regularized": {"drift_class": 0.002, "drift_heldout": 0.004, "denoising_loss": 0.09},
}


class Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    made = []
    for role, numbers in NUMBERS.items():
        samples = {prompt.text: torch.rand(4, 3, 16, 16) * 2 - 1 for prompt in PROMPTS}
        curves = {"loss": [(step, 0.1 + 1 / (step + 1)) for step in range(20)]} if role != "frozen" else {}
        made.append(Result(role if role != "regularized" else "<b>mine</b>", role, None, dict(numbers), samples=samples, curves=curves))
    made[2].curves["locality"] = [(step, 0.001 * step) for step in range(20)]
    return made


@pytest.fixture(scope="module")
def files(results, tmp_path_factory):
    plan = Plan(PROMPTS, ["a character"], ["a house"], counts=Counts(shown=4), concept_pictures=torch.zeros(1, 3, 16, 16))
    concept = [Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 20), "blue")]
    return write_report(tmp_path_factory.mktemp("page"), results, plan, concept=concept, settings={"Runs": "logs/<odd> name"})


@pytest.fixture(scope="module")
def page(files):
    return Page(files.page.read_text(encoding="utf-8"))


def test_every_picture_has_words_in_its_place(page):
    pictures = page.of("img")
    assert len(pictures) == 2 + 3 * 3 + 2  # the concept, the grid, the charts
    assert all(picture["alt"].strip() for picture in pictures)
    assert f"4 samples of “{NASTY}” by <b>mine</b>" in {picture["alt"] for picture in pictures}


def test_every_picture_is_inside_the_page_and_opens(page):
    for picture in page.of("img"):
        head, data = picture["src"].split(",", 1)
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (int(picture["width"]), int(picture["height"]))


def test_nothing_is_fetched(files, page):
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", files.page.read_text(encoding="utf-8"))
    assert not re.findall(r"https?:|//\w|url\(|@import|<link|<script|<iframe", text.lower().replace("&lt;script", ""))
    assert not page.of("script") and not page.of("link")


def test_what_a_user_wrote_is_shown_and_not_obeyed(page):
    assert NASTY in page.words and "<b>mine</b>" in page.words and "logs/<odd> name" in page.words


def test_the_page_fits_a_phone_and_says_its_language(files, page):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    assert page.of("html") == [{"lang": "en"}]
    assert "@media (max-width" in files.page.read_text(encoding="utf-8")


def test_headings_are_in_order(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


def test_the_table_states_the_numbers_with_what_they_mean(page):
    text = " ".join(page.words)
    for number in ("0.05", "0.002", "0.04", "0.004", "0.2", "0.1", "0.09"):
        assert number in text
    assert text.count("Lower is better.") == 3


def test_the_verdict_states_what_was_measured(files):
    joined = " ".join(files.verdict)
    assert "25 times less on prompts of the class" in joined and "10 times less on prompts that no regulariser sees" in joined
    assert "10 % lower with the regulariser" in joined


def test_the_json_holds_all_that_the_page_states(files):
    content = json.loads(files.numbers.read_text(encoding="utf-8"))
    assert [(one["role"], one["numbers"]) for one in content["models"]] == list(NUMBERS.items())
    assert content["verdict"] == files.verdict
    assert [prompt["text"] for prompt in content["prompts"]] == [prompt.text for prompt in PROMPTS]
    assert content["models"][2]["curves"]["locality"][3] == [3, 0.003]


def test_the_picture_opens_and_is_not_empty(files):
    picture = Image.open(files.picture).convert("RGB")
    assert picture.width > 1000 and len(picture.getcolors(1 << 24)) > 1000


def test_nothing_else_is_left_in_the_folder(files):
    assert sorted(path.name for path in files.page.parent.iterdir()) == ["report.html", "report.json", "report.png"]


def test_contrast_of_every_text_colour_is_enough():
    """WCAG 2: 4.5 to 1 against white."""
    from ldm.evaluation.montage import OTHER_COLOURS, ROLE_COLOURS

    def luminance(colour):
        channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (*ROLE_COLOURS.values(), *OTHER_COLOURS, "#5a5c63"):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour


def test_curves_are_read_from_what_a_run_logged(tmp_path):
    rows = [{"step": 0, "train/loss_original_step": 1.0, "lr": 5}, {"step": 1, "train/loss_original_step": None}, {"step": 2, "train/loss_original_step": 0.5}]
    rows.append({"step": 2, "train/loss_original_epoch": 9.0, "train/loss_step": 7.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read_curves(tmp_path) == {"loss": [(0, 1.0), (2, 0.5)]}


def test_a_damaged_log_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": ')
    with pytest.raises(ValueError, match="line 2"):
        read_curves(tmp_path)


def test_smoothing_is_the_mean_of_the_last_values():
    assert smoothed([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], 2) == [(0, 1.0), (1, 2.0), (2, 4.0), (3, 6.0)]
