"""What the finals say in plain words: which idea pays and where, whether it surpasses the mixture, how ours stand beside the rivals."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ldm.evaluation.full_study.arms import IDEAS, MIXTURE, UNREGULARIZED, UNREGULARIZED_TWO_PHASE, Arm
from ldm.evaluation.full_study.chart import lines_of
from ldm.evaluation.full_study.finalists import best_of_ours
from ldm.evaluation.full_study.statistics import (
    KEEPS_IDENTITY,
    REFERENCE,
    Estimate,
    Row,
    Standing,
    by_arm,
    drift_decades,
    hypervolume,
    in_order,
    over_characters,
    standings,
)  # fmt: skip

IDEA_NAMES = {
    "empty": "idea 1, the empty prompt", "class": "idea 2, class prompts", "embedding": "idea 3, half-way in the token embeddings",
    "encoding": "idea 4, half-way after the text encoder", "hypersphere": "idea 5, the hypersphere", MIXTURE: "ideas 1 and 2 in equal parts",
}  # fmt: skip
TO_SURPASS = ("embedding", "encoding", "hypersphere")


@dataclass(frozen=True)
class Finals:
    """Rows and standings of the finals' arms."""

    rows: Mapping[Arm, Sequence[Row]]
    found: Mapping[Arm, Standing]

    def of_conditioning(self, name: str) -> Arm | None:
        return next((arm for arm in self.found if arm.ours and arm.conditioning == name), None)

    def less(self, arm: Arm, key: str = "drift_off_pattern", than: Arm = UNREGULARIZED) -> Estimate:
        """Decades of drift below another arm's, character by character."""
        return drift_decades(self.rows[arm], self.rows[than], key)


def sentences(rows: Sequence[Row], in_screen: Mapping[Arm, Standing]) -> list[str]:
    """List items in Markdown."""
    finals = Finals(by_arm(rows), standings(rows))
    said = [_of_idea(finals, idea, in_screen) for idea in IDEAS]
    said += [_beside_mixture(finals, idea, in_screen) for idea in TO_SURPASS]
    said += [*_at_identity(finals), *_volumes(finals, in_screen), *_edits(finals)]
    return [f"- {sentence}" for sentence in said]


def lazily(rows: Iterable[Row]) -> list[str]:
    """What computing the term in every k-th step saves and costs: a list item in Markdown for each such arm whose twin of every step is there."""
    of_arm = by_arm(rows)
    said = []
    for arm, mine in of_arm.items():
        twin = of_arm.get(replace(arm, every=1))
        if arm.every == 1 or twin is None:
            continue
        more = drift_decades(twin, mine, "drift_off_pattern")
        costs = [f"× {some[0]['step_ratio']:.2f}" if some[0]["step_ratio"] else "an unknown time" for some in (mine, twin)]
        identity = [over_characters(some, "trait_rate_concept") for some in (mine, twin)]
        leaks = [over_characters(some, "leak_off_pattern") for some in (mine, twin)]
        said.append(f"- `{arm.name}`: a step takes {costs[0]} instead of {costs[1]}; off-pattern drift is {factor(more)} that of every step, "
                    f"off-pattern leak {leaks[0]:.3f} instead of {leaks[1]:.3f}, identity {identity[0]:.3f} instead of {identity[1]:.3f}.")  # fmt: skip
    return said


def above_zero(decades: Estimate) -> bool | None:
    """Whether the whole interval is; None where there is no interval, or where it is on both sides."""
    if decades.margin is None or abs(decades.mean) <= decades.margin:
        return None
    return decades.mean > 0


def factor(decades: Estimate) -> str:
    """As "3.1 times (2.2 to 4.4)"."""
    if decades.margin is None:
        return f"{10**decades.mean:.3g} times"
    return f"{10**decades.mean:.3g} times ({10 ** (decades.mean - decades.margin):.3g} to {10 ** (decades.mean + decades.margin):.3g})"


