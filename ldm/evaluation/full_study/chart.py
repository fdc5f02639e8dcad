"""The full study as a picture: identity against off-pattern drift, a line a method."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldm.checkpoints import atomic_write
from ldm.evaluation.full_study.arms import UNREGULARIZED
from ldm.evaluation.full_study.statistics import REFERENCE, Standing, hypervolume

MARKERS = "XPDosv^<>ph*d8H"  # an arm of the finals each


def lines_of(found: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Arms of one line (they differ in strength alone), from the weakest to the strongest; the unregularised ones are on none."""
    lines: dict[str, list[Standing]] = defaultdict(list)
    for one in found:
        if one.arm.method != UNREGULARIZED.method:
            lines[one.arm.line].append(one)
    return {name: sorted(line, key=lambda one: one.arm.strength) for name, line in lines.items()}


def shown_lines(found: Iterable[Standing]) -> dict[str, list[Standing]]:
    """A line a method, at once and in two phases: of each of our conditionings that with the largest hypervolume, and each rival's."""
    best: dict[str, tuple[float, str, list[Standing]]] = {}
    for name, line in lines_of(found).items():
        volume, method = hypervolume(one.point for one in line), _method(line[0])
        if method not in best or volume > best[method][0]:
            best[method] = (volume, name, line)
    return {name: line for _, name, line in best.values()}


def write_chart(path: Path, screen: Sequence[Standing], finals: Sequence[Standing]) -> None:
    """Writes a PNG: on the left the lines of the screen, on the right, once there are any, the finals' arms with their intervals, to one scale of drift."""
    figure = Figure(figsize=(13.5, 7.0), dpi=130, layout="constrained")
    lines = shown_lines(screen)
    colours = dict(zip((_method(line[0]) for line in lines.values()), cycle((*colormaps["tab20"].colors, *colormaps["tab20b"].colors))))
    left, *right = figure.subplots(1, 2 if finals else 1, sharey=True, squeeze=False)[0]
    for name, line in lines.items():
        style = "-o" if line[0].arm.ours else "--s"
        drift = [10**-one.decades.mean for one in line]
        left.plot([one.identity.mean for one in line], drift, style, color=colours[_method(line[0])], linewidth=1.3, markersize=4, label=name)
    for one, marker in zip(finals, cycle(MARKERS)):
        _mark(right[0], one, marker, colours.get(_method(one), "#1c1c1e"))
    titles = {left: "Screen: a line a method, over its strengths"} | dict.fromkeys(right, "Finals, with 95 % intervals over characters")
    for axes, title in titles.items():
        axes.set_title(title, loc="left", fontsize=11)
        axes.axvline(REFERENCE[0], color="#b9bac0", linewidth=0.8)
        axes.axhline(1.0, color="#b9bac0", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_xlabel("identity: trait rate in “*”")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e0", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    left.set_ylabel("off-pattern drift over the unregularised run's")
    figure.suptitle("Identity kept and drift avoided: better is right and down", x=0.01, ha="left", fontsize=13)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _mark(axes: Axes, one: Standing, marker: str, colour: str | tuple[float, ...]) -> None:
    """An arm of the finals. An interval of a rate ends at 0 and 1."""
    x, middle, margin = one.identity.mean, one.decades.mean, one.decades.margin or 0.0
    y, reach = 10**-middle, one.identity.margin or 0.0
    across = [[min(reach, x)], [min(reach, 1 - x)]]
    along = [[y - 10 ** -(middle + margin)], [10 ** -(middle - margin) - y]]
    axes.errorbar(
        [x], [y], xerr=across, yerr=along, fmt=marker, color=colour, markersize=9, markeredgecolor="#1c1c1e", capsize=3, linewidth=1.0, label=one.arm.name
    )  # fmt: skip


def _method(one: Standing) -> str:
    return f"{one.arm.conditioning if one.arm.ours else one.arm.method}, {one.arm.phases} phases"
