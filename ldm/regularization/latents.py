"""On which noisy latents the tuned and the frozen network must agree.

R = E w(t) ‖f(z_t, t, c) − f0(z_t, t, c)‖²; this file draws (z_t, t), and with them the choice of c that belongs to them.
Idea: the locality regularisation of pivotal tuning, Roich et al. 2021 (arXiv 2106.05744), moved from w-space to latents.
"""
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.regularization.bank import made_once
from ldm.regularization.chance import Chance
from ldm.regularization.checks import whole
from ldm.regularization.choices import Joined
from ldm.regularization.conditioning import Conditioning, Slot, choose
from ldm.regularization.types import Choice, Model, NoisyLatents, Part, Start, TrainingBatch


class Latents(Part):
    """What each source of latents is by default: it needs no preparation, and its probes cannot be listed."""

    listable = False  # whether there are finitely many samples from which all probes come: what a cached teacher needs
    brings_concat = False  # whether its probes come with the other condition of a hybrid network
    samples = 0  # of a listable source

    def prepare(self, start: Start, conditioning: Conditioning) -> None:
        """Do, once, what takes time before training."""

    def largest_pass(self) -> int:
        """Samples in the largest pass of the network that `prepare` makes, at most."""
        return 0

    def first_t(self, model: Model) -> int:
        """The least timestep that a probe can have; of several sources, of the one that begins last."""
        return 0

    def draw(self, model: Model, batch: TrainingBatch, n: int, conditioning: Conditioning, chance: Chance) -> NoisyLatents:
        """n probes with the device and dtype of the batch."""
        raise NotImplementedError

    def population(self, start: Start, conditioning: Conditioning, noisings: int) -> NoisyLatents:
        """All probes of a listable source, `noisings` for each sample, on the CPU."""
        raise NotImplementedError


class TrainingLatents(Latents):
    """The training batch's own noisy latents, as many as it has."""

    brings_concat = True

    def draw(self, model: Model, batch: TrainingBatch, n: int, conditioning: Conditioning, chance: Chance) -> NoisyLatents:
        slots = conditioning.slots(len(batch.t), chance.generator, batch.captions)
        return NoisyLatents(batch.z_t, batch.t, choose(slots, chance.generator), batch.c_concat)


class NoiseLatents(Latents):
    """Pure noise at the last timestep, where all sampling begins; with `any_t`, at a random one.

    samples: of how many prompts a cached teacher keeps its outputs, each with several noises.
    """

    listable = True

    def __init__(self, any_t: bool = False, samples: int = 64):
        self.any_t = any_t
        self.samples = whole(samples, "latents_config.params.samples")

    def draw(self, model: Model, batch: TrainingBatch, n: int, conditioning: Conditioning, chance: Chance) -> NoisyLatents:
        choice = choose(conditioning.slots(n, chance.generator), chance.generator)
        z_t = chance.normal((n, *latent_shape(model)))
        return NoisyLatents(z_t.to(batch.z_t), self._timesteps(n, model, chance).to(batch.t), choice)

    def population(self, start: Start, conditioning: Conditioning, noisings: int) -> NoisyLatents:
        chance = Chance(start.seed)
        slots = conditioning.slots(self.samples, chance.generator)
        choice = choose(slots, chance.generator).select(_each(self.samples, noisings))
        z_t = chance.normal((len(choice), *latent_shape(start.model)))
        return NoisyLatents(z_t, self._timesteps(len(choice), start.model, chance), choice)

    def first_t(self, model: Model) -> int:
        return 0 if self.any_t else model.num_timesteps - 1

    def _timesteps(self, n: int, model: Model, chance: Chance) -> Tensor:
        return chance.timesteps(n, model.num_timesteps) if self.any_t else torch.full((n,), model.num_timesteps - 1)


class SampleBank(Latents):
    """What the sources share that keep samples, each with its prompt, and deal them in shuffled rounds."""

    listable = True

    def __init__(self, samples: int):
        self.samples = whole(samples, "latents_config.params.samples")
        self._slots: List[Slot] = []

    def draw(self, model: Model, batch: TrainingBatch, n: int, conditioning: Conditioning, chance: Chance) -> NoisyLatents:
        return self.probes(model, batch, chance.deal(n, self.samples), chance)

    def probes(self, model: Model, batch: TrainingBatch, rows: Sequence[int], chance: Chance) -> NoisyLatents:
        """One probe for each of these samples, with the device and dtype of the batch."""
        raise NotImplementedError

    def _choices(self, rows: Sequence[int], chance: Chance) -> Choice:
        return choose([self._slots[row] for row in rows], chance.generator)


