"""The arms of the full study: each way of holding the prior at each strength, as words for the training command.

locality/CONDITIONING/LATENTS/WEIGHT     the regulariser; with `/two-phase`, round a word learnt before; with `every-k` in every k-th step, k-fold there
RIVAL/STRENGTH                           what `ldm.rivals` has, and what can be had of the unregularised run without another one
unregularized, unregularized/two-phase, frozen
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CONFIGS = {
    (False, 1): Path("configs/characters/finetune_unfrozen.yaml"),
    (True, 1): Path("configs/characters/finetune_unfrozen_reg.yaml"),
    (False, 2): Path("configs/characters/pivotal.yaml"),
    (True, 2): Path("configs/characters/pivotal_reg.yaml"),
}  # (regularised, phases)

MIXTURE = "empty+class"  # what ideas 3 to 5 have to surpass
_CONDITIONING = "ldm.regularization.conditioning."
_EMPTY, _CLASS = {"target": _CONDITIONING + "EmptyPrompt"}, {"target": _CONDITIONING + "ClassPrompts"}
CONDITIONINGS: dict[str, dict[str, Any]] = {
    "empty": _EMPTY,
    "class": _CLASS,
    "embedding": {"target": _CONDITIONING + "EmbeddingInterpolation", "params": {"alpha": 0.5}},
    "encoding": {"target": _CONDITIONING + "EncodingInterpolation", "params": {"alpha": 0.5}},
    "hypersphere": {"target": _CONDITIONING + "Hypersphere", "params": {"directions": "towards"}},
    MIXTURE: {"target": _CONDITIONING + "Mixture", "params": {"parts": [_EMPTY, _CLASS], "weights": [0.5, 0.5]}},
    "morphing": {"target": _CONDITIONING + "PTIMorphing", "params": {"fraction": 0.5}},
}
IDEAS = ("empty", "class", "embedding", "encoding", "hypersphere")
NEAR_CONCEPT = ("embedding", "encoding", "hypersphere", "morphing")
SHIPPED = "shipped"  # conditioning, latents and loss of finetune_unfrozen_reg.yaml as it stands; its loss is another, so it measures no idea
LOSS = {"target": "ldm.regularization.losses.NoiseMSE"}  # of all the others, so that the ideas are told apart by nothing else

_LATENTS = "ldm.regularization.latents."
LATENTS: dict[str, dict[str, Any]] = {
    "training": {"target": _LATENTS + "TrainingLatents"},
    "noise": {"target": _LATENTS + "NoiseLatents", "params": {"any_t": True, "samples": 256}},
    "prior": {"target": _LATENTS + "PriorSamples", "params": {"samples": 256, "ddim_steps": 50, "guidance_scale": 1.0}},
    "trajectories": {"target": _LATENTS + "Trajectories", "params": {"samples": 256, "ddim_steps": 50, "guidance_scale": 1.0}},
}
TEACHERS: dict[str, dict[str, Any]] = {
    "copy": {"target": "ldm.regularization.teacher.FrozenCopy"},
    "cached": {"target": "ldm.regularization.teacher.CachedTeacher", "params": {"noisings": 8}},
}

LAZY = (2, 5)  # k: the shipped term in every k-th step
PROBES, SEED = 8, 23  # of the term, in each step
WEIGHTS = (1.5, 7.5, 37.5)  # λ, from below the shipped one on: with less still, the empty prompt holds hardly anything
FEWER_WEIGHTS = WEIGHTS[:2]  # where three take too long, and of the shipped term beside its own
SHIPPED_WEIGHT = 2.5
_RIVALS = "ldm.rivals."
# method → (what the training command is told beside the plain config, strengths from hardly any effect to too much)
RIVALS: dict[str, tuple[Sequence[str], Sequence[float]]] = {
    # DreamBooth's λ is 1, its set of class pictures about 200; as many a step as of the concept
    "prior_preservation": ((f"model.target={_RIVALS}prior_preservation.PriorPreservation", "model.params.batch_size=8", "model.params.samples=200",
                            "model.params.prior_weight={strength}"), (0.0625, 0.25, 1.0, 4.0)),
    "base_weights": ((f"model.target={_RIVALS}base_weights.BaseWeights", "model.params.base_weight={strength}"), (1.0e-4, 1.0e-3, 1.0e-2, 1.0e-1)),
    "output_preservation": ((f"model.target={_RIVALS}output_preservation.OutputPreservation", "model.params.output_weight={strength}"), (0.25, 1.0, 4.0, 16.0)),
    # strength: the rate of the layers that train; they are few, so the whole network's rate does little
    "kv_only": ((f"model.target={_RIVALS}kv_only.KVOnly", "model.params.model_lr={strength}"), (1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3)),
}  # fmt: skip
EARLY = (0.125, 0.25, 0.5, 0.75)  # shares of the steps after which the unregularised run is looked at
EARLY_PARTS = 8  # of a run, at whose ends its weights are kept: what EARLY counts in
BETWEEN = (0.9375, 0.875, 0.75, 0.5)  # s of θ₀ + s (θ − θ₀): less is held in the first
WITHOUT_RUN = ("early_stopping", "interpolation")  # had of the unregularised run

_TERM = "model.params.regularization_config.params."


@dataclass(frozen=True)
class Arm:
    """One way of tuning. conditioning, latents: of the regulariser, by their names here. strength: λ, or a rival's; None where there is none.
    every: how often the regulariser acts."""

    method: str
    conditioning: str | None = None
    latents: str | None = None
    strength: float | None = None
    phases: int = 1
    every: int = 1

    @property
    def name(self) -> str:
        """What rows call it; no two arms share it."""
        parts = [self.method, self.conditioning, None if self.conditioning == SHIPPED else self.latents, self._rhythm]
        strength = [] if self.strength is None else [f"{self.strength:g}"]
        return "/".join([*filter(None, parts), *strength, *(["two-phase"] if self.phases == 2 else [])])

    @property
    def line(self) -> str:
        """Its name without the strength: arms of one line differ in that alone."""
        return replace(self, strength=None).name

    @property
    def ours(self) -> bool:
        return self.method == "locality"

    @property
    def teacher(self) -> str | None:
        """Predictions are cached where they can be; near the concept's moving word, and on each batch's own latents, a frozen copy must be asked."""
        if not self.ours:
            return "copy" if self.method == "output_preservation" else None
        return "copy" if self.conditioning in NEAR_CONCEPT or self.latents == "training" else "cached"

    @property
    def kind(self) -> str:
        """Arms of one kind cost the same a step: strengths do not matter, nor which samples a bank holds."""
        if self.method in WITHOUT_RUN or self.method == "unregularized":
            return "unregularized"
        if not self.ours:
            return self.method
        return "/".join(filter(None, [self.method, self.conditioning, "bank" if self.latents in ("prior", "trajectories") else self.latents, self._rhythm]))

    @property
    def source(self) -> Arm:
        """The arm whose training run it is made of: itself, or the unregularised one."""
        return UNREGULARIZED if self.method in WITHOUT_RUN else self

    def overrides(self) -> list[str]:
        """Words for the training command beside its config."""
        if self.ours:
            return self._term()
        words, _ = RIVALS.get(self.method, ((), ()))
        return [word.format(strength=f"{self.strength!r}") for word in words]

    @property
    def _rhythm(self) -> str | None:
        return None if self.every == 1 else f"every-{self.every}"

    def _term(self) -> list[str]:
        weight = {"target": "ldm.regularization.weight.ConstantWeight", "params": {"weight": self.strength, "every": self.every, "warmup_steps": 0}}
        if self.conditioning == SHIPPED:
            return [f"{_TERM}weight_config={json.dumps(weight)}"]
        parts = {"weight": weight, "conditioning": CONDITIONINGS[self.conditioning], "latents": LATENTS[self.latents], "teacher": TEACHERS[self.teacher]}
        told = [f"{_TERM}{part}_config={json.dumps(config)}" for part, config in (parts | {"loss": LOSS}).items()]
        return [f"{_TERM}batch_size={PROBES}", f"{_TERM}seed={SEED}", f"{_TERM}share_forward=false", *told]  # a pass of their own, as their rows were measured


FROZEN, UNREGULARIZED, UNREGULARIZED_TWO_PHASE = Arm("frozen"), Arm("unregularized"), Arm("unregularized", phases=2)


def screen_arms(weights: Sequence[float] = WEIGHTS) -> list[Arm]:
    """All arms that are known from the start, the unregularised one before those that are made of its run."""
    known = [FROZEN, UNREGULARIZED, UNREGULARIZED_TWO_PHASE]
    known += [Arm("locality", conditioning, latents, weight) for conditioning in CONDITIONINGS for latents in LATENTS for weight in weights]
    known += [Arm("locality", SHIPPED, "prior", weight, every=k) for k in (1, *LAZY) for weight in FEWER_WEIGHTS]
    known += [Arm("locality", SHIPPED, "prior", SHIPPED_WEIGHT)]
    return known + rival_arms()


def rival_arms() -> list[Arm]:
    """Every rival at each of its strengths."""
    trained = [Arm(method, strength=strength) for method, (_, strengths) in RIVALS.items() for strength in strengths]
    made = [Arm("early_stopping", strength=share) for share in EARLY] + [Arm("interpolation", strength=s) for s in BETWEEN]
    return trained + made


def arm_of(row: Mapping[str, Any]) -> Arm:
    """The arm that a row is of."""
    return Arm(row["method"], row["conditioning"], row["latents"], row["strength"], row["phases"], row["every"])
