"""How the frozen model's output f0 is had.

A teacher is prepared once, while θ is still θ₀; it then says from where probes are drawn, and f0 at each.
To add another, write `__call__`, and `prepare` where it must take or store something.
"""
import contextlib
import copy
from typing import Any, ContextManager, Dict, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.regularization.bank import hash_tensors, made_once
from ldm.regularization.chance import Chance
from ldm.regularization.checks import whole
from ldm.regularization.conditioning import Conditioning
from ldm.regularization.latents import Latents
from ldm.regularization.scopes import in_eval_mode, replaced
from ldm.regularization.types import Choice, Model, NoisyLatents, Part, Start, TrainingBatch


class Teacher(Part):
    """What each teacher is by default: it takes nothing, and any probe will do."""

    needs_adapters = False  # of the model, in the place of which θ would be tuned itself
    second_network = False  # whether it keeps a network of its own, as its `dtype` and `device` say

    def check(self, conditioning: Conditioning, latents: Latents, concept_moves: bool = False) -> None:
        """Raise ValueError if this teacher cannot answer for such probes. concept_moves: the placeholder's vectors are being trained."""

    def stored(self, latents: Latents) -> int:
        """Probes from these latents at which it stores f0, in its `dtype`, before training; 0 where it makes f0 in every step."""
        return 0

    def largest_pass(self) -> int:
        """Probes in the largest pass of the network that `prepare` makes, at most."""
        return 0

    def prepare(self, start: Start, conditioning: Conditioning, latents: Latents) -> Latents:
        """Take or store what is needed of θ₀. Returns the source of all probes from now on."""
        return latents

    @torch.no_grad()
    def settle(self, model: Model, choice: Choice) -> Choice:
        """The choice with what the frozen encoder must say written into it (`Choice.settled`)."""
        return choice.settled(model.encode_prompts)

    def __call__(self, model: Model, probes: NoisyLatents) -> Tensor:
        """f0 at the probes (B, C, h, w), without a graph."""
        raise NotImplementedError


