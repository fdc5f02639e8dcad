"""Fills the masked parts of pictures.

python scripts/inpaint.py --indir data/inpainting_examples --outdir outputs/inpainting

Pairs NAME.png, NAME_mask.png (white: to be filled); results under the same names, and nothing is overwritten.
"""
from __future__ import annotations

import argparse
import sys

from ldm.evaluation.command import run_command
from ldm.inference.drawing import Settings
from ldm.inference.flags import add_common_flags, config_of
from ldm.inference.inpainting import fill_to_files


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--indir", nargs="?", metavar="FOLDER", help="pairs of pictures and masks")
    add("--outdir", nargs="?", metavar="FOLDER", help="folder that the results go to")
    add("--steps", type=int, default=50, help="steps of DDIM (50)")
    add("--config", default="models/ldm/inpainting_big/config.yaml", help="yaml of the model")
    add("--ckpt", default="models/ldm/inpainting_big/last.ckpt", help="checkpoint of the model")
    add("--seed", type=int, default=42, help="of the first picture; the others count on from it")
    return add_common_flags(parser)


def main(options: argparse.Namespace) -> None:
    """Fills, writes, says what."""
    if options.indir is None or options.outdir is None:
        raise ValueError("--indir and --outdir must name a folder each")
    written = fill_to_files(
        config_of(options.config, options.overrides),
        options.ckpt,
        options.indir,
        options.outdir,
        Settings(steps=options.steps),
        seed=options.seed,
        device=options.device,
        trust_pickle=options.trust_pickle,
    )
    for path in written:
        print(path)


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
