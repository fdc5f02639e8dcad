"""The term that keeps the tuned network where it was: R = E w(t) ‖f_θ(z_t, t, τ_θ(choice)) − sg f_θ₀(z_t, t, τ_θ₀(choice))‖², times λ.

Joins the parts, and is the only file that knows more than one kind of them but for `drift_meter`, which is made of the same.
"""
import logging
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch

from ldm.regularization.chance import ROUND_STRIDE, SEED_LIMIT, Chance
from ldm.regularization.checks import part_of, whole
from ldm.regularization.conditioning import Conditioning
from ldm.regularization.latents import BesideEmpty, Latents, latent_shape
from ldm.regularization.losses import Loss, NoiseMSE
from ldm.regularization.teacher import Teacher
from ldm.regularization.types import Model, NoisyLatents, Start, Term, TrainingBatch, Words
from ldm.regularization.weight import ConstantWeight

logger = logging.getLogger(__name__)

LARGEST_FLOOR = 1.0e-3  # of mean f0²: ten times what a whole bf16 network rounds
VALIDATION_SEED_OFFSET = 2**40  # beyond any rank: training and validation never share a seed


class LocalityRegularizer:
    """The term, made of ready parts (`regularization_config`).

    weight, conditioning, latents, teacher, loss: the parts. batch_size: probes a step, where the latents are not the training
    batch's own. seed: of the bank, and with the rank added of the probes. share_forward: in training the probes go through the network
    together with the batch, in one pass, which costs less than two; where the pass draws no random numbers (dropout) that changes rounding only.
    """

    def __init__(
        self,
        *,
        weight: ConstantWeight,
        conditioning: Conditioning,
        latents: Latents,
        teacher: Teacher,
        loss: Optional[Callable[..., torch.Tensor]] = None,
        batch_size: int = 1,
        seed: int = 23,
        share_forward: bool = False,
    ):
        parts = {"weight": (ConstantWeight, weight), "conditioning": (Conditioning, conditioning), "latents": (Latents, latents), "teacher": (Teacher, teacher)}
        for name, (kind, given) in parts.items():
            part_of(kind, given, f"regularization_config.params.{name}_config")
        if loss is not None and (not callable(loss) or isinstance(loss, Teacher)):
            part_of(Loss, loss, "regularization_config.params.loss_config")
        self.weight = weight
        self.conditioning = conditioning
        self.latents = latents
        self.teacher = teacher
        self.loss = loss or NoiseMSE()
        self.batch_size = whole(batch_size, "regularization_config.params.batch_size")
        self.seed = whole(seed, "regularization_config.params.seed", least=0)
        if not isinstance(share_forward, bool):
            raise ValueError(f"regularization_config.params.share_forward is {share_forward!r}; expected true or false")
        self.share_forward = share_forward
        self.acted = 0  # optimiser steps that carried the term
        self.floor: Optional[float] = None
        self.theta_hash: Optional[str] = None
        self._last_acted = -1
        self._source: Optional[Latents] = None
        self._repeated: Optional[Dict[str, Any]] = None

    @property
    def on(self) -> bool:
        """Whether the term is ever computed. Off, nothing is drawn, sampled or copied."""
        return self.weight.on

    @property
    def needs_fixed_word(self) -> bool:
        """Whether something is stored for choices that move with the concept's vectors."""
        return self.conditioning.needs_concept and self.teacher.stored(self.latents) > 0

    @property
    def unconditional(self) -> bool:
        """Whether both networks are asked for the empty prompt too, at every probe: a second pass of each."""
        return getattr(self.loss, "unconditional", False)  # a bare function will do as a loss

    @property
    def ready(self) -> bool:
        """Whether θ₀ has been taken."""
        return self._source is not None

    def bind(self, words: Words) -> None:
        """Tell the conditioning what the run calls things. Raises ValueError or FileNotFoundError for parts that cannot work, or not together."""
        self.conditioning.bind(words)
        self.weight.bind(words, self.conditioning)
        self.teacher.check(self.conditioning, self.latents)

    @torch.no_grad()
    def prepare(self, start: Start) -> None:
        """Take θ₀ and make or find the banks: once, while θ is θ₀ still."""
        if start.hybrid and not self.latents.brings_concat:
            raise ValueError(
                f"{self.latents.describe()} has no c_concat, which conditioning_key: hybrid needs beside the text; use latents_config: TrainingLatents."
            )
        if self.teacher.needs_adapters and getattr(start.model, "adapters", None) is None:
            raise ValueError(
                f"{type(self.teacher).__name__} switches off the adapters that are tuned, and this model has none: it is tuned as a whole. "
                "What fits: model.params.adapter_config, or teacher_config: FrozenCopy or CachedTeacher."
            )
        self.teacher.check(self.conditioning, self.latents, start.concept_moves)
        if isinstance(self.loss, Loss):  # else a bare function
            self.loss.prepare(start, self.latents.first_t(start.model))
        self.conditioning.prepare(start)
        self.theta_hash = start.theta_hash
        self.training_chance = Chance((self.seed + start.rank) % SEED_LIMIT)
        self._rank = start.rank
        self.begin_validation(0)
        self.latents.prepare(start, self.conditioning)
        latents = BesideEmpty(self.latents) if self.unconditional else self.latents
        self._source = self.teacher.prepare(start, self.conditioning, latents)
        self.weight.prepare(start)
        if not start.hybrid:
            self._measure_floor(start)
        if self.weight.caution() and not start.rank:
            logger.warning("locality term: %s", self.weight.caution())

    def due(self, step: int, training: bool) -> bool:
        """Whether R is computed for this batch: in training in the weight's steps, in validation always."""
        return self.weight.due(step) if training else self.on

    def draw(self, model: Model, batch: TrainingBatch, training: bool = True) -> NoisyLatents:
        """The probes of a batch; each call draws the next."""
        chance = self.training_chance if training else self.validation_chance
        if not training and self._repeated is not None:
            chance.load_state_dict(self._repeated)
        return self._drawn_by(chance, model, batch)

    def __call__(
        self, model: Model, batch: TrainingBatch, step: int, training: bool = True, evaluated: Optional[Tuple[NoisyLatents, torch.Tensor]] = None
    ) -> Term:
        """The term at optimiser step `step` (from 0); with a graph to θ, without one to θ₀ or to the concept's vectors.

        evaluated: the batch's probes (`draw`) and f at them, where the model has them already.
        """
        if evaluated is None:
            probes = self.draw(model, batch, training)
            evaluated = probes, model.denoise(probes)
        probes, f = evaluated  # z_t (B, C, h, w), t (B,), B choices; f (B, C, h, w) or (B, 2, C, h, w)
        f0 = self.teacher(model, probes)  # as f; each encodes with its own encoder
        measured = self.weight.watch(model, batch, step) if training else {}
        R, weight = self.loss(f, f0, probes, model), self.weight.at(step)
        if training:
            self._count(step)
        # Where R is computed in every k-th step only, it stands for the k − 1 steps without it.
        factor = self.weight.every if training else 1
        return Term(weight * factor * R, {"loss_locality": R.detach(), "locality_weight": weight, **measured})

    def begin_validation(self, step: int) -> None:
        """The probes of a validation follow from its optimiser step alone: a run that is resumed may have had one more, or one less, before it."""
        self.validation_chance = Chance((self.seed + VALIDATION_SEED_OFFSET + ROUND_STRIDE * step + self._rank) % SEED_LIMIT)

    @contextmanager
    def equal_validation_draws(self) -> Iterator[None]:
        """Inside, every validation pass meets the same probes: the plain and the EMA weights are compared on them."""
        self._repeated = self.validation_chance.state_dict()
        try:
            yield
        finally:
            self._repeated = None

    def describe(self) -> str:
        """One line for the log: on or off; what, where and how often."""
        if not self.on:
            return "locality term: off (its weight is 0); the run is the unregularised one"
        parts = (self.weight, self.conditioning, self.latents, self.teacher, self.loss)
        shared = ", in one pass with it" if self.share_forward else ""
        return "locality term: on; " + "; ".join(part.describe() for part in parts) + f"; {self.batch_size} probes a batch{shared}; seed {self.seed}"

    def state_dict(self) -> Dict[str, Any]:
        """What a resumed run needs: plain values and tensors, nothing of θ₀ but its hash."""
        return {
            "theta_hash": self.theta_hash,
            "training": self.training_chance.state_dict(),
            "validation": self.validation_chance.state_dict(),
            "weight": self.weight.state_dict(),
            "acted": self.acted,
            "last_acted": self._last_acted,
        }

    def load_state_dict(self, state: Dict[str, Any], rank: int = 0) -> None:
        """Go on from `state`. Raises ValueError if it belongs to another θ₀."""
        self.check_base(state)
        self.training_chance.load_state_dict(state["training"], rank)
        self.validation_chance.load_state_dict(state["validation"], rank)
        self.weight.load_state_dict(state["weight"])
        self.acted, self._last_acted = state["acted"], state["last_acted"]

    def check_base(self, state: Dict[str, Any]) -> None:
        """Raises ValueError if `state` belongs to another θ₀."""
        if state["theta_hash"] != self.theta_hash:
            raise ValueError(
                f"this run was started from another base: the checkpoint to be resumed names a frozen model with SHA-256 {state['theta_hash']}, "
                f"the base checkpoint given now has {self.theta_hash}. Give --actual_resume the base of the first start (it may have moved)."
            )

    def _drawn_by(self, chance: Chance, model: Model, batch: TrainingBatch) -> NoisyLatents:
        probes = self._source.draw(model, batch, self.batch_size, self.conditioning, chance)
        return probes._replace(choice=self.teacher.settle(model, probes.choice))

    def _count(self, step: int) -> None:
        if step != self._last_acted:  # with accumulation several batches belong to one step
            self.acted += 1
            self._last_acted = step

    def _measure_floor(self, start: Start) -> None:
        """R at θ = θ₀ relative to mean f0²: 0, or the rounding of the teacher's format."""
        chance = Chance(start.seed)
        z_t = chance.normal((self.batch_size, *latent_shape(start.model))).to(start.device)
        batch = TrainingBatch(z_t, chance.timesteps(self.batch_size, start.model.num_timesteps).to(start.device))
        probes = self._drawn_by(chance, start.model, batch)
        f, f0 = start.model.denoise(probes).float(), self.teacher(start.model, probes).float()
        self.floor = float((f - f0).pow(2).mean() / f0.pow(2).mean().clamp_min(torch.finfo(torch.float32).tiny))
        if start.rank:
            return
        logger.info("locality term: before the first step R is %.1e of the mean square of the frozen output", self.floor)
        if self.floor > LARGEST_FLOOR:
            logger.warning("locality term: that is more than rounding explains (%.0e); does the model draw random numbers in eval mode?", LARGEST_FLOOR)
