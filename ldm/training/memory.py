"""How much memory a run will need, from the shapes and dtypes of its own model: not a table, a rehearsal without numbers (`tracing`).

What is counted, in the order in which a run meets it: the weights; what the locality term keeps and does before the first step; gradients and the
optimiser's state; one training step of the second kind (the optimiser's state is there, the last step's gradients are until `zero_grad`), with the
term in it; validation and a preview. The peak is the largest of these.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ldm.training import tracing
from ldm.training.optimizers import optimizers_of
from ldm.training.random_state import isolated
from ldm.training.tracing import LiveBytes, bytes_of

GIB = 2**30
# What a CUDA context and its libraries' kernels and workspaces take of a card before the first tensor; torch's allocator does not count it.
CUDA_CONTEXT = 0.6 * GIB
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Need(NamedTuple):
    """Bytes at the peak, and what they are. `peak` is that of the tensors on the device that trains; `others` come on top (CPU: the process's own)."""

    peak: int
    when: str                      # in which phase the peak comes
    weights: int
    gradients: int
    optimizer: int                 # its state
    optimizer_on_a_card: int       # peak of tensors in the optimiser's step as it is made on a GPU: all parameters at once
    kept_by_term: int              # second network, stored probes

    @property
    def rest(self) -> int:
        """Activations and temporaries."""
        return max(0, self.peak - self.weights - self.gradients - self.optimizer - self.kept_by_term)

    def on_a_card(self) -> int:
        """What a card must have free for this run."""
        return int(max(self.peak, self.optimizer_on_a_card) + CUDA_CONTEXT)


def estimate(model: pl.LightningModule, batch: Any, precision: str = "32-true") -> Need:
    """What training needs on one device.

    model: a `tracing.twin`, its learning rate set, which is used up; batch: one of its batches, None to leave the activations out.
    Raises whatever the model raises where it cannot be run without numbers.
    """
    regularizer = getattr(model, "regularizer", None)
    on = regularizer is not None and regularizer.on
    with tracing.tracing() as live, cast_as(precision):
        tracing.made_fake(model)
        weights, peaks = live.live, {}
        kept = kept_by_term(model, regularizer) if on else []
        kept_bytes = live.live - weights
        if on:
            with phase("while the locality term is prepared", live, peaks), torch.no_grad():
                rehearse_banks(model, regularizer)
            regularizer.weight.weight = 0.0                    # θ₀ is not there to be asked: `rehearse_with_term` stands for it
        before = live.live
        with phase("in the optimiser's step", live, peaks):
            optimizers = with_state(model)
        state = live.live - before
        gradients = bytes_of(p.grad for p in model.parameters() if p.grad is not None)
        live.restart()
        step(foreach(optimizers))
        peak_on_card = live.peak
        if batch is not None:
            rehearse(model, tracing.fake_batch(batch), optimizers, live, peaks, regularizer if on else None)
    del kept
    when = max(peaks, key=peaks.__getitem__)
    return Need(peaks[when], when, weights, gradients, state - gradients, peak_on_card, kept_bytes)


def rehearse(model: pl.LightningModule, batch: Any, optimizers: list[torch.optim.Optimizer], live: LiveBytes, peaks: dict[str, int],
             regularizer: Any) -> None:
    """A step, with the term of a regulariser that is on, and what looks at the model between steps."""
    model.train()
    with phase("in a training step", live, peaks):
        loss = model.shared_step(batch)[0] if regularizer is None else rehearse_with_term(model, regularizer, batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        del loss
    with phase("in validation and previews", live, peaks), torch.no_grad():
        model.eval()
        rehearse_previews(model, batch)


@contextlib.contextmanager
def phase(name: str, live: LiveBytes, peaks: dict[str, int]) -> Iterator[None]:
    """Writes down the peak of what happens inside."""
    live.restart()
    yield
    peaks[name] = live.peak


def cast_as(precision: str) -> contextlib.AbstractContextManager[Any]:
    """What Lightning's precision does to a step."""
    return torch.autocast("cpu", AUTOCAST[precision]) if precision in AUTOCAST else contextlib.nullcontext()


def with_state(model: pl.LightningModule) -> list[torch.optim.Optimizer]:
    """The model's optimisers as they are after a step, gradients and all."""
    optimizers = optimizers_of(model.configure_optimizers())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
    step(optimizers)
    return optimizers


def step(optimizers: list[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()


def foreach(optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """The same optimisers, told to step as torch lets them on a GPU; empty if there is nothing to tell."""
    told = []
    for optimizer in optimizers:
        if "foreach" in optimizer.defaults and optimizer.defaults["foreach"] is None and not optimizer.defaults.get("fused"):
            for group in optimizer.param_groups:
                group["foreach"] = True
            told.append(optimizer)
    return told


def kept_by_term(model: pl.LightningModule, regularizer: Any) -> list[Any]:
    """What the term holds from before the first step on: a second network, or its probes and what the frozen model said at them."""
    teacher, stored = regularizer.teacher, regularizer.teacher.stored(regularizer.latents)
    if stored:
        latent = (stored, model.channels, model.image_size, model.image_size)
        answers = (passes(regularizer), *latent)
        return [torch.empty(latent), torch.empty(answers, dtype=getattr(torch, str(teacher.dtype)))]
    return list(frozen_copies(model, teacher)) if teacher.second_network else []


def frozen_copies(model: pl.LightningModule, teacher: Any) -> Iterator[list[Tensor]]:
    """Tensors as large as the teacher's own network; none where it lies on another device."""
    if teacher.device is None:
        dtype = getattr(torch, str(teacher.dtype), None) if teacher.dtype else None
        for module in model.tuned_modules().values():
            for part in module.modules():
                lower = dtype is not None and isinstance(part, (nn.Linear, nn.modules.conv._ConvNd))
                yield [torch.empty(tensor.shape, dtype=dtype if lower else tensor.dtype) for tensor in (*own(part._parameters), *own(part._buffers))]


def own(tensors: Mapping[str, Tensor | None]) -> Iterator[Tensor]:
    return (tensor for tensor in tensors.values() if tensor is not None)


def rehearse_banks(model: pl.LightningModule, regularizer: Any) -> None:
    """The frozen model's passes before the first step."""
    n = max(regularizer.latents.largest_pass(), passes(regularizer) * max(regularizer.teacher.largest_pass(), regularizer.batch_size))
    model.eval()
    z, t, c = probes(model, n)
    model.apply_model(z, t, c)


def rehearse_with_term(model: pl.LightningModule, regularizer: Any, batch: Any) -> Tensor:
    """As much as a step with the term in it does: the probes' pass with a graph, and the frozen one without where the teacher makes one."""
    n = len(batch[model.first_stage_key]) if regularizer.latents.brings_concat else regularizer.batch_size
    z, t, c = probes(model, n * passes(regularizer))
    if regularizer.share_forward:
        with model.taking_along(z, t, c) as answers:
            loss = model.shared_step(batch)[0]
        (f,) = answers
    else:
        loss, f = model.shared_step(batch)[0], model.apply_model(z, t, c)
    f0 = torch.empty_like(z)
    if not regularizer.teacher.stored(regularizer.latents):
        with torch.no_grad():
            f0 = model.apply_model(z, t, c.detach())
    return loss + (f - f0).pow(2).mean()


def passes(regularizer: Any) -> int:
    """Of each network at a probe."""
    return 2 if regularizer.unconditional else 1


def probes(model: pl.LightningModule, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """n noisy latents, timesteps and encoded prompts."""
    z = torch.empty(n, model.channels, model.image_size, model.image_size)
    return z, torch.zeros(n, dtype=torch.long), model.encode_prompts([""] * n)


def rehearse_previews(model: pl.LightningModule, batch: Any) -> None:
    """Validation with averaged weights in the place of the others, and pictures of samples that were drawn with guidance: two passes as one."""
    with model.ema_scope():
        model.shared_step(batch)
    if hasattr(model, "first_stage_model"):
        z, c = model.get_input(batch, model.first_stage_key)[:2]
        if isinstance(c, Tensor):
            model.apply_model(torch.cat([z, z]), torch.zeros(2 * len(z), dtype=torch.long), torch.cat([c, c]))
        model.decode_first_stage(z)


def example_batch(data: Any, batch_size: int) -> Any:
    """A batch of the first training example, or None for data that cannot be asked. No chance is used up."""
    dataset = getattr(data, "datasets", {}).get("train")
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    with isolated():
        return default_collate([dataset[0]] * batch_size)


def resident() -> int | None:
    """Bytes that this process holds in memory now (RSS); None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def available(device: torch.device) -> int | None:
    """Bytes that this process could have in all on the device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024 + (resident() or 0)
    except (OSError, ValueError, KeyError):
        return None
    with contextlib.suppress(OSError, ValueError):             # a container's own limit; "max" where it has none
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free
