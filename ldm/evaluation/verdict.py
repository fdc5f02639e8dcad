"""What the numbers of a comparison mean, in words. Every sentence states measured values, favourable or not."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ldm.evaluation.comparison import CLASS_PROMPT, CONCEPT_PROMPT, Result

ROLE_NAMES = {"frozen": "Frozen", "unregularized": "Unregularised", "regularized": "Regularised"}


@dataclass(frozen=True)
class Measure:
    """One line of the table of numbers."""

    key: str
    name: str
    good: Literal["lower", "higher"]
    meaning: str
    is_rate: bool = True

    def text(self, value: float | None) -> str:
        """The value as it stands on the page."""
        if value is None:
            return "–"
        return percent(value) if self.is_rate else plain_number(value)


MEASURES = (
    Measure(
        "trait_rate_class", f"Traits in “{CLASS_PROMPT}”", "lower",
        "How often an ordinary character gets the new character's eyes or colour (mean of the two). This is the leak.",
    ),
    Measure(
        "trait_rate_concept", f"Traits in “{CONCEPT_PROMPT}”", "higher",
        "How often the new word really shows the new character's eyes and colour (mean of the two).",
    ),
    Measure(
        "drift_class", "Drift on class prompts", "lower",
        "How far the network's predictions moved from the frozen model's, for other members of the class.", False,
    ),
    Measure("drift_heldout", "Drift on held-out prompts", "lower", "The same for prompts about other things.", False),
    Measure("denoising_loss", "Denoising loss", "lower", "How well the network predicts the noise in pictures of the concept.", False),
    Measure("edit_hat", "“* wearing a red hat”", "higher", "How often the new character wears a hat, and a red one."),
    Measure("edit_background", "“* in a forest”", "higher", "How often the new character stands in a forest."),
)  # fmt: skip


def plain_number(value: float) -> str:
    """Three significant digits, without an exponent: 0.0000349."""
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def percent(rate: float) -> str:
    """A rate in words of the page: "84 %", and "<1 %" rather than a rounded nought."""
    return "<1 %" if 0 < rate < 0.005 else f"{100 * rate:.0f} %"


def factor(plain: float, held: float) -> str:
    """How the second compares with the first: "26 times less", "as much", "1.4 times more"."""
    if plain == held:
        return "as much"
    if held == 0 or plain == 0:
        return "not at all" if held == 0 else "more (from nothing)"
    ratio = plain / held if plain > held else held / plain
    return f"{ratio:.0f} times {'less' if plain > held else 'more'}" if ratio >= 9.5 else f"{ratio:.1f} times {'less' if plain > held else 'more'}"


def by_role(results: Sequence[Result], role: str) -> Result | None:
    """The first result of a role."""
    return next((result for result in results if result.role == role), None)


def verdict(results: Sequence[Result], *, fresh_pictures: bool) -> list[str]:
    """A headline and the sentences that belong to it."""
    plain, held = by_role(results, "unregularized"), by_role(results, "regularized")
    if plain is None or held is None:
        return _verdict_of_runs(results)
    p, h = plain.numbers, held.numbers
    sentences = []
    if "trait_rate_class" in p:
        sentences.append(
            f"“{CLASS_PROMPT}” shows the new character's traits (eyes, colour) in {percent(p['trait_rate_class'])} of samples without the regulariser, "
            f"{percent(h['trait_rate_class'])} with it."
        )
        sentences.append(
            f"The new word itself shows them in {percent(p['trait_rate_concept'])} of samples without, {percent(h['trait_rate_concept'])} with it; "
            f"a red hat is put on in {percent(p['edit_hat'])} and {percent(h['edit_hat'])}, a forest drawn in {percent(p['edit_background'])} and "
            f"{percent(h['edit_background'])}."
        )
    moved = []
    if "drift_class" in p:
        moved.append(f"{factor(p['drift_class'], h['drift_class'])} on prompts of the class")
    if "drift_heldout" in p:
        moved.append(f"{factor(p['drift_heldout'], h['drift_heldout'])} on prompts that no regulariser sees")
    if moved:
        sentences.append(f"The regularised network moved {' and '.join(moved)}.")
    if "denoising_loss" in p:
        pictures = "fresh pictures" if fresh_pictures else "the training pictures"
        change = h["denoising_loss"] / p["denoising_loss"] - 1
        compared = "equal" if round(100 * change) == 0 else f"{abs(100 * change):.0f} % {'lower' if change < 0 else 'higher'} with the regulariser"
        sentences.append(f"The loss on {pictures} of the concept is {compared}.")
    return sentences or ["These models were compared by their samples alone: no prompts for drift and no pictures of the concept were given."]


def _verdict_of_runs(results: Sequence[Result]) -> list[str]:
    """Where there is no pair of runs with and without the regulariser: what each run moved."""
    sentences = []
    for result in results:
        if result.role == "frozen":
            continue
        parts = [f"drift {plain_number(value)} on {name} prompts" for name, key in (("class", "drift_class"), ("held-out", "drift_heldout"))
                 if (value := result.numbers.get(key)) is not None]  # fmt: skip
        sentences.append(f"{result.name}: {', '.join(parts) if parts else 'no prompts to measure drift on'}.")
    return ["How far each run moved from the frozen model.", *sentences]
