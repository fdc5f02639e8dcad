"""The curves of a comparison as pictures: each run's own loss, and its distance from the frozen model while it trained."""
from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ldm.evaluation.comparison import Result
from ldm.evaluation.curves import smoothed
from ldm.evaluation.montage import colours_of

WIDTH_INCHES, HEIGHT_INCHES, DPI = 5.6, 3.6, 160


def loss_chart(results: Sequence[Result]) -> Image.Image | None:
    """Every run's loss on its training batches, and its running mean; None where no run logged one."""
    curves = [(result, colour, result.curves["loss"]) for result, colour in zip(results, colours_of(results), strict=True) if result.curves.get("loss")]
    if not curves:
        return None
    figure, axes = _axes("Loss on the concept's pictures")
    for result, colour, curve in curves:
        window = max(1, len(curve) // 12)
        axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.22, linewidth=0.8)
        axes.plot(*zip(*smoothed(curve, window), strict=True), color=colour, linewidth=2.0, label=result.name)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _picture(figure)


def drift_chart(results: Sequence[Result]) -> Image.Image | None:
    """R of the runs that logged it, over the steps; at the end, as a dot, each run's drift on class prompts as measured afterwards.

    None where there is neither.
    """
    figure, axes = _axes("Distance from the frozen model")
    lasts = [result.curves["loss"][-1][0] for result in results if result.curves.get("loss")]
    last = max(lasts, default=0)
    drawn = False
    for result, colour in zip(results, colours_of(results), strict=True):
        curve = [(step, value) for step, value in result.curves.get("locality", []) if value > 0]
        if curve:
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(*zip(*smoothed(curve, max(1, len(curve) // 12)), strict=True), color=colour, linewidth=2.0, label=f"{result.name}: R while training")
        after = result.numbers.get("drift_class", 0.0)
        if after > 0:
            axes.plot([last], [after], "o", color=colour, markersize=8, clip_on=False, label=f"{result.name}: drift afterwards")
        drawn = drawn or bool(curve) or after > 0
    if not drawn:
        return None
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return _picture(figure)


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color="#1c1c1e")
    axes.set_xlabel("step", color="#60626a")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#60626a")
    return figure, axes


def _picture(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
