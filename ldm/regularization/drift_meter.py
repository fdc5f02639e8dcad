"""Mean ‖Δε‖² between the tuned and the frozen network on prompts that R never uses: what a drift budget is stated in.

‖·‖² is the mean over (C, h, w); the points are the frozen model's own samples for those prompts, noised to uniform timesteps. They and the
frozen outputs there are made once, before training: measuring takes one forward pass of the tuned network and no second network.
"""
from typing import Any, Collection, Dict, List, Optional, Sequence, Union

import torch
from torch import Tensor, distributed

from ldm.regularization.chance import Chance
from ldm.regularization.checks import whole
from ldm.regularization.conditioning import ClassPrompts, Conditioning, Mixture
from ldm.regularization.latents import Latents, PriorSamples
from ldm.regularization.losses import eps_per_output, squared_error
from ldm.regularization.scopes import in_eval_mode
from ldm.regularization.teacher import CachedTeacher
from ldm.regularization.types import Part, Start, TrainingBatch, Words

# Sentences of other shapes than the training templates: with the class in them, and without it.
OF_THE_CLASS = ("a {} standing on a hill", "two of the {} side by side", "the {} at night", "{}", "an old drawing of some {}")
OF_OTHER_THINGS = ("a street with houses", "a tree by the water", "something red")
SEED_OFFSET = 2**41  # beyond those of the term: the meter never draws its numbers


class DriftMeter(Part):
    """Measures drift on a list of prompts of its own.

    prompts: a list, or the path of a text file; unless given those of OF_THE_CLASS and OF_OTHER_THINGS that R does not use. samples: drawn by the
    frozen model, with `ddim_steps`; noisings: points for each; points: of them, how many one measurement takes, in turn. cache_dir: where they
    are kept.
    """

    def __init__(
        self, prompts: Union[str, Sequence[str], None] = None, *, samples: int = 32, ddim_steps: int = 50, noisings: int = 16, points: int = 32,
        cache_dir: Optional[str] = None,
    ):  # fmt: skip
        self.points = whole(points, "meter_config.params.points")
        self._choose = prompts is None
        self._conditioning: Conditioning = ClassPrompts(prompts=prompts).named("meter_config.params")
        self._latents = PriorSamples(samples=samples, ddim_steps=ddim_steps, cache_dir=cache_dir)
        self._teacher = CachedTeacher(noisings=noisings, cache_dir=cache_dir)
        self._source: Optional[Latents] = None
        self._chance = Chance(0)

    def bind(self, words: Words, conditioning: Conditioning) -> None:
        """Learn the class word. Raises ValueError for given prompts that R, by its `conditioning`, uses itself."""
        held = set(conditioning.known_prompts())
        if self._choose:
            self._conditioning = free_of(held, words)
        self._conditioning.bind(words)
        shared = sorted(held.intersection(self._conditioning.known_prompts()))
        if shared:
            raise ValueError(
                f"meter_config.params.prompts: {', '.join(map(repr, shared))} is among the prompts that the term itself holds still; "
                "drift there says nothing about the rest of the model. Give others."
            )

    def prepare(self, start: Start) -> None:
        """Draw the samples and store the frozen outputs, or find them: while θ is θ₀."""
        start = start._replace(seed=(start.seed + SEED_OFFSET) % 2**62)
        self._chance = Chance(start.seed)  # the same points on every rank
        self._latents.prepare(start, self._conditioning)
        self._source = self._teacher.prepare(start, self._conditioning, self._latents)

    @torch.no_grad()
    def __call__(self, model: Any, batch: TrainingBatch) -> float:
        """Mean ‖Δε‖² at the next points; device and dtype follow the batch. One number for all ranks, so that they weigh alike."""
        probes = self._source.draw(model, batch, self.points, self._conditioning, self._chance)
        with in_eval_mode(model):
            error = squared_error(model.denoise(probes), probes.frozen)
        return float(mean_over_ranks((eps_per_output(model)[probes.t] * error).mean()))

    def describe(self) -> str:
        return f"{self.points} points on {self._conditioning.describe()}"

    def state_dict(self) -> Dict[str, Any]:
        """Where the measurements have come to."""
        return self._chance.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._chance.load_state_dict(state)


def free_of(held: Collection[str], words: Words) -> Conditioning:
    """OF_THE_CLASS and OF_OTHER_THINGS, evenly, without the `held` prompts. Raises ValueError where none is left."""
    every = ClassPrompts(templates=OF_THE_CLASS)
    every.bind(words)
    templates = [template for template, prompt in zip(OF_THE_CLASS, every.known_prompts()) if prompt not in held]
    others = [prompt for prompt in OF_OTHER_THINGS if prompt not in held]
    parts: List[Conditioning] = [ClassPrompts(templates=templates)] if templates else []
    parts += [ClassPrompts(prompts=others)] if others else []
    if not parts:
        raise ValueError("meter_config.params.prompts: the term itself holds still all prompts that drift is measured on by default. Give others.")
    return Mixture(parts, [len(some) for some in (templates, others) if some])


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a number over the processes that train together, float32; every rank has to come here."""
    value = value.detach().float()
    if not distributed.is_available() or not distributed.is_initialized():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
