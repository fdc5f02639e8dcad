"""The full study as a picture: identity against off-pattern drift, a line a method."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from ldm.checkpoints import atomic_write
from ldm.evaluation.full_study.arms import UNREGULARIZED
from ldm.evaluation.full_study.statistics import REFERENCE, Standing, hypervolume


def lines_of(found: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Arms of one line (they differ in strength alone), from the weakest to the strongest; the unregularised ones are on none."""
    lines: dict[str, list[Standing]] = defaultdict(list)
    for one in found:
        if one.arm.method != UNREGULARIZED.method:
            lines[one.arm.line].append(one)
    return {name: sorted(line, key=lambda one: one.arm.strength) for name, line in lines.items()}


def shown_lines(found: Iterable[Standing]) -> dict[str, list[Standing]]:
    """A line a method: of each of our conditionings, at once and in two phases, that with the largest hypervolume, and each rival's."""
    best: dict[str, tuple[float, str, list[Standing]]] = {}
    for name, line in lines_of(found).items():
        volume, method = hypervolume(one.point for one in line), _method(line[0])
        if method not in best or volume > best[method][0]:
            best[method] = (volume, name, line)
    return {name: line for _, name, line in best.values()}


def write_chart(path: Path, screen: Sequence[Standing], finals: Sequence[Standing]) -> None:
    """Writes a PNG: lines of the screen, and the finals as dots with their intervals over characters."""
    figure = Figure(figsize=(10.5, 6.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    lines, palette = shown_lines(screen), colormaps["tab20"]
    colours = {}
    for number, (name, line) in enumerate(lines.items()):
        colours[_method(line[0])] = colour = palette(number % palette.N)
        style = "-o" if line[0].arm.ours else "--s"
        axes.plot([one.identity.mean for one in line], [10 ** -one.decades.mean for one in line], style, color=colour, linewidth=1.3, markersize=4, label=name)
    for one in finals:
        colour = colours.get(_method(one), "#1c1c1e")
        middle, margin = one.decades.mean, one.decades.margin or 0.0
        low, high = 10 ** -(middle + margin), 10 ** -(middle - margin)
        error = [[10**-middle - low], [high - 10**-middle]]
        axes.errorbar(
            [one.identity.mean], [10**-middle], yerr=error, xerr=one.identity.margin, fmt="D" if one.arm.ours else "X", color=colour, markersize=9,
            markeredgecolor="#1c1c1e", capsize=3, linewidth=1.0,
        )  # fmt: skip
        axes.annotate(one.arm.name, (one.identity.mean, 10**-middle), textcoords="offset points", xytext=(7, 5), fontsize=7)
    axes.axvline(REFERENCE[0], color="#b9bac0", linewidth=0.8)
    axes.axhline(1.0, color="#b9bac0", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("identity: trait rate in “*”")
    axes.set_ylabel("off-pattern drift over the unregularised run's")
    axes.set_title("Identity kept and drift avoided: lines, the screen; large marks, the finals. Better is right and down.", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _method(one: Standing) -> str:
    return f"{one.arm.conditioning}, {one.arm.phases} phases" if one.arm.ours else one.arm.method