class NoisedSamples(SampleBank):
    """What the banks share that keep z_0 (samples, C, h, w), to be noised to a random timestep of at least t_min."""

    t_min = 0
    _z_0: Tensor

    def first_t(self, model: Model) -> int:
        return self.t_min

    def probes(self, model: Model, batch: TrainingBatch, rows: Sequence[int], chance: Chance) -> NoisyLatents:
        z_0 = self._z_0[rows].to(batch.z_t)
        t = (self.t_min + chance.timesteps(len(rows), model.num_timesteps - self.t_min)).to(batch.t)
        z_t = model.q_sample(z_0, t, chance.normal(z_0.shape).to(z_0))
        return NoisyLatents(z_t, t, self._choices(rows, chance))

    def population(self, start: Start, conditioning: Conditioning, noisings: int) -> NoisyLatents:
        chance = Chance(start.seed)
        rows = _each(self.samples, noisings)
        t = self.t_min + _one_in_each(noisings, start.model.num_timesteps - self.t_min, self.samples, chance)
        z_0 = self._z_0[rows]
        noise = chance.normal(z_0.shape)
        z_t = start.model.q_sample(z_0.to(start.device), t.to(start.device), noise.to(start.device)).cpu()
        return NoisyLatents(z_t, t, choose(self._slots, chance.generator).select(rows))


class TrainingPictures(NoisedSamples):
    """The training pictures, as the training set shows and the first stage encodes them, noised to a random timestep.

    With the prompts of the conditioning, which should be the class's: what the concept's pictures show under its own word, its class must not. Samples
    of the class that go astray come near these pictures; samples that the frozen model draws hardly do.
    samples: how many, one from each item of the training set in turn. t_min: the least timestep; at smaller ones the pictures' details are held too,
    which costs the concept its edits.
    """

    def __init__(self, samples: int = 16, t_min: int = 200):
        super().__init__(samples)
        self.t_min = whole(t_min, "latents_config.params.t_min", least=0)

    def first_t(self, model: Model) -> int:
        steps = model.num_timesteps
        if self.t_min >= steps:
            raise ValueError(f"latents_config.params.t_min is {self.t_min}, and the model has {steps} timesteps; expected 0 to {steps - 1}")
        return self.t_min

    def prepare(self, start: Start, conditioning: Conditioning) -> None:
        self.first_t(start.model)
        self._slots = conditioning.slots(self.samples, Chance(start.seed).generator)
        self._z_0 = start.model.encode_training_pictures(self.samples, start.seed).float().cpu()


class Drawn(SampleBank):
    """What the sources share that let the frozen model draw, once, before training.

    samples: how many, for the conditioning's prompts; ddim_steps, guidance_scale: how. sampling_batch_size: at a time.
    cache_dir: where they are kept (a folder in the user's cache unless given).
    """

    kind = ""  # what the bank holds, for people and for its key

    def __init__(
        self, samples: int = 64, ddim_steps: int = 50, guidance_scale: float = 1.0, sampling_batch_size: int = 8, cache_dir: Optional[str] = None
    ):
        super().__init__(samples)
        self.ddim_steps = whole(ddim_steps, "latents_config.params.ddim_steps")
        self.guidance_scale = float(guidance_scale)
        self._sampling_batch_size = whole(sampling_batch_size, "latents_config.params.sampling_batch_size")
        self._cache_dir = cache_dir

    def largest_pass(self) -> int:
        return self._sampling_batch_size * (1 if self.guidance_scale == 1.0 else 2)  # guidance asks for the empty prompt too

    def made(self, start: Start, conditioning: Conditioning) -> Dict[str, Tensor]:
        """What `sample` returns for all samples, from disk if they were drawn before."""
        chance = Chance(start.seed)
        self._slots = conditioning.slots(self.samples, chance.generator)
        prompts = [slot.prompt for slot in self._slots]
        x_T = chance.normal((self.samples, *latent_shape(start.model)))
        settings = {"samples": self.samples, "ddim_steps": self.ddim_steps, "guidance_scale": self.guidance_scale, "seed": start.seed}
        facts = {"of": self.kind, "theta": start.theta_hash, "model": start.facts, "prompts": prompts, **settings}
        return made_once(
            self.kind, facts, lambda: self._sample(start.model, prompts, x_T), cache_dir=self._cache_dir, rank=start.rank, wait=start.wait
        )

    def _sample(self, model: Model, prompts: Sequence[str], x_T: Tensor) -> Dict[str, Tensor]:
        pieces: List[Dict[str, Tensor]] = []
        step = self._sampling_batch_size
        for first in tqdm(range(0, self.samples, step), desc=f"the frozen model draws {self.samples} {self.kind}", unit="batch"):
            part = slice(first, first + step)
            pieces.append(self.sample(model, prompts[part], x_T[part]))
        return {name: torch.cat([piece[name].cpu() for piece in pieces]) for name in pieces[0]}

    def sample(self, model: Model, prompts: Sequence[str], x_T: Tensor) -> Dict[str, Tensor]:
        """What is kept of samples drawn for these prompts from x_T (B, C, h, w): tensors (B, ...)."""
        raise NotImplementedError


class PriorSamples(Drawn, NoisedSamples):
    """What the frozen model draws for the conditioning's prompts, noised to a random timestep."""

    kind = "prior samples"

    def sample(self, model: Model, prompts: Sequence[str], x_T: Tensor) -> Dict[str, Tensor]:
        return {"z_0": model.draw_prior(prompts, x_T, self.ddim_steps, self.guidance_scale).float()}

    def prepare(self, start: Start, conditioning: Conditioning) -> None:
        self._z_0 = self.made(start, conditioning)["z_0"]


