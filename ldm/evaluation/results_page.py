"""The table of docs/results.md, written from the rows of the study and from nothing else."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoints import atomic_write
from ldm.evaluation.results_file import ResultsFile

BEGIN, END = "<!-- written by scripts/results_page.py: begin -->", "<!-- written by scripts/results_page.py: end -->"
MEASURES = (
    ("trait_rate_class", "trait rate, “a character”"), ("trait_rate_concept", "trait rate, “*”"), ("drift_class", "drift, class prompts"),
    ("drift_heldout", "drift, held-out prompts"), ("denoising_loss", "denoising loss"), ("edit_hat", "red hat"), ("edit_background", "forest"),
)  # fmt: skip


def write_results_page(rows: Path, page: Path) -> None:
    """Replaces what stands between the markers of `page`, or begins the page.

    Raises FileNotFoundError without rows, ValueError for a page without markers.
    """
    if not rows.is_file():
        raise FileNotFoundError(f"no rows in {rows} (looked from {Path.cwd()}); scripts/study_characters.py measures them")
    results = ResultsFile(rows)
    results.read()
    put_between(page, BEGIN, END, tables(results.summary()))


def put_between(page: Path, begin: str, end: str, written: str) -> None:
    """Replaces what stands between two lines of a page, or begins the page. Raises ValueError for a page without them."""
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# Results\n\n{begin}\n{end}\n"
    if begin not in text or end not in text.split(begin, 1)[1]:
        raise ValueError(f"{page} has no lines {begin!r} and {end!r}, so what is written has no place. Put them in, or name another page with --page.")
    before, rest = text.split(begin, 1)
    with atomic_write(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{written}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def tables(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: for each split the bars, then the means by model."""
    return "\n\n".join(_split(split, about) for split, about in summary.items())


def _split(split: str, about: Mapping[str, Any]) -> str:
    settings = about["settings"]
    lines = [
        f"## Split `{split}`: {len(about['concepts'])} characters × {len(about['seeds'])} seeds",
        "",
        f"Characters: {', '.join(about['concepts'])}. Seeds: {', '.join(map(str, about['seeds']))}. {_sentence(settings)}".rstrip(),
        "",
        "| bar | measured | wanted | overall | range over characters × seeds | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for bar in about["bars"]:
        met = "met in each" if bar["met"] and bar["met_everywhere"] else "met" if bar["met"] else "**missed**"
        lines.append(f"| {bar['bar']} | {bar['measured']} | {bar['limit']} | {bar['overall']:.3g} | {bar['lowest']:.3g} … {bar['highest']:.3g} | {met} |")
    lines += ["", "Overall: the mean of rates, the ratio of means, the widest difference of frequencies in all samples together."]
    models = list(about["means"])
    lines += ["", f"| mean of | {' | '.join(models)} |", f"| --- |{' --- |' * len(models)}"]
    for name, words in MEASURES:
        values = " | ".join(f"{about['means'][model][name]:.3g}" for model in models)
        lines.append(f"| {words} | {values} |")
    return "\n".join(lines)


def _sentence(settings: Mapping[str, str]) -> str:
    said = [settings[name] for name in ("sampling", "counts") if name in settings]
    return "; ".join(said) + "." if said else ""
