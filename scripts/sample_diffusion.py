"""Draws pictures of an unconditional model, or of a class-conditional one.

python scripts/sample_diffusion.py -r models/ldm/celeba256 -n 100 --batch_size 10 -c 50 -e 0

Into LOGDIR/samples/STEP/TIME: img/sample_NNNNNN.png, numpy/NxHxWxC-samples.npz and sampling_config.yaml.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.evaluation.command import run_command
from ldm.inference.drawing import Settings
from ldm.inference.flags import add_common_flags, config_of, positive
from ldm.inference.unconditional import Request, draw_to_folder, find_source


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("-r", "--resume", nargs="?", metavar="PATH", help="folder with config.yaml and model.ckpt, a run folder, or a checkpoint of either")
    add("-n", "--n_samples", type=int, nargs="?", default=50000, help="how many pictures (50000)")
    add("-e", "--eta", type=float, nargs="?", default=1.0, help="noise added in the steps of DDIM: 0 none, 1 as much as DDPM (1)")
    add("-v", "--vanilla_sample", action="store_true", help="all steps of the diffusion instead of DDIM's")
    add("-l", "--logdir", nargs="?", default="none", metavar="FOLDER", help="where samples/ is made; none: beside the model")
    add("-c", "--custom_steps", type=int, nargs="?", default=50, help="steps of DDIM, exactly so many (50)")
    add("--batch_size", type=int, nargs="?", default=10, help="pictures at a time (10); changes rounding, not the pictures")
    add("--classes", type=int, nargs="+", metavar="N", help="class labels, drawn in turn; all of them unless given")
    add("--seed", type=int, default=23, help="of the first picture; the others count on from it")
    return add_common_flags(parser)


def main(options: argparse.Namespace) -> None:
    """Draws, writes, says where."""
    if options.resume is None:
        raise ValueError("--resume names the model: a folder with config.yaml and model.ckpt, a run folder, or a checkpoint of either")
    for name in ("n_samples", "custom_steps", "batch_size"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} needs a number behind it")
        positive(f"--{name}", getattr(options, name))
    if options.eta is None or options.logdir is None:
        raise ValueError("--eta and --logdir need a value behind them")
    source = find_source(options.resume)
    request = Request(
        source=source,
        config=config_of(source.configs, options.overrides),
        settings=Settings("DDIM", options.custom_steps, options.eta),
        vanilla=options.vanilla_sample,
        count=options.n_samples,
        batch_size=options.batch_size,
        seed=options.seed,
        classes=options.classes,
        device=options.device,
        trust_pickle=options.trust_pickle,
    )
    folder = draw_to_folder(request, source.folder if options.logdir == "none" else Path(options.logdir))
    print(f"{options.n_samples} pictures in {folder / 'img'}, and as one array in {folder / 'numpy'}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
