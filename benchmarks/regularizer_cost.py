"""What the locality term costs a training step: time and memory, with the term over without it.

python benchmarks/regularizer_cost.py [--config configs/characters/finetune_unfrozen.yaml] [--base-checkpoint assets/characters/model.safetensors]
    [--loss '{target: ldm.regularization.losses.ImageSpace, params: {lpips_weight: 0}}']

All variants train side by side in one process and take turns step by step, so that whatever else the machine does meets all of them alike.
The last line is one JSON object:
    plain_s       seconds a step of the unregularised model, the median
    copy_ratio    FrozenCopy, 4 probes in every step, one pass each (NoiseMSE), over plain: median of the rounds' ratios
    cached_ratio  CachedTeacher, likewise
    default_ratio the shipped yaml, with its own probes and its own `every`: median over whole cycles of `every` steps
    cached_extra_memory_ratio  (peak memory of CachedTeacher's step − peak of a plain one) / the latter, each in a process of its own;
                  null where the system does not tell peaks (it is read from /proc)
and with --loss, of the shipped yaml with this loss over the same with its own:
    loss_ratio, loss_memory_ratio  time of a step, median over whole cycles; peak memory
Counting passes, a forward and a backward costing 1 and 2: copy (3·8 + 3·4 + 4) / (3·8) = 1.67, cached (3·8 + 3·4) / (3·8) = 1.5.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import default_collate
from tqdm import tqdm

from ldm.util import get_obj_from_str

REPOSITORY = Path(__file__).resolve().parents[1]
VARIANTS = ("plain", "copy", "cached", "default", "loss")
PROBES = 4
FORGET_PEAK = Path("/proc/self/clear_refs")


def variant_config(plain: DictConfig, regularized: DictConfig, variant: str, loss: str | None) -> DictConfig:
    """The model section of a variant: the shipped yaml's own, with `loss`, or its term with another teacher, 4 probes of one pass, and in every step."""
    if variant == "plain":
        return plain.model
    model = OmegaConf.create(OmegaConf.to_container(regularized.model))
    term = model.params.regularization_config.params
    if variant == "loss":
        term.loss_config = OmegaConf.create(loss)
    elif variant != "default":
        term.batch_size = PROBES
        term.weight_config.params.every = 1
        term.loss_config = {"target": "ldm.regularization.losses.NoiseMSE"}
        term.teacher_config = {"target": "ldm.regularization.teacher." + ("FrozenCopy" if variant == "copy" else "CachedTeacher")}
    return model


def build(config: DictConfig, base_checkpoint: Path, learning_rate: float, pixels: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The model as `main.py` would train it, and its optimiser. There is no Trainer here: steps are counted by hand, and the training set is given."""
    model_class = get_obj_from_str(config.target)
    without_trainer = {
        "steps_done": 0, "global_step": property(lambda self: self.steps_done), "training_items": lambda self: [item_of(pixels)] * 8,
    }  # fmt: skip
    counted = type(model_class.__name__, (model_class,), without_trainer)
    model = counted(**config.params, ckpt_path=str(base_checkpoint))
    model.learning_rate = learning_rate
    model.setup("fit")
    model.train()
    optimizer = model.configure_optimizers()
    return model, optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer["optimizer"]


def item_of(pixels: int) -> dict[str, Any]:
    """A picture of noise with a caption: the time of a step does not depend on what it shows."""
    return {"image": torch.rand(pixels, pixels, 3) * 2 - 1, "caption": "a photo of a *"}


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> float:
    """One training step; its seconds."""
    start = time.perf_counter()
    loss, _ = model.shared_step(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.steps_done += 1
    return time.perf_counter() - start


def measure_time(configs: dict[str, DictConfig], options: argparse.Namespace, pixels: int) -> dict[str, float]:
    trained = {name: build(config, options.base_checkpoint, options.learning_rate, pixels) for name, config in configs.items()}
    batch = default_collate([item_of(pixels) for _ in range(options.batch_size)])
    every = int(configs["default"].params.regularization_config.params.weight_config.params.get("every", 1))
    cycles = max(2, -(-options.rounds // every))
    seconds: dict[str, list[float]] = {name: [] for name in trained}
    for k in tqdm(range(every + cycles * every), desc="steps"):
        for name, (model, optimizer) in trained.items():
            spent = step(model, optimizer, batch)
            if k >= every:  # the first cycle warms up
                seconds[name].append(spent)
    plain = seconds["plain"]
    ratio = {name: statistics.median(a / b for a, b in zip(seconds[name], plain, strict=True)) for name in ("copy", "cached")}

    def per_cycle(name: str, over: str) -> float:
        return statistics.median(sum(seconds[name][i : i + every]) / sum(seconds[over][i : i + every]) for i in range(0, len(plain), every))

    result = {
        "plain_s": statistics.median(plain), "copy_ratio": ratio["copy"], "cached_ratio": ratio["cached"], "default_ratio": per_cycle("default", "plain"),
    }  # fmt: skip
    if "loss" in seconds:
        result["loss_ratio"] = per_cycle("loss", "default")
    return result


def peak_bytes(variant: str, options: argparse.Namespace) -> int:
    """Peak resident memory of steps of one variant, in a process of its own."""
    words = [sys.executable, __file__, "--peak-of", variant, "--config", str(options.config), "--base-checkpoint", str(options.base_checkpoint)]
    words += ["--batch-size", str(options.batch_size), *(["--loss", options.loss] if options.loss else [])]
    printed = subprocess.run(words, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout
    return int(printed.strip().split("\n")[-1])


def print_peak(config: DictConfig, options: argparse.Namespace, pixels: int) -> None:
    """Prints the peak resident memory of steps in this process, in bytes; Linux only."""
    model, optimizer = build(config, options.base_checkpoint, options.learning_rate, pixels)
    batch = default_collate([item_of(pixels) for _ in range(options.batch_size)])
    step(model, optimizer, batch)
    FORGET_PEAK.write_text("5")  # that of building: what counts is held and used while training
    for _ in range(4):
        step(model, optimizer, batch)
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/characters/finetune_unfrozen.yaml", help="the yaml whose twin ends in _reg.yaml")
    parser.add_argument("--base-checkpoint", type=Path, default=REPOSITORY / "assets/characters/model.safetensors")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40, help="measured steps of each variant")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--loss", help="a loss_config, as yaml, to be compared with the shipped one's")
    parser.add_argument("--peak-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()

    plain = OmegaConf.load(options.config)
    regularized = OmegaConf.load(options.config.with_name(options.config.stem + "_reg.yaml"))
    pixels = int(plain.data.params.train.params.size)
    configs = {name: variant_config(plain, regularized, name, options.loss) for name in VARIANTS if name != "loss" or options.loss}
    if options.peak_of:
        print_peak(configs[options.peak_of], options, pixels)
        return
    result = measure_time(configs, options, pixels)
    ratios: dict[str, float | None] = {name: round(value, 4) for name, value in result.items()}
    ratios["cached_extra_memory_ratio"] = None
    if FORGET_PEAK.exists():
        plain_peak, cached_peak = (peak_bytes(name, options) for name in ("plain", "cached"))
        ratios["cached_extra_memory_ratio"] = round((cached_peak - plain_peak) / plain_peak, 4)
        if options.loss:
            ratios["loss_memory_ratio"] = round(peak_bytes("loss", options) / peak_bytes("default", options), 4)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
