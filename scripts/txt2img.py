"""Draws pictures of prompts with the LDM text-to-image model (LDM-1.4B), with or without learnt words.

python scripts/txt2img.py --ckpt_path model.ckpt --vocabulary vocab.txt --embedding_path logs/RUN/checkpoints/embeddings.pt --prompt "a photo of *"

OUTDIR/samples/NNNN.png, each with its prompt, seed and settings inside, and a grid OUTDIR/PROMPT.png; nothing is overwritten.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.evaluation.command import run_command
from ldm.inference.drawing import Settings
from ldm.inference.files import name_of
from ldm.inference.flags import add_common_flags, add_ldm_flags, config_of, positive
from ldm.inference.text_to_image import Output, Request, draw_to_files, pictures_of_prompts


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", nargs="?", default="a painting of a virus monster playing guitar", help="what to draw")
    add("--outdir", nargs="?", default="outputs/txt2img-samples", help="folder that the pictures go to")
    add("--ddim_steps", type=int, default=200, help="steps of the sampler, exactly so many (200)")
    add("--plms", action="store_true", help="sample by PLMS instead of DDIM")
    add("--ddim_eta", type=float, default=0.0, help="noise added in the steps: 0 none, 1 as much as DDPM")
    add("--n_iter", type=int, default=1, help="how often the batch is drawn, each time with other seeds")
    add("--n_samples", type=int, default=4, help="pictures a batch")
    add("--scale", type=float, default=5.0, help="guidance, 1 for none")
    add_ldm_flags(parser)
    return add_common_flags(parser)


def main(options: argparse.Namespace) -> None:
    """Draws, writes, says where."""
    for name in ("n_iter", "n_samples"):
        positive(f"--{name}", getattr(options, name))
    if options.prompt is None or options.outdir is None:
        raise ValueError("--prompt and --outdir need a value behind them")
    request = Request(
        config=config_of(options.config, options.overrides, options.vocabulary),
        checkpoint=options.ckpt_path,
        embeddings=options.embedding_path,
        pictures=pictures_of_prompts([options.prompt], options.n_iter * options.n_samples, options.seed),
        settings=Settings("PLMS" if options.plms else "DDIM", options.ddim_steps, options.ddim_eta, options.scale),
        height=options.H,
        width=options.W,
        batch_size=options.n_samples,
        device=options.device,
        trust_pickle=options.trust_pickle,
    )
    output = Output(Path(options.outdir), digits=4, grid_name=name_of(options.prompt), columns=options.n_samples, numbered_grid=False)
    written = draw_to_files(request, output)
    print(f"{len(request.pictures)} pictures in {output.folder / 'samples'}, all of them in {written[-1]}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
