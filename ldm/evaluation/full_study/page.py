"""The full study on docs/results.md: picture, table and sentences, written from its rows and from nothing else."""
from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ldm.evaluation.bars import widest_gap
from ldm.evaluation.full_study.arms import FROZEN, IDEAS, MIXTURE, UNREGULARIZED, Arm, screen_arms
from ldm.evaluation.full_study.chart import lines_of, write_chart
from ldm.evaluation.full_study.finalists import finals_arms
from ldm.evaluation.full_study.rivals import rivals_over_strengths
from ldm.evaluation.full_study.rows import FullResultsFile
from ldm.evaluation.full_study.sentences import IDEA_NAMES, lazily, sentences
from ldm.evaluation.full_study.statistics import (
    KEEPS_IDENTITY,
    Estimate,
    Row,
    Standing,
    beside,
    by_arm,
    drift_decades,
    hypervolume,
    over_characters,
    standings,
)  # fmt: skip
from ldm.evaluation.results_page import put_between

BEGIN, END = "<!-- written by scripts/full_results_page.py: begin -->", "<!-- written by scripts/full_results_page.py: end -->"

ATTRIBUTES = "Attributes: the widest difference of any attribute's frequency in “a character” from the frozen model's, all samples together."

NATS = (
    "Drift in nats by prompt: the KL divergence of the two models' whole sampling chains, all steps of ancestral sampling without guidance, down to the state "
    "at t = 0; guided or shorter sampling is another chain. Of the character and seed with the largest bound: estimate ± standard error over trajectories, and "
    "the bound that it keeps with 95 % confidence."
)


def write_full_page(rows: Path, page: Path, chart: Path) -> None:
    """Replaces what stands between the markers of `page`, and the picture.

    Raises FileNotFoundError without rows, ValueError for a page without markers, and where no row of a tuned arm is there yet.
    """
    if not rows.is_file():
        raise FileNotFoundError(f"no rows in {rows} (looked from {Path.cwd()}); scripts/study_full.py measures them")
    results = FullResultsFile(rows)
    results.read()
    screen, finals = results.of_stage("screen"), results.of_stage("finals")
    if not screen:
        raise ValueError(f"{rows} has no row of the screen yet; scripts/study_full.py measures them")
    in_screen, in_finals = standings(screen), standings(finals) if finals else {}
    planned = screen_arms(results.plan["weights"]) if "weights" in results.plan else []
    text = written(screen, finals, results.summary(), os.path.relpath(chart, page.parent or Path()), planned)
    put_between(page, BEGIN, END, text)
    chart.parent.mkdir(parents=True, exist_ok=True)
    write_chart(chart, list(in_screen.values()), list(in_finals.values()))


def written(
    screen: Sequence[Row], finals: Sequence[Row], summary: Mapping[str, Mapping[str, Mapping[str, str]]], chart: str, planned: Collection[Arm] = ()
) -> str:
    """The section in Markdown. chart: the picture's path as seen from the page; planned: the arms that the screen is to have."""
    in_screen = standings(screen)
    parts = [
        "## The full study",
        f"Identity is the trait rate in “\\*”; an arm keeps it where its mean is at least {KEEPS_IDENTITY:g} of the unregularised run's. "
        "Off-pattern prompts are none that a regulariser is given (`assets/characters/prompts/off_pattern.txt`), but for the bare class word, which "
        "`shipped` is given too; "
        "“times less” is the unregularised run's drift over an arm's, the geometric mean over characters. ± and … are 95 % intervals over characters "
        "(Student's t; seeds of one character are averaged first); with fewer than 4 characters there are none. Step time and memory at its peak are "
        "over the unregularised run's, of two-phase arms those of the second; `shipped` takes the term's probes along in the batch's pass "
        "(`share_forward`); in the other arms of ours they have one of their own, which takes longer.",
        f"![Identity against off-pattern drift]({chart})",
    ]
    if finals:
        parts += [f"### Finals: {_of(finals)}", _how(finals, summary), _so_far(finals, finals_arms(screen)), table(finals), ATTRIBUTES]
        parts += ["### In plain words", "\n".join(sentences(finals, in_screen))]
        parts += [NATS, nats_table(finals)]
    else:
        parts.append("The finals are not there yet.")
    parts += [f"### Screen: {_of(screen)}", _how(screen, summary), _so_far(screen, planned), screen_table(in_screen)]
    if lazy := lazily(screen):
        parts += ["Computed in every k-th step, k-fold there (lazy regularisation; under Adam not the same as in every step):", "\n".join(lazy)]
    if rivals := rivals_over_strengths(screen):
        parts += ["### The rivals over their strengths", rivals]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Row]) -> str:
    """An arm a line, means over characters with their intervals."""
    arms, found = by_arm(rows), standings(rows)
    lines = [
        "| arm | teacher | identity | leak in-pattern | leak off-pattern | drift in-pattern, times less | drift off-pattern, times less | denoising loss "
        "| red hat | forest | attributes | step time | memory |",
        "| --- |" + " --- |" * 12,
    ]
    for arm, mine in arms.items():
        first = mine[0]
        means = {key: over_characters(mine, key) for key in ("trait_rate_concept", "leak_in_pattern", "leak_off_pattern", "edit_hat", "edit_background")}
        drifts = ["–", "–"]
        if arm in found:
            drifts = [times(drift_decades(mine, arms[UNREGULARIZED], key)) for key in ("drift_in_pattern", "drift_off_pattern")]
        values = [f"{means[key]:.3f}" for key in ("trait_rate_concept", "leak_in_pattern", "leak_off_pattern")] + drifts
        values += [f"{over_characters(mine, 'denoising_loss'):.4f}", f"{means['edit_hat']:.2f}", f"{means['edit_background']:.2f}"]
        untuned = beside(arms.get(FROZEN, ()), mine)
        values.append(f"{widest_gap(mine, untuned):.3f}" if arm in found and untuned else "–")
        costs = ["–" if first[key] is None else f"× {first[key]:.2f}" for key in ("step_ratio", "memory_ratio")]
        lines.append(f"| {arm.name} | {arm.teacher or '–'} | {' | '.join([*values, *costs])} |")
    return "\n".join(lines)


