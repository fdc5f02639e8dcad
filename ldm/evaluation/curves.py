"""What a run logged while it trained, read from its `metrics.jsonl`."""
from __future__ import annotations

import json
import logging
import math
from pathlib import Path

logger = logging.getLogger(__name__)

Curve = list[tuple[int, float]]  # (optimiser step, value)

# the concept's own loss: logged as loss_original where there is a locality term, else it is the whole loss
LOSS_KEYS = ("train/loss_original", "train/loss")
LOCALITY_KEY = "train/loss_locality"


def read_curves(folder: Path) -> dict[str, Curve]:
    """"loss" and "locality" of a run, those that it logged; {} for a run without the file."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        logger.warning("%s is missing: the page shows no curves of that run", path)
        return {}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is no JSON object; delete that line, or compare without that run") from error
    curves = {"loss": next((curve for key in LOSS_KEYS if (curve := logged(rows, key))), []), "locality": logged(rows, LOCALITY_KEY)}
    return {name: curve for name, curve in curves.items() if curve}


def logged(rows: list[dict], key: str) -> Curve:
    """(step, value) of a key; Lightning writes the value of a step under key_step where it also logs a mean over the epoch."""
    name = next((name for name in (f"{key}_step", key) if any(name in row for row in rows)), None)
    values = [(row["step"], row[name]) for row in rows if name in row and row.get("step") is not None and row[name] is not None] if name else []
    return [(int(step), float(value)) for step, value in values if math.isfinite(value)]


def smoothed(curve: Curve, window: int) -> Curve:
    """Mean over the last `window` values at each step (fewer at the start)."""
    result, total = [], 0.0
    for k, (step, value) in enumerate(curve):
        total += value - (curve[k - window][1] if k >= window else 0.0)
        result.append((step, total / min(k + 1, window)))
    return result
