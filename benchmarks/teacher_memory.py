"""What the locality term holds in memory at full size: the frozen network's copy, or the bank of its stored outputs.

python benchmarks/teacher_memory.py --weights BASE [--config configs/stable-diffusion/v1-finetune_unfrozen_reg.yaml] [--samples 2] [--peak GIB]

Two processes, one for each teacher: `FrozenCopy(dtype=bfloat16)` and `CachedTeacher` with the config's own bank, of --samples samples in the place of
its own number (to draw all of them takes a GPU). Of each: bytes of the tensors that it holds, counted once each, and by how much the process's
anonymous memory grew while it was made. What the bank holds is proportional to its samples, so the whole one's size follows; --peak is the
unregularised run's peak (benchmarks/memory_estimate.py), over which it is told. The last line is one JSON object:
    copy_over_weights      memory that the copy took over its own weights (norms and tables of them in float32)
    copy_gib               those weights
    bank_gib               of the config's whole bank, by the tensors
    bank_measured_gib      the same by the memory that the small one took: too much, since what does not grow with its samples is scaled up too
    bank_over_peak         the larger of the two over --peak
Linux only: memory is read from /proc.
"""
from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from load import REPOSITORY, anonymous_bytes
from omegaconf import OmegaConf
from torch import Tensor, nn

from ldm.regularization.teacher import CachedTeacher
from ldm.util import instantiate_from_config

TERM = "model.params.regularization_config.params"
A_PASS = 8  # probes
COPY = {"target": "ldm.regularization.teacher.FrozenCopy", "params": {"dtype": "bfloat16"}}


def tensors_in(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors reachable through containers, modules and our own objects, each once."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type)) or thing is None:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from (tensor for tensor in [*thing.parameters(), *thing.buffers()] if id(tensor) not in seen)
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_in(value, seen)
    elif type(thing).__module__.startswith("ldm.regularization"):
        yield from tensors_in(vars(thing), seen)


def held_bytes(thing: object) -> int:
    """Of the storages behind those tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_in(thing, set())}
    return sum(storages.values())


def settled_memory() -> int:
    """Anonymous bytes once what was freed has gone back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return anonymous_bytes()


@torch.no_grad()
def warm(model: nn.Module) -> None:
    """A pass of the networks like those by which the bank is made: what libraries keep from their first one on is not the term's."""
    z = torch.zeros(A_PASS, model.channels, model.image_size, model.image_size)
    model.apply_model(z, torch.zeros(A_PASS, dtype=torch.long), model.get_learned_conditioning([""] * A_PASS))


def measure(which: str, options: argparse.Namespace) -> dict[str, float]:
    """Builds the model and prepares its term, in this process."""
    config = OmegaConf.load(options.config)
    OmegaConf.update(config, "model.params.ckpt_path", str(options.weights), force_add=True)
    OmegaConf.update(config, "model.params.personalization_config.params.initializer_words", ["sculpture"])
    of_bank = OmegaConf.select(config, f"{TERM}.latents_config.params")
    whole = int(of_bank.samples)
    of_bank.samples, of_bank.ddim_steps, of_bank.cache_dir = options.samples, options.ddim_steps, str(options.cache)
    if which == "copy":
        OmegaConf.update(config, f"{TERM}.teacher_config", COPY, merge=False)
    else:
        OmegaConf.update(config, f"{TERM}.teacher_config.params.cache_dir", str(options.cache), force_add=True)
    model = instantiate_from_config(OmegaConf.to_container(config.model))
    warm(model)
    before = settled_memory()
    model.setup("fit")
    teacher = model.regularizer.teacher
    grew = settled_memory() - before
    result: dict[str, float] = {"grew": grew, "held": held_bytes(model.regularizer), "scale": whole / options.samples}
    if isinstance(teacher, CachedTeacher):
        return result
    return result | {"weights": held_bytes(teacher)}


def in_a_process_of_its_own(which: str) -> dict[str, Any]:
    words = [sys.executable, __file__, *sys.argv[1:], "--measure", which]
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY).stdout
    return json.loads(printed.strip().split("\n")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the config's model, or one drawn by benchmarks/full_size.py")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/stable-diffusion/v1-finetune_unfrozen_reg.yaml")
    parser.add_argument("--samples", type=int, default=2, help="of the bank, in the place of the config's")
    parser.add_argument("--ddim-steps", type=int, default=2, help="by which they are drawn; what they cost to hold does not depend on it")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the small bank")
    parser.add_argument("--peak", type=float, help="GiB that the unregularised run takes at most")
    parser.add_argument("--measure", choices=("copy", "bank"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    copy, bank = (in_a_process_of_its_own(which) for which in ("copy", "bank"))
    print(f"copy: {copy}\nbank: {bank}", file=sys.stderr)
    whole = {name: bank[key] * bank["scale"] / 2**30 for name, key in (("bank_gib", "held"), ("bank_measured_gib", "grew"))}
    result = {"copy_over_weights": copy["grew"] / copy["weights"], "copy_gib": copy["weights"] / 2**30, **whole}
    if options.peak:
        result["bank_over_peak"] = max(whole.values()) / options.peak
    print(json.dumps({key: round(value, 4) for key, value in result.items()}))


if __name__ == "__main__":
    main()
