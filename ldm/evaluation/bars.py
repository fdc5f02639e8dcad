"""What the rows of a study say together: each bar with its measured values and whether it was met."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ldm.data.characters import VALUES

Row = Mapping[str, Any]
Pair = tuple[str, int]  # concept, seed


def summary_of(rows: Sequence[Row], settings: Mapping[str, str]) -> dict[str, Any]:
    """Concepts, seeds, means by model, bars and settings of one split's rows."""
    by_model = _by_model(rows)
    numbers = ("trait_rate_class", "trait_rate_concept", "drift_class", "drift_heldout", "denoising_loss", "edit_hat", "edit_background")
    return {
        "concepts": list(dict.fromkeys(row["concept"] for row in rows)),
        "seeds": sorted({row["seed"] for row in rows}),
        "means": {model: {name: fmean(row[name] for row in of_model.values()) for name in numbers} for model, of_model in by_model.items()},
        "bars": bars_of(rows),
        "settings": dict(settings),
    }


def bars_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The bars a to e over all characters and seeds for which all three models were measured; [] without any.

    Each: bar, what was measured, the limit, overall (a mean, a ratio of means, or of all samples together), lowest and highest over characters × seeds,
    met (overall), met_everywhere (by each).
    """
    by_model = _by_model(rows)
    frozen, plain, held = (by_model.get(model, {}) for model in ("frozen", "unregularized", "regularized"))
    pairs = [pair for pair in plain if pair in frozen and pair in held]
    if not pairs:
        return []

    def each(measure: Callable[[Pair], float]) -> list[float]:
        return [measure(pair) for pair in pairs]

    def of(rows_of: Mapping[Pair, Row], number: str) -> list[float]:
        return each(lambda pair: rows_of[pair][number])

    def missing_of(number: str) -> list[float]:
        return each(lambda pair: plain[pair][number] - held[pair][number])

    def gap(pair: Pair) -> float:
        return widest_gap([held[pair]], [frozen[pair]])

    return [
        _bar("a", "unregularised: trait rate in “a character”", "≥", 0.8, of(plain, "trait_rate_class")),
        _bar("a", "frozen: the same", "≤", 0.02, of(frozen, "trait_rate_class")),
        _bar("b", "regularised: trait rate in “a character”", "≤", 0.05, of(held, "trait_rate_class")),
        _bar("b", "regularised: widest difference of an attribute's frequencies from the frozen model's", "≤", 0.1, each(gap),
             pooled=widest_gap([held[pair] for pair in pairs], [frozen[pair] for pair in pairs])),
        _ratio("c", "drift on class prompts, unregularised / regularised", "≥", 10, of(plain, "drift_class"), of(held, "drift_class")),
        _ratio("c", "drift on held-out prompts, unregularised / regularised", "≥", 8, of(plain, "drift_heldout"), of(held, "drift_heldout")),
        _bar("d", "regularised: trait rate in “*”", "≥", 0.9, of(held, "trait_rate_concept")),
        _ratio("d", "denoising loss, regularised / unregularised", "≤", 1.03, of(held, "denoising_loss"), of(plain, "denoising_loss")),
        _bar("e", "regularised: red hat in “* wearing a red hat”", "≥", 0.7, of(held, "edit_hat")),
        _bar("e", "the same, below unregularised by", "≤", 0.03, missing_of("edit_hat")),
        _bar("e", "regularised: forest in “* in a forest”", "≥", 0.7, of(held, "edit_background")),
        _bar("e", "the same, below unregularised by", "≤", 0.03, missing_of("edit_background")),
    ]  # fmt: skip


def _bar(bar: str, measured: str, sense: str, limit: float, values: Sequence[float], *, pooled: float | None = None) -> dict[str, Any]:
    """pooled: the value over all samples, where that is not the mean of the values."""
    overall = fmean(values) if pooled is None else pooled
    worst = min(values) if sense == "≥" else max(values)
    return {
        "bar": bar, "measured": measured, "limit": f"{sense} {limit:g}", "overall": overall, "lowest": min(values), "highest": max(values),
        "met": _meets(overall, sense, limit), "met_everywhere": _meets(worst, sense, limit),
    }  # fmt: skip


def _ratio(bar: str, measured: str, sense: str, limit: float, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """A ratio of means, and the range of the ratios of each character and seed."""
    tiny = 1e-30
    return _bar(bar, measured, sense, limit, [a / max(b, tiny) for a, b in zip(above, below, strict=True)], pooled=fmean(above) / max(fmean(below), tiny))


def _meets(value: float, sense: str, limit: float) -> bool:
    rounding = 1e-9  # 0.73 − 0.70 is 0.03 to a person
    return value >= limit - rounding if sense == "≥" else value <= limit + rounding


def widest_gap(some: Sequence[Row], others: Sequence[Row]) -> float:
    """The largest difference of a value's mean frequency, over all attributes and values."""
    return max(abs(_frequency(some, name, value) - _frequency(others, name, value)) for name, values in VALUES.items() for value in values)


def _frequency(rows: Iterable[Row], attribute: str, value: str) -> float:
    return fmean(row["attribute_frequencies_class"][attribute][value] for row in rows)


def _by_model(rows: Sequence[Row]) -> dict[str, dict[Pair, Row]]:
    result: dict[str, dict[Pair, Row]] = defaultdict(dict)
    for row in rows:
        result[row["model"]][row["concept"], row["seed"]] = row
    return dict(result)