def _of_idea(finals: Finals, idea: str, in_screen: Mapping[Arm, Standing]) -> str:
    arm, name = finals.of_conditioning(idea), IDEA_NAMES[idea]
    if arm is None:
        return f"{_capital(name)}: not in the finals."
    standing = finals.found[arm]
    inside, outside = finals.less(arm, "drift_in_pattern"), finals.less(arm)
    where = [place for place, decades in (("in-pattern", inside), ("off-pattern", outside)) if above_zero(decades)]
    numbers = f"drift is {factor(inside)} less in-pattern and {factor(outside)} less off-pattern, identity {standing.identity:.3f}"
    if outside.margin is None:
        verdict = "too few characters to say whether it pays"
    elif not where:
        verdict = "does not pay: its drift is not less than the unregularised run's"
    elif not standing.keeps_identity:
        verdict = f"does not pay at this weight: it costs identity, less than {KEEPS_IDENTITY:g} of the unregularised run's is left"
    else:
        verdict = f"pays {' and '.join(where)}" + ("" if len(where) == 2 else ", and not " + ("off-pattern" if where == ["in-pattern"] else "in-pattern"))
    others = "" if standing.keeps_identity else _others_of(arm, in_screen)
    return f"{_capital(name)} (`{arm.name}`) {verdict}; {numbers}.{_beside_its_twin(finals, arm)}{others}"


def _beside_its_twin(finals: Finals, arm: Arm) -> str:
    """Of an arm of two phases: beside the unregularised run of two phases, for those alone lower the drift."""
    if arm.phases == 1 or UNREGULARIZED_TWO_PHASE not in finals.rows:
        return ""
    return f" Beside the unregularised run of two phases: {factor(finals.less(arm, than=UNREGULARIZED_TWO_PHASE))} less off-pattern."


def _others_of(arm: Arm, in_screen: Mapping[Arm, Standing]) -> str:
    """Which of the conditioning's other arms kept the identity in the screen."""
    alike = [one for one in in_order(in_screen.values()) if one.arm.ours and one.arm.conditioning == arm.conditioning]
    others = [one for one in alike if one.keeps_identity and one.arm != arm]
    if not others:
        return ""
    each = (f"`{one.arm.name}` {10**one.decades.mean:.3g} times less at identity {one.identity.mean:.2f}" for one in others[:2])
    return f" Other arms of it that keep the identity in the screen: {', '.join(each)}."


def _beside_mixture(finals: Finals, idea: str, in_screen: Mapping[Arm, Standing]) -> str:
    arm, mixture = finals.of_conditioning(idea), finals.of_conditioning(MIXTURE)
    if arm is None or mixture is None:
        return f"{_capital(IDEA_NAMES[idea])} and “empty + class” were not both in the finals: off-pattern they are not compared."
    less = finals.less(arm, than=mixture)
    better = above_zero(less)
    if better is None and less.margin is not None:
        said = f"does not beat “empty + class” off-pattern: no difference beyond chance, its drift is {factor(less)} less"
    elif better is None:
        said = f"has {factor(less)} less off-pattern drift than “empty + class”, with too few characters for an interval"
    elif better:
        said = f"beats “empty + class” off-pattern: its drift is {factor(less)} less"
    else:
        said = f"does not beat “empty + class” off-pattern: its drift is {factor(Estimate(-less.mean, less.margin))} more"
    kept = [] if finals.found[arm].keeps_identity else ["its identity falls short"]
    kept += [] if finals.found[mixture].keeps_identity else ["the mixture's identity falls short"]
    alike = "" if arm.phases == mixture.phases else _in_as_many_phases(in_screen, idea, arm.phases)
    return f"{_capital(IDEA_NAMES[idea])}, {said}{' (' + ', '.join(kept) + ')' if kept else ''}.{alike}"


def _in_as_many_phases(in_screen: Mapping[Arm, Standing], idea: str, phases: int) -> str:
    """The best of an idea and of the mixture in the screen, both in one phase or both in two: for where the finals compare one with two."""
    firsts = {arm.conditioning: in_screen[arm] for arm in best_of_ours(one for one in in_screen.values() if one.arm.phases == phases)}
    if not {idea, MIXTURE} <= firsts.keys():
        return ""
    best = firsts[idea], firsts[MIXTURE]
    numbers = [f"`{one.arm.name}` {10**one.decades.mean:.3g} times less than unregularised at identity {one.identity.mean:.2f}" for one in best]
    way = "learns word and network at once" if phases == 1 else "has two phases"
    return f" The former {way}, and the mixture does not; of arms in the screen that do alike, {numbers[0]}, {numbers[1]}."