def screen_table(found: Mapping[Arm, Standing]) -> str:
    """A line of arms a row: its hypervolume, and of each strength identity and drift."""
    lines = lines_of(found.values())
    ranked = sorted(lines.items(), key=lambda item: -hypervolume(one.point for one in item[1]))
    said = ["| method | hypervolume | strength: identity, off-pattern drift times less |", "| --- | --- | --- |"]
    for name, line in ranked:
        each = "; ".join(f"{one.arm.strength:g}: {one.identity.mean:.2f}, {10**one.decades.mean:.3g}" for one in line)
        said.append(f"| {name} | {hypervolume(one.point for one in line):.3f} | {each} |")
    return "\n".join(said)


def nats_table(rows: Sequence[Row]) -> str:
    """An arm a line: for each prompt the estimate and bound of the character and seed with the largest bound."""
    arms = {arm: mine for arm, mine in by_arm(rows).items() if arm != FROZEN}
    prompts = list(next(iter(arms.values()))[0]["nats"] or {})
    lines = [f"| arm | {' | '.join(f'“{prompt}”' for prompt in prompts)} |", "| --- |" + " --- |" * len(prompts)]
    for arm, mine in arms.items():
        largest = [max((row["nats"][prompt] for row in mine), key=lambda nats: nats["upper_bound"]) for prompt in prompts]
        said = (f"{one['mean']:.3g} ± {one['standard_error']:.2g}, ≤ {one['upper_bound']:.3g}" for one in largest)
        lines.append(f"| {arm.name} | {' | '.join(said)} |")
    return "\n".join(lines) if prompts else ""


def times(decades: Estimate) -> str:
    """A factor with its interval."""
    if decades.margin is None:
        return f"{10**decades.mean:.3g}"
    return f"{10**decades.mean:.3g} ({10 ** (decades.mean - decades.margin):.3g} … {10 ** (decades.mean + decades.margin):.3g})"


def _of(rows: Sequence[Row]) -> str:
    concepts, seeds = {row["concept"] for row in rows}, {row["seed"] for row in rows}
    return f"{len(concepts)} character{'s' * (len(concepts) > 1)} × {len(seeds)} seed{'s' * (len(seeds) > 1)}"


def _so_far(rows: Sequence[Row], planned: Collection[Arm]) -> str:
    """How much of a stage there is, while it is not all there."""
    pairs = {(row["concept"], row["seed"]) for row in rows}
    done = [arm for arm, mine in by_arm(rows).items() if arm in planned and {(row["concept"], row["seed"]) for row in mine} == pairs]
    if len(done) >= len(planned):
        return ""
    return (f"Not complete: of the {len(planned)} arms {len(done)} are measured for each of these characters and seeds; "
            "an arm is compared with the others' rows of the characters and seeds that it has.")  # fmt: skip


def _how(rows: Sequence[Row], summary: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    split = rows[0]["split"]
    settings = summary.get(split, {}).get("settings", {})
    said = "; ".join(settings[key] for key in ("sampling", "counts") if key in settings)
    names = ", ".join(dict.fromkeys(row["concept"] for row in rows))
    ideas = "; ".join(f"`{name}`: {IDEA_NAMES[name]}" for name in (*IDEAS, MIXTURE))
    return f"Split `{split}`: {names}. {said}." + (f" Of ours, {ideas}." if rows[0]["stage"] == "finals" else "")
