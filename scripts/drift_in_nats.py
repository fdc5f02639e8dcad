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
from ldm.evaluation.command import run_command
from ldm.evaluation.models import chosen_device, default_names, open_run, subjects
from ldm.evaluation.nats import NATS_SEED, nats_by_prompt
from ldm.evaluation.prompts import read_prompts


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--base-checkpoint", type=Path, required=True, metavar="FILE", help="what the runs started from, .ckpt or .safetensors")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="FOLDER", help="run folders")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="one prompt a line; # begins a remark")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the numbers go, as JSON")
    parser.add_argument("--trajectories", type=int, default=32, metavar="N", help="of the frozen model, a prompt (32); each takes all of its timesteps")
    parser.add_argument("--draws", type=int, default=32, metavar="N", help="timesteps on each trajectory at which a run is asked (32)")
    parser.add_argument("--blurred-outputs", action="store_true", help="bound pictures blurred by the first step's noise, not the states before the last step")
    parser.add_argument("--seed", type=int, default=NATS_SEED, help="of the trajectories")
    parser.add_argument("--device", metavar="NAME", help="by default the machine's accelerator, else cpu")
    parser.add_argument(
        "--trust-pickle", "--trust_pickle", action="store_true", help="read checkpoints that hold more than weights: they can run code, so only your own"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    return parser


def main(options: argparse.Namespace) -> None:
    """Measures every run, prints a table, writes the numbers."""
    prompts = [prompt.text for prompt in read_prompts(options.prompts)]
    runs = [open_run(folder) for folder in options.runs]
    frozen, *others = subjects(
        runs, options.base_checkpoint, names=default_names(runs), device=chosen_device(options.device), trust_pickle=options.trust_pickle
    )
    base, measured = frozen.load(), {}
    for subject in others:
        nats = nats_by_prompt(
            base, subject.load(), prompts, trajectories=options.trajectories, draws=options.draws, blurred_outputs=options.blurred_outputs,
            seed=options.seed, progress=subject.name,
        )  # fmt: skip
        measured[subject.name] = {prompt: found._asdict() for prompt, found in nats.items()}
        print(f"{subject.name}: nats ± standard error (at most, with 95 % confidence)")
        for prompt, found in nats.items():
            print(f"  {found.mean:9.3f} ± {found.standard_error:.3f} ({found.upper_bound:.3f})  {prompt}")
    about = {"base_checkpoint": str(options.base_checkpoint), "draws": options.draws, "blurred_outputs": options.blurred_outputs, "seed": options.seed}
    with atomic_write(options.out) as temporary:
        temporary.write_text(json.dumps({"settings": about, "runs": measured}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"numbers: {options.out}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
