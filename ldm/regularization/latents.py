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
from ldm.regularization.conditioning import Conditioning, Slot, choose
from ldm.regularization.types import Model, NoisyLatents, Part, Start, TrainingBatch


class Latents(Part):
    """What each source of latents is by default: it needs no preparation, and its probes cannot be listed."""

    listable = False  # whether there are finitely many samples from which all probes come: what a cached teacher needs
    brings_concat = False  # whether its probes come with the other condition of a hybrid network

    def prepare(self, start: Start, conditioning: Conditioning) -> None:
        """Do, once, what takes time before training."""

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
        self.samples = _at_least_one("samples", samples)

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

    def _timesteps(self, n: int, model: Model, chance: Chance) -> Tensor:
        return chance.timesteps(n, model.num_timesteps) if self.any_t else torch.full((n,), model.num_timesteps - 1)


class PriorSamples(Latents):
    """What the frozen model draws for the conditioning's prompts, noised to a random timestep.

    samples: how many are drawn, once, before training; ddim_steps, guidance_scale: how. sampling_batch_size: at a time.
    cache_dir: where they are kept (a folder in the user's cache unless given).
    """

    listable = True

    def __init__(
        self, samples: int = 64, ddim_steps: int = 50, guidance_scale: float = 1.0, sampling_batch_size: int = 8, cache_dir: Optional[str] = None
    ):
        self.samples = _at_least_one("samples", samples)
        self.ddim_steps = _at_least_one("ddim_steps", ddim_steps)
        self.guidance_scale = float(guidance_scale)
        self._sampling_batch_size = _at_least_one("sampling_batch_size", sampling_batch_size)
        self._cache_dir = cache_dir
        self._slots: List[Slot] = []
        self._z_0: Optional[Tensor] = None

    def prepare(self, start: Start, conditioning: Conditioning) -> None:
        chance = Chance(start.seed)
        self._slots = conditioning.slots(self.samples, chance.generator)
        prompts = [slot.prompt for slot in self._slots]
        x_T = chance.normal((self.samples, *latent_shape(start.model)))
        settings = {"samples": self.samples, "ddim_steps": self.ddim_steps, "guidance_scale": self.guidance_scale, "seed": start.seed}
        facts = {"of": "prior samples", "theta": start.theta_hash, "model": start.facts, "prompts": prompts, **settings}
        bank = made_once(
            "prior samples", facts, lambda: self._sample(start.model, prompts, x_T), cache_dir=self._cache_dir, rank=start.rank, wait=start.wait
        )
        self._z_0 = bank["z_0"]

    def _sample(self, model: Model, prompts: Sequence[str], x_T: Tensor) -> Dict[str, Tensor]:
        pieces, step = [], self._sampling_batch_size
        for first in tqdm(range(0, self.samples, step), desc=f"the frozen model draws {self.samples} prior samples", unit="batch"):
            part = slice(first, first + step)
            pieces.append(model.draw_prior(prompts[part], x_T[part], self.ddim_steps, self.guidance_scale).float().cpu())
        return {"z_0": torch.cat(pieces)}

    def draw(self, model: Model, batch: TrainingBatch, n: int, conditioning: Conditioning, chance: Chance) -> NoisyLatents:
        rows = chance.deal(n, self.samples)
        z_0 = self._z_0[rows].to(batch.z_t)
        t = chance.timesteps(n, model.num_timesteps).to(batch.t)
        z_t = model.q_sample(z_0, t, chance.normal(z_0.shape).to(z_0))
        return NoisyLatents(z_t, t, choose([self._slots[row] for row in rows], chance.generator))

    def population(self, start: Start, conditioning: Conditioning, noisings: int) -> NoisyLatents:
        chance = Chance(start.seed)
        rows = _each(self.samples, noisings)
        # One timestep in each of `noisings` equal stretches: uniform over all samples, with less scatter than independent draws.
        stretch = torch.arange(noisings).repeat(self.samples) + torch.rand(len(rows), generator=chance.generator)
        t = (stretch * (start.model.num_timesteps / noisings)).long().clamp(max=start.model.num_timesteps - 1)
        z_0, noise = self._z_0[rows], chance.normal((len(rows), *self._z_0.shape[1:]))
        z_t = start.model.q_sample(z_0.to(start.device), t.to(start.device), noise.to(start.device)).cpu()
        return NoisyLatents(z_t, t, choose(self._slots, chance.generator).select(rows))


def latent_shape(model: Model) -> Sequence[int]:
    """(C, h, w)."""
    return (model.channels, model.image_size, model.image_size)


def _each(samples: int, times: int) -> List[int]:
    return [row for row in range(samples) for _ in range(times)]


def _at_least_one(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"latents_config.params.{name} is {value}; expected a whole number of at least 1")
    return int(value)
