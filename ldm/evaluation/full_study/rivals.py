"""What the rivals do over their strengths in the screen: whether each does here what its paper says of it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ldm.evaluation.full_study.arms import UNREGULARIZED, Arm
from ldm.evaluation.full_study.statistics import Row, by_arm, drift_decades, over_characters


class Effect(NamedTuple):
    """What a paper says happens as the strength rises."""

    said: str
    less_drift: bool


EFFECTS = {
    "prior_preservation": Effect("the class's own pictures keep the class as it was (DreamBooth, arXiv 2208.12242)", True),
    "base_weights": Effect("weights held near the base's forget less and learn less (Preserve & Personalize)", True),
    "output_preservation": Effect("the class caption keeps its outputs on the training pictures (differential output preservation)", True),
    "kv_only": Effect("keys and values alone carry the concept, and what else moves with them is little (Custom Diffusion, arXiv 2212.04488)", False),
    "early_stopping": Effect("every further step learns and forgets", False),
    "interpolation": Effect("the way from the base to the tuned weights trades one for the other (WiSE-FT, arXiv 2109.01903)", False),
}


def rivals_over_strengths(rows: Sequence[Row]) -> str:
    """In Markdown, for each rival of which at least two strengths are there, whether drift goes as its paper says, and a table of its course."""
    of_arm = by_arm(rows)
    lines = {method: sorted((arm for arm in of_arm if arm.method == method), key=lambda arm: arm.strength) for method in EFFECTS}
    lines = {method: line for method, line in lines.items() if len(line) > 1}
    said = [f"- `{method}`: {EFFECTS[method].said}. {_verdict(of_arm, line, EFFECTS[method])} {_most_identity(of_arm, line)}" for method, line in lines.items()]
    table = ["| rival | strength | identity | leak off-pattern | drift in-pattern, times less | drift off-pattern, times less |", "| --- |" + " --- |" * 5]
    table += [_at(of_arm, arm) for line in lines.values() for arm in line]
    return "\n".join([*said, "", *table]) if lines else ""


def _verdict(of_arm: dict[Arm, list[Row]], line: Sequence[Arm], effect: Effect) -> str:
    less = [drift_decades(of_arm[arm], of_arm[UNREGULARIZED], "drift_in_pattern").mean for arm in line]
    steps = [(after - before) * (1 if effect.less_drift else -1) for before, after in zip(less, less[1:], strict=False)]
    how = "falls" if effect.less_drift else "rises"
    if min(steps) > 0:
        return f"Here drift on the class's prompts {how} at every step of the strength."
    if sum(steps) > 0:
        return f"Here drift on the class's prompts {how} from end to end, but not at every step."
    return f"Not so here: drift on the class's prompts does not {how[:-1]} with the strength."


def _most_identity(of_arm: dict[Arm, list[Row]], line: Sequence[Arm]) -> str:
    identity = {arm: over_characters(of_arm[arm], "trait_rate_concept").mean for arm in line}
    arm = max(line, key=identity.__getitem__)
    less = 10 ** drift_decades(of_arm[arm], of_arm[UNREGULARIZED]).mean
    drift = f"{less:.3g} times less" if less >= 1 else f"{1 / less:.3g} times more"
    return f"Its most identity, {identity[arm]:.2f}, is at strength {arm.strength:g}, with {drift} off-pattern drift than the unregularised run's."


def _at(of_arm: dict[Arm, list[Row]], arm: Arm) -> str:
    rows, plain = of_arm[arm], of_arm[UNREGULARIZED]
    inside, outside = (10 ** drift_decades(rows, plain, key).mean for key in ("drift_in_pattern", "drift_off_pattern"))
    identity, leak = (over_characters(rows, key).mean for key in ("trait_rate_concept", "leak_off_pattern"))
    return f"| {arm.method} | {arm.strength:g} | {identity:.2f} | {leak:.2f} | {inside:.3g} | {outside:.3g} |"