def _at_identity(finals: Finals) -> list[str]:
    """Ours and the best rival at ≥ 0.95 of the unregularised identity, or else the rival that drifts least whatever it costs."""
    of_ours, of_rivals = ([one for one in finals.found.values() if one.arm.ours is mine and one.arm.method != UNREGULARIZED.method] for mine in (True, False))
    ours, rival = _best(of_ours), _best(of_rivals)
    said = []
    for whose, best in (("of ours", ours), ("of the rivals", rival)):
        if best is None:
            said.append(f"At ≥ {KEEPS_IDENTITY:g} of the unregularised run's identity there is none {whose}.")
        else:
            said.append(f"At ≥ {KEEPS_IDENTITY:g} of the unregularised run's identity the least off-pattern drift {whose} has `{best.arm.name}`: "
                        f"{factor(finals.less(best.arm))} less than unregularised.{_beside_its_twin(finals, best.arm)}")  # fmt: skip
    if rival is None and of_rivals:
        rival = max(of_rivals, key=lambda one: one.decades.mean)
        said.append(f"Whatever the identity, the least off-pattern drift of the rivals has `{rival.arm.name}`: {factor(finals.less(rival.arm))} less than "
                    f"unregularised, at identity {rival.identity:.3f}.")  # fmt: skip
    if ours and rival:
        less = finals.less(ours.arm, than=rival.arm)
        certain = {True: "ours is ahead", False: "the rival is ahead", None: "neither is ahead beyond chance" if less.margin is not None else "no interval"}
        said.append(f"Between these two: ours has {factor(less)} less off-pattern drift; {certain[above_zero(less)]}.")
    return said


def _edits(finals: Finals) -> list[str]:
    """How well the new word is edited when word and network are learnt at once, and in two phases: among ours, and unregularised."""
    said = []
    for phases, way in ((1, "learnt at once"), (2, "learnt in two phases")):
        arms = [arm for arm in finals.found if arm.phases == phases]
        plain = [arm for arm in arms if arm.method == UNREGULARIZED.method]
        ours = [arm for arm in arms if arm.ours]
        if plain and ours:
            hats = {arm: over_characters(finals.rows[arm], "edit_hat").mean for arm in plain + ours}
            held = sorted(hats[arm] for arm in ours)
            said.append(f"“\\* wearing a red hat” shows one, word and network {way}, in {hats[plain[0]]:.2f} of the unregularised run's samples and in "
                        + (f"{held[0]:.2f}" if len(held) == 1 else f"{held[0]:.2f} to {held[-1]:.2f}") + " of ours.")  # fmt: skip
    return said


def _volumes(finals: Finals, in_screen: Mapping[Arm, Standing]) -> list[str]:
    """Hypervolumes over (identity, decades of off-pattern drift): of the finalists, and of whole lines in the screen."""
    what = f"Hypervolume over (identity, −log10 of off-pattern drift over unregularised), reference ({REFERENCE[0]:g}, {REFERENCE[1]:g})"
    ours = hypervolume(one.point for one in finals.found.values() if one.arm.ours)
    rivals = {one.arm.name: hypervolume([one.point]) for one in finals.found.values() if not one.arm.ours and one.arm.method != UNREGULARIZED.method}
    best = max(rivals, key=rivals.__getitem__, default=None)
    alone = max((hypervolume([one.point]) for one in finals.found.values() if one.arm.ours), default=0.0)
    said = [f"{what}, finals: ours {ours:.3f} together, {alone:.3f} the best of them alone; "
            + (f"the best rival, `{best}`, {rivals[best]:.3f}." if best else "no rival.")]  # fmt: skip
    lines = {name: (line[0].arm.ours, hypervolume(one.point for one in line)) for name, line in lines_of(in_screen.values()).items()}
    tops = [max(((volume, name) for name, (mine, volume) in lines.items() if mine is whose), default=None) for whose in (True, False)]
    if None not in tops:
        (our_volume, our_name), (their_volume, their_name) = tops
        said.append(f"The same of one line of strengths each in the screen: `{our_name}` {our_volume:.3f}, the best rival `{their_name}` {their_volume:.3f}.")
    return said


def _best(found: Iterable[Standing]) -> Standing | None:
    return next((one for one in in_order(found) if one.keeps_identity), None)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