class FrozenCopy(Teacher):
    """A second network (and text encoder, where that is tuned), frozen; one more forward pass.

    dtype: its matrix products run, and their weights are kept, in this precision (`bfloat16`, `float16`); as they are unless given.
    device: where it lies; where the model does unless given.
    """

    second_network = True

    def __init__(self, dtype: Optional[str] = None, device: Optional[str] = None):
        self.dtype = dtype
        self.device = device
        self._dtype = None if dtype is None else _dtype(dtype, "FrozenCopy")
        if device is not None:
            _device(device, "FrozenCopy")
        self._theta: Dict[str, nn.Module] = {}
        self._place: Optional[torch.device] = None

    def prepare(self, start: Start, conditioning: Conditioning, latents: Latents) -> Latents:
        self._place = start.device if self.device is None else torch.device(self.device)
        tuned = start.model.tuned_modules()
        try:
            self._theta = {name: frozen_copy(module, self._place, self._dtype) for name, module in tuned.items()}
        except (MemoryError, RuntimeError) as error:
            if not _of_memory(error):
                raise
            size = sum(tensor.numel() * tensor.element_size() for module in tuned.values() for tensor in module.state_dict().values()) / 2**30
            raise ValueError(
                f"FrozenCopy: there is not enough memory on {self._place} for a second network of {size:.1f} GiB. What needs none: teacher_config: "
                "CachedTeacher (with latents from a bank), or AdapterOff where adapters are tuned (model.params.adapter_config). What needs less: "
                f"dtype: bfloat16 in teacher_config.params, or device: cpu there. ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from error
        return latents

    @torch.no_grad()
    def settle(self, model: Model, choice: Choice) -> Choice:
        with self._precision(), replaced(model, self._theta):
            return choice.settled(model.encode_prompts)

    @torch.no_grad()
    def __call__(self, model: Model, probes: NoisyLatents) -> Tensor:
        with self._precision():
            return model.denoise(probes.to(self._place), theta=self._theta).to(probes.z_t)

    def _precision(self) -> ContextManager[Any]:
        if self._dtype is None:
            return contextlib.nullcontext()
        if self._dtype == torch.float32:  # also where the student runs in 16 bits
            return torch.autocast(self._place.type, enabled=False)
        return torch.autocast(self._place.type, dtype=self._dtype)


class AdapterOff(Teacher):
    """The model itself with its low-rank adapters off: no second network; one more forward pass."""

    needs_adapters = True

    @torch.no_grad()
    def settle(self, model: Model, choice: Choice) -> Choice:
        with _as_theta_0(model):
            return choice.settled(model.encode_prompts)

    @torch.no_grad()
    def __call__(self, model: Model, probes: NoisyLatents) -> Tensor:
        with _as_theta_0(model):
            return model.denoise(probes)


@contextlib.contextmanager
def _as_theta_0(model: Model) -> Iterator[None]:
    with model.adapters.off(), in_eval_mode(nn.ModuleList(model.tuned_modules().values())):
        yield


class CachedTeacher(Teacher):
    """f0 stored for every probe before training: no second network and no frozen forward pass while training.

    noisings: probes stored for each sample. dtype: of the stored outputs. batch_size: probes a pass while they are made.
    cache_dir: where they are kept (a folder in the user's cache unless given).
    """

    def __init__(self, noisings: int = 16, dtype: str = "float32", batch_size: int = 8, cache_dir: Optional[str] = None):
        self.noisings = whole(noisings, "teacher_config.params.noisings")
        self.dtype = dtype
        self._dtype = _dtype(dtype, "CachedTeacher")
        self._batch_size = whole(batch_size, "teacher_config.params.batch_size")
        self._cache_dir = cache_dir

    def stored(self, latents: Latents) -> int:
        return self.noisings * latents.samples

    def largest_pass(self) -> int:
        return self._batch_size

    def check(self, conditioning: Conditioning, latents: Latents, concept_moves: bool = False) -> None:
        if not latents.listable:
            raise ValueError(
                f"CachedTeacher cannot store outputs at {type(latents).__name__}, which are new in every step. "
                "What fits: latents from PriorSamples or NoiseLatents, Trajectories, TrainingPictures, MixedLatents of these; or teacher_config: FrozenCopy."
            )
        if conditioning.needs_concept and concept_moves:
            raise ValueError(
                f"CachedTeacher cannot store outputs for {conditioning.describe()}: their encoding moves with the placeholder's vectors, which are "
                "being trained or grow in number. What fits: EmptyPrompt or ClassPrompts; vectors that are fixed (train_embeddings: false, or "
                "train_embeddings_after: false of main.ModeSwapCallback; and progressive_words: false); or teacher_config: FrozenCopy."
            )

    def prepare(self, start: Start, conditioning: Conditioning, latents: Latents) -> Latents:
        entries = latents.population(start, conditioning, self.noisings)
        probes = {"probes": hash_tensors({"z_t": entries.z_t, "t": entries.t}), "choice": entries.choice.facts()}
        if conditioning.needs_concept:
            probes["concept"] = start.concept_hash
        if entries.unconditional:
            probes["unconditional"] = True
        facts = {"of": "frozen outputs", "theta": start.theta_hash, "model": start.facts, "dtype": self.dtype, **probes}
        entries = entries._replace(choice=entries.choice.settled(start.model.encode_prompts))
        bank = made_once("frozen outputs", facts, lambda: self._evaluate(start, entries), cache_dir=self._cache_dir, rank=start.rank, wait=start.wait)
        return CachedProbes(entries._replace(frozen=bank["f0"]))

    @torch.no_grad()
    def _evaluate(self, start: Start, entries: NoisyLatents) -> Dict[str, Tensor]:
        """f0 at all entries, by the model itself: it is still θ₀."""
        pieces, step = [], self._batch_size
        for first in tqdm(range(0, len(entries.t), step), desc=f"the frozen model's output at {len(entries.t)} probes", unit="batch"):
            probes = _rows(entries, range(first, min(first + step, len(entries.t))))
            pieces.append(start.model.denoise(probes.to(start.device)).to("cpu", self._dtype))
        return {"f0": torch.cat(pieces)}

    def settle(self, model: Model, choice: Choice) -> Choice:
        return choice  # settled when its output was stored

    def __call__(self, model: Model, probes: NoisyLatents) -> Tensor:
        return probes.frozen


class CachedProbes(Latents):
    """Probes with their f0, dealt in shuffled rounds."""

    def __init__(self, entries: NoisyLatents):
        self._entries = entries

    def draw(self, model: Model, batch: TrainingBatch, n: int, conditioning: Conditioning, chance: Chance) -> NoisyLatents:
        probes = _rows(self._entries, chance.deal(n, len(self._entries.t)))
        return probes._replace(z_t=probes.z_t.to(batch.z_t), t=probes.t.to(batch.t), frozen=probes.frozen.to(batch.z_t))


def frozen_copy(module: nn.Module, device: torch.device, dtype: Optional[torch.dtype] = None) -> nn.Module:
    """A copy that no training reaches: in eval mode, without gradients, on `device`.

    dtype: of the weights of its matrix products; norms and tables stay as they are. Run it under autocast to the same dtype.
    """
    # A Lightning module knows its trainer, which knows everything: that stays outside the copy.
    shared = [vars(part).get(name) for part in module.modules() for name in ("_trainer", "trainer")]
    frozen = copy.deepcopy(module, {id(value): value for value in shared if value is not None})
    for part in frozen.modules():
        part.training = False
        if dtype is not None and isinstance(part, (nn.Linear, nn.modules.conv._ConvNd)):
            part.to(dtype)
        if isinstance(vars(part).get("device"), (str, torch.device)):  # where an encoder puts its token ids
            part.device = type(part.device)(device)
    return frozen.requires_grad_(False).to(device)


def _rows(entries: NoisyLatents, rows: Sequence[int]) -> NoisyLatents:
    rows = list(rows)
    frozen = None if entries.frozen is None else entries.frozen[rows]
    return entries._replace(z_t=entries.z_t[rows], t=entries.t[rows], choice=entries.choice.select(rows), frozen=frozen)


def _of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out: torch has no class of its own for that on a CPU."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(said in words for said in ("out of memory", "can't allocate memory", "not enough memory"))


def _device(name: str, whose: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{whose}: device is {name!r}; expected cpu, cuda, cuda:1 and the like") from error


def _dtype(name: str, whose: str) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{whose}: dtype is {name!r}; expected float32, bfloat16 or float16")
    return dtype
