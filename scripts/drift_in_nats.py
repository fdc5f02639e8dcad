"""How far runs have gone from the model that they started from, in nats, prompt by prompt.

python scripts/drift_in_nats.py --base-checkpoint assets/characters/model.safetensors --runs logs/A logs/B \\
    --prompts assets/characters/prompts/heldout.txt --out logs/nats.json

The number bounds the KL divergence between what both models draw for that prompt by unguided sampling of all steps, down to the last noise.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ldm.checkpoints import atomic_write
from ldm.evaluation.command import add_device_flag, add_run_flags, run_command
from ldm.evaluation.models import chosen_device, default_names, open_run, subjects
from ldm.evaluation.nats import NATS_SEED, chains_by_prompt, nats_by_prompt
from ldm.evaluation.prompts import read_prompts
from ldm.regularization.drift import check_counts


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = add_run_flags(argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the numbers go, as JSON")
    parser.add_argument("--trajectories", type=int, default=32, metavar="N", help="of the frozen model, a prompt (32); each takes all of its timesteps")
    parser.add_argument("--draws", type=int, default=32, metavar="N", help="timesteps on each trajectory at which a run is asked (32)")
    parser.add_argument("--blurred-outputs", action="store_true", help="bound pictures blurred by the first step's noise, not the states before the last step")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="latents at a time (64)")
    parser.add_argument("--seed", type=int, default=NATS_SEED, help="of the trajectories")
    add_device_flag(parser)
    return parser


def main(options: argparse.Namespace) -> None:
    """Measures one run after the other, prints a table of each, and writes what is known so far."""
    check_counts(options.trajectories, options.draws)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}; it must be at least 1")
    prompts = [prompt.text for prompt in read_prompts(options.prompts)]
    runs = [open_run(folder) for folder in options.runs]
    names = default_names(runs)
    frozen, *others = subjects(runs, options.base_checkpoint, names=names, device=chosen_device(options.device), trust_pickle=options.trust_pickle)
    settings = {"base_checkpoint": str(options.base_checkpoint), "draws": options.draws, "blurred_outputs": options.blurred_outputs, "seed": options.seed}
    measured: dict[str, dict] = {}
    write(options.out, settings, measured)  # a place that cannot be written is found now
    chains = chains_by_prompt(
        frozen.load(), prompts, trajectories=options.trajectories, draws=options.draws, blurred_outputs=options.blurred_outputs, seed=options.seed,
        batch_size=options.batch_size, progress="frozen",
    )  # fmt: skip
    for subject in others:
        nats = nats_by_prompt(subject.load(), chains, batch_size=options.batch_size)
        measured[subject.name] = {prompt: found._asdict() for prompt, found in nats.items()}
        write(options.out, settings, measured)
        print(f"{subject.name}: nats ± standard error (at most, with 95 % confidence)")
        for prompt, found in nats.items():
            print(f"  {found.mean:9.3f} ± {found.standard_error:.3f} ({found.upper_bound:.3f})  {prompt}")
    print(f"numbers: {options.out}")


def write(path: Path, settings: dict, measured: dict) -> None:
    """All numbers so far, as JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "runs": measured}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
