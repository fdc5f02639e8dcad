"""Draws pictures of prompts with a Stable Diffusion v1 checkpoint, or any text-to-image config, with or without learnt words.

python scripts/stable_txt2img.py --ckpt sd-v1-4.ckpt --embedding_path logs/RUN/checkpoints/embeddings.pt --prompt "a photo of *"

OUTDIR/samples/NNNNN.png, each with its prompt, seed and settings inside, and a grid OUTDIR/PROMPT-NNNN.png; nothing is overwritten.
"""
from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ldm.evaluation.command import run_command
from ldm.inference.drawing import PRECISIONS, Settings
from ldm.inference.files import name_of
from ldm.inference.flags import add_common_flags, add_vocabulary_flag, config_of, positive
from ldm.inference.prompts import read_prompt_lines
from ldm.inference.text_to_image import Output, Request, draw_to_files, pictures_of_prompts

logger = logging.getLogger(__name__)

DEFAULTS = {"config": "configs/stable-diffusion/v1-inference.yaml", "ckpt": "models/ldm/stable-diffusion-v1/model.ckpt", "outdir": "outputs/txt2img-samples"}
LAION400M = {
    "config": "configs/latent-diffusion/txt2img-1p4B-eval.yaml", "ckpt": "models/ldm/text2img-large/model.ckpt", "outdir": "outputs/txt2img-samples-laion400m",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", nargs="?", default="a painting of a virus monster playing guitar", help="what to draw")
    add("--outdir", nargs="?", default=DEFAULTS["outdir"], help="folder that the pictures go to")
    add("--skip_grid", action="store_true", help="do not write a grid of all pictures")
    add("--skip_save", action="store_true", help="do not write the single pictures")
    add("--ddim_steps", type=int, default=50, help="steps of the sampler, exactly so many (50)")
    add("--plms", action="store_true", help="sample by PLMS instead of DDIM")
    add("--dpm_solver", action="store_true", help="sample by DPM-Solver++ (needs the package diffusers)")
    add("--laion400m", action="store_true", help="the LAION-400M model of latent diffusion: its config, checkpoint and outdir, where none are named")
    add("--fixed_code", action="store_true", help="one start noise for all pictures, that of --seed")
    add("--ddim_eta", type=float, default=0.0, help="noise added in the steps: 0 none, 1 as much as DDPM")
    add("--n_iter", type=int, default=2, help="how often the batch is drawn, each time with other seeds")
    add("--H", type=int, help="height in pixels; by default that the model was trained on (512 for Stable Diffusion)")
    add("--W", type=int, help="width in pixels, likewise")
    add("--C", type=int, help="channels of the latents; only checked against the model's (4)")
    add("--f", type=int, help="pixels a latent is wide; only checked against the model's (8)")
    add("--n_samples", type=int, default=3, help="pictures a batch; without --from-file also pictures of the prompt a round")
    add("--n_rows", type=int, default=0, help="pictures in a row of the grid (n_samples)")
    add("--scale", type=float, default=7.5, help="guidance, 1 for none")
    add("--from-file", metavar="FILE", help="one prompt a line, in the place of --prompt: n_iter pictures of each")
    add("--config", default=DEFAULTS["config"], help="yaml of the model")
    add("--ckpt", default=DEFAULTS["ckpt"], help="checkpoint of the model, .ckpt or .safetensors")
    add("--seed", type=int, default=42, help="of the first picture of a prompt; the others count on from it")
    add("--precision", choices=PRECISIONS, default="autocast", help="autocast: 16 bits on CUDA, full elsewhere")
    add("--embedding_path", metavar="FILE", help="learnt words; without it those of the checkpoint, if it has any")
    add_vocabulary_flag(parser)
    return add_common_flags(parser)


def main(options: argparse.Namespace) -> None:
    """Draws, writes, says where."""
    if options.laion400m:
        for name, instead in LAION400M.items():
            if getattr(options, name) == DEFAULTS[name]:
                setattr(options, name, instead)
    for name in ("n_iter", "n_samples"):
        positive(f"--{name}", getattr(options, name))
    if options.n_rows < 0:
        raise ValueError(f"--n_rows is {options.n_rows}; it must be at least 1, or 0 for n_samples")
    if options.prompt is None or options.outdir is None:
        raise ValueError("--prompt and --outdir need a value behind them")
    if options.skip_grid and options.skip_save:
        logger.warning("--skip_grid and --skip_save: the pictures are drawn, and nothing is written")
    if options.plms and options.dpm_solver:
        raise ValueError("--plms and --dpm_solver are two samplers: name one")
    sampler = "PLMS" if options.plms else "DPM-Solver++" if options.dpm_solver else "DDIM"
    prompts = read_prompt_lines(options.from_file) if options.from_file else [options.prompt]
    each = options.n_iter if options.from_file else options.n_iter * options.n_samples
    if options.fixed_code and options.ddim_eta == 0 and each > 1:
        logger.warning("--fixed_code without added noise (--ddim_eta 0): the %d pictures of a prompt are all the same", each)
    request = Request(
        config=config_of(options.config, options.overrides, options.vocabulary),
        checkpoint=options.ckpt,
        embeddings=options.embedding_path,
        pictures=pictures_of_prompts(prompts, each, options.seed),
        settings=Settings(sampler, options.ddim_steps, options.ddim_eta, options.scale, options.precision),
        height=options.H,
        width=options.W,
        channels=options.C,
        factor=options.f,
        batch_size=options.n_samples,
        start_seed=options.seed if options.fixed_code else None,
        device=options.device,
        trust_pickle=options.trust_pickle,
    )
    output = Output(
        Path(options.outdir),
        samples=not options.skip_save,
        grid_name=None if options.skip_grid else name_of(Path(options.from_file).stem if options.from_file else options.prompt),
        columns=options.n_rows or options.n_samples,
    )
    written = draw_to_files(request, output)
    last = f", the last is {written[-1].name}" if written else ""
    print(f"{len(request.pictures)} pictures drawn; files written to {output.folder}: {len(written)}{last}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
