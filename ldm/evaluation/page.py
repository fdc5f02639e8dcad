"""The page of a comparison: one HTML file that needs nothing else, on a phone as on a desk.

Everything a user named (prompts, runs, folders) is escaped here; pictures are embedded as PNG, each with a text in its place.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from ldm.evaluation.charts import drift_chart, loss_chart
from ldm.evaluation.comparison import CharacterTest, Result
from ldm.evaluation.montage import colours_of, data_uri, tiles, to_image
from ldm.evaluation.page_style import STYLE
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.reading import reading_note
from ldm.evaluation.verdict import MEASURES, Measure, by_role

KIND_HEADINGS = {
    "concept": ("The new word", "What was taught."),
    "class": ("Its class, without the new word", "Nothing of the new one should show here."),
    "edit": ("The new word with something else", "Can the rest of the model still be asked for?"),
    "unlike": ("Other things", "Nothing should have changed here."),
}
TILE_SIDE = 128


@dataclass(frozen=True)
class Page:
    """What the page shows. settings: name → value, as text."""

    results: Sequence[Result]
    prompts: Sequence[Prompt]
    verdict: Sequence[str]
    concept: Sequence[Image.Image]
    settings: Mapping[str, str]
    test: CharacterTest | None = None
    title: str = "One concept, with and without the regulariser"


def html(page: Page) -> str:
    """The whole file."""
    headline, *rest = page.verdict
    sections = [_concept(page), _grid(page), _numbers(page), _curves(page), _settings(page)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kicker">{escape(page.title)}</p>
<h1>{escape(headline)}</h1>
{"".join(f"<p>{escape(sentence)}</p>" for sentence in rest)}
</header>
{_tiles(page)}
{"".join(sections)}
</main>
</body>
</html>
"""


def _tiles(page: Page) -> str:
    """The first numbers, large: without and with the regulariser."""
    plain, held = by_role(page.results, "unregularized"), by_role(page.results, "regularized")
    if plain is None or held is None:
        return ""
    measures = [measure for measure in MEASURES if measure.key in plain.numbers and measure.key in held.numbers][:4]
    return '<section class="tiles" aria-label="The first numbers">' + "".join(_tile(measure, plain, held) for measure in measures) + "</section>"


def _tile(measure: Measure, plain: Result, held: Result) -> str:
    without, using = plain.numbers[measure.key], held.numbers[measure.key]
    scale = 1.0 if measure.is_rate else max(without, using) or 1.0
    bars = "".join(
        f'<div class="bar"><span>{name}</span><span class="track"><span class="fill {role}" style="width:{100 * value / scale:.1f}%"></span></span>'
        f'<span class="bar-value">{measure.text(value)}</span></div>'
        for name, role, value in (("without", "plain", without), ("with", "held", using))
    )
    return f'<div class="tile"><h2>{escape(measure.name)}</h2><div class="bars">{bars}</div><p class="hint">{measure.good} is better</p></div>'


def _concept(page: Page) -> str:
    if not page.concept:
        return ""
    count = len(page.concept)
    words = "The picture" if count == 1 else f"The {count} pictures"
    pictures = "".join(
        _img(tiles([picture], columns=1, side=TILE_SIDE), f"Picture {k} of {count} of the concept") for k, picture in enumerate(page.concept, start=1)
    )
    return f'<section><h2>The concept</h2><p>{words} that each run was tuned on.</p><div class="strip">{pictures}</div></section>'


def _grid(page: Page) -> str:
    explained = "Within a row, pictures at the same place start from the same noise, so what differs is the model."
    parts = [f"<section><h2>The same prompts and seeds</h2><p>{explained}</p>"]
    for kind, (heading, question) in KIND_HEADINGS.items():
        prompts = [prompt for prompt in page.prompts if prompt.kind == kind]
        if prompts:
            parts.append(f'<h3>{heading}</h3><p class="quiet">{question}</p>')
            parts.append(f'<div class="scroll" tabindex="0" role="group" aria-label="{heading}: samples">')
            parts += [_row(page, prompt) for prompt in prompts]
            parts.append("</div>")
    return "".join(parts) + "</section>"


def _row(page: Page, prompt: Prompt) -> str:
    cells = []
    for result, colour in zip(page.results, colours_of(page.results), strict=True):
        pictures = [to_image(picture) for picture in result.samples[prompt.text]]
        note = reading_note(result, prompt, page.test)
        alt = f"{len(pictures)} samples of “{prompt.text}” by {result.name}" + (f": {note}" if note else "")
        sheet = tiles(pictures, columns=min(2, len(pictures)), side=TILE_SIDE, gap=4)
        cells.append(
            f'<figure><figcaption style="color:{colour}">{escape(result.name)}</figcaption>'
            f"{_img(sheet, alt)}"
            f'<p class="note">{escape(note) or "&nbsp;"}</p></figure>'
        )
    return f'<div class="row" style="--models:{len(page.results)}"><h4>{escape(prompt.text) or "(the empty prompt)"}</h4>{"".join(cells)}</div>'


def _numbers(page: Page) -> str:
    measures = [measure for measure in MEASURES if any(measure.key in result.numbers for result in page.results)]
    if not measures:
        return ""
    columns = list(zip(page.results, colours_of(page.results), strict=True))
    heads = "".join(f'<th role="columnheader" style="color:{colour}">{escape(result.name)}</th>' for result, colour in columns)
    rows = "".join(
        f'<tr role="row"><th role="rowheader">{escape(measure.name)}<span>{escape(measure.meaning)} <b>{measure.good.capitalize()} is better.</b></span></th>'
        + "".join(
            f'<td role="cell"><span class="of" style="color:{colour}">{escape(result.name)}</span>{measure.text(result.numbers.get(measure.key))}</td>'
            for result, colour in columns
        )
        + "</tr>"
        for measure in measures
    )
    # the roles keep it a table for those who listen to it, where a phone lays its rows out as blocks
    return (
        f'<section><h2>The numbers</h2><table role="table" style="--models:{len(page.results)}"><thead role="rowgroup"><tr role="row">'
        f'<th role="columnheader">Measure</th>{heads}</tr></thead><tbody role="rowgroup">{rows}</tbody></table></section>'
    )


def _curves(page: Page) -> str:
    charts = [
        (loss_chart(page.results), "Loss on the concept's pictures over the training steps, one line a run"),
        (drift_chart(page.results), "Distance from the frozen model over the training steps, on a logarithmic scale"),
    ]
    drawn = [_img(chart, alt) for chart, alt in charts if chart is not None]
    if not drawn:
        return ""
    note = (
        "Each run's own loss, batch by batch and as a running mean. And the distance from the frozen model: "
        "the locality term R of a regularised run (line), and the drift on class prompts as measured afterwards (dots)."
    )
    return f'<section><h2>While they trained</h2><p>{note}</p><div class="charts">{"".join(drawn)}</div></section>'


def _settings(page: Page) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.settings.items())
    return f"<section><h2>How this was measured</h2><dl>{rows}</dl></section>"


def _img(image: Image.Image, alt: str) -> str:
    return f'<img src="{data_uri(image)}" width="{image.width}" height="{image.height}" alt="{escape(alt)}">'
