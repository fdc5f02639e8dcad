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
Counting passes, a forward and a backward costing 1 and 2: copy (3·8 + 3·4 + 4) / (3·8) = 1.67, cached (3·8 + 3·4) / (3·8) = 1.5: in both the probes have a
pass of their own, whatever the yaml says (share_forward).
"""
from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ldm.evaluation.step_cost import FORGET_PEAK, Trained, batch_of, peak_bytes, ratio_by_cycles, take_turns

REPOSITORY = Path(__file__).resolve().parents[1]
VARIANTS = ("plain", "copy", "cached", "default", "loss")
PROBES = 4


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
        term.share_forward = False
        term.weight_config.params.every = 1
        term.loss_config = {"target": "ldm.regularization.losses.NoiseMSE"}
        term.teacher_config = {"target": "ldm.regularization.teacher." + ("FrozenCopy" if variant == "copy" else "CachedTeacher")}
    return model


def measure_time(configs: dict[str, DictConfig], options: argparse.Namespace, pixels: int) -> dict[str, float]:
    trained = {name: Trained(config, options.base_checkpoint, learning_rate=options.learning_rate, pixels=pixels) for name, config in configs.items()}
    every = int(configs["default"].params.regularization_config.params.weight_config.params.get("every", 1))
    cycles = max(2, -(-options.rounds // every))
    seconds = take_turns(trained, batch_of(options.batch_size, pixels), warm_up=every, rounds=cycles * every)
    plain = seconds["plain"]
    ratio = {name: ratio_by_cycles(seconds[name], plain, 1) for name in ("copy", "cached")}
    result = {
        "plain_s": statistics.median(plain), "copy_ratio": ratio["copy"], "cached_ratio": ratio["cached"],
        "default_ratio": ratio_by_cycles(seconds["default"], plain, every),
    }  # fmt: skip
    if "loss" in seconds:
        result["loss_ratio"] = ratio_by_cycles(seconds["loss"], seconds["default"], every)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/characters/finetune_unfrozen.yaml", help="the yaml whose twin ends in _reg.yaml")
    parser.add_argument("--base-checkpoint", type=Path, default=REPOSITORY / "assets/characters/model.safetensors")
    parser.add_argument("--batch-size", type=int, help="by default the config's own")
    parser.add_argument("--rounds", type=int, default=40, help="measured steps of each variant")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--loss", help="a loss_config, as yaml, to be compared with the shipped one's")
    options = parser.parse_args()

    plain = OmegaConf.load(options.config)
    regularized = OmegaConf.load(options.config.with_name(options.config.stem + "_reg.yaml"))
    pixels = int(plain.data.params.train.params.size)
    options.batch_size = options.batch_size or int(plain.data.params.batch_size)
    configs = {name: variant_config(plain, regularized, name, options.loss) for name in VARIANTS if name != "loss" or options.loss}
    result = measure_time(configs, options, pixels)
    ratios: dict[str, float | None] = {name: round(value, 4) for name, value in result.items()}
    ratios["cached_extra_memory_ratio"] = None
    if FORGET_PEAK.exists():
        how = {"batch_size": options.batch_size, "learning_rate": options.learning_rate, "pixels": pixels}
        compared = ("plain", "cached", *(("default", "loss") if options.loss else ()))
        peaks = {name: peak_bytes(configs[name], options.base_checkpoint, **how) for name in compared}
        ratios["cached_extra_memory_ratio"] = round((peaks["cached"] - peaks["plain"]) / peaks["plain"], 4)
        if options.loss:
            ratios["loss_memory_ratio"] = round(peaks["loss"] / peaks["default"], 4)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