class Trajectories(Drawn):
    """The states through which the frozen model went while it drew for the conditioning's prompts, with the timesteps at which it was asked.

    Each trajectory is kept whole, from its initial noise on (ddim_steps latents a sample); the clean latent at its end is no state.
    """

    kind = "trajectories"

    def sample(self, model: Model, prompts: Sequence[str], x_T: Tensor) -> Dict[str, Tensor]:
        states, t = model.draw_trajectories(prompts, x_T, self.ddim_steps, self.guidance_scale)  # (B, S, C, h, w), (S,)
        return {"states": states.float(), "t": t.expand(len(states), -1)}

    def prepare(self, start: Start, conditioning: Conditioning) -> None:
        bank = self.made(start, conditioning)
        self._states, self._t = bank["states"], bank["t"]

    def probes(self, model: Model, batch: TrainingBatch, rows: Sequence[int], chance: Chance) -> NoisyLatents:
        states = chance.timesteps(len(rows), self._t.shape[1])
        z_t, t = self._states[rows, states], self._t[rows, states]
        return NoisyLatents(z_t.to(batch.z_t), t.to(batch.t), self._choices(rows, chance))

    def population(self, start: Start, conditioning: Conditioning, noisings: int) -> NoisyLatents:
        chance = Chance(start.seed)
        rows = _each(self.samples, noisings)
        states = _one_in_each(noisings, self._t.shape[1], self.samples, chance)
        return NoisyLatents(self._states[rows, states], self._t[rows, states], choose(self._slots, chance.generator).select(rows))


class MixedLatents(SampleBank):
    """Several banks as one. Each has the share of its samples: of 64 prior samples and 16 training pictures comes every fifth probe from the latter."""

    def __init__(self, parts: Sequence[SampleBank]):
        self.parts = list(parts)
        if not self.parts:
            raise ValueError("MixedLatents: latents_config.params.parts is an empty list; give at least one source")
        for part in self.parts:
            if not isinstance(part, SampleBank):
                raise ValueError(
                    f"MixedLatents: {type(part).__name__} in latents_config.params.parts keeps no samples whose number could say how large its share is. "
                    "What fits: PriorSamples, Trajectories, TrainingPictures."
                )
        super().__init__(sum(part.samples for part in self.parts))

    def largest_pass(self) -> int:
        return max(part.largest_pass() for part in self.parts)

    def first_t(self, model: Model) -> int:
        return max(part.first_t(model) for part in self.parts)

    def prepare(self, start: Start, conditioning: Conditioning) -> None:
        for part in self.parts:
            part.prepare(start, conditioning)

    def probes(self, model: Model, batch: TrainingBatch, rows: Sequence[int], chance: Chance) -> NoisyLatents:
        drawn: List[NoisyLatents] = []
        first = 0
        for part in self.parts:
            mine = [row - first for row in rows if first <= row < first + part.samples]
            first += part.samples
            if mine:
                drawn.append(part.probes(model, batch, mine, chance))
        return _joined(drawn)

    def population(self, start: Start, conditioning: Conditioning, noisings: int) -> NoisyLatents:
        return _joined([part.population(start, conditioning, noisings) for part in self.parts])

    def describe(self) -> str:
        return " + ".join(part.describe() for part in self.parts)


def _joined(probes: Sequence[NoisyLatents]) -> NoisyLatents:
    rows = [(number, row) for number, part in enumerate(probes) for row in range(len(part.t))]
    return NoisyLatents(torch.cat([part.z_t for part in probes]), torch.cat([part.t for part in probes]), Joined([part.choice for part in probes], rows))


class BesideEmpty(Latents):
    """Another source's probes, at which the output for the empty prompt is asked for too."""

    def __init__(self, latents: Latents):
        self._latents = latents

    def draw(self, model: Model, batch: TrainingBatch, n: int, conditioning: Conditioning, chance: Chance) -> NoisyLatents:
        return self._latents.draw(model, batch, n, conditioning, chance)._replace(unconditional=True)

    def population(self, start: Start, conditioning: Conditioning, noisings: int) -> NoisyLatents:
        return self._latents.population(start, conditioning, noisings)._replace(unconditional=True)


def latent_shape(model: Model) -> Sequence[int]:
    """(C, h, w)."""
    return (model.channels, model.image_size, model.image_size)


def _each(samples: int, times: int) -> List[int]:
    return [row for row in range(samples) for _ in range(times)]


def _one_in_each(stretches: int, size: int, times: int, chance: Chance) -> Tensor:
    """A number below `size` in each of so many equal stretches, over and over: uniform, with less scatter than independent draws."""
    place = torch.arange(stretches).repeat(times) + torch.rand(stretches * times, generator=chance.generator)
    return (place * (size / stretches)).long().clamp(max=size - 1)
