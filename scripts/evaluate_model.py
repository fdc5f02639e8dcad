"""Measures a learnt word by CLIP: how alike its samples are to the concept's pictures, and to the rest of the prompt.

python scripts/evaluate_model.py --ckpt_path model.ckpt --embedding_path embeddings.pt --data_dir PICTURES --clip clip-vit-base-patch32 --prompt "a photo of *"

Prints both mean cosines with their range, and what they rest on: encoder, scaling, samples.
"""
from __future__ import annotations

import argparse
import sys

from ldm.evaluation.command import run_command
from ldm.evaluation.models import chosen_device
from ldm.inference.drawing import Settings
from ldm.inference.flags import add_common_flags, add_ldm_flags, config_of, positive
from ldm.inference.prompts import without_words
from ldm.inference.similarity import Similarity, cosines, open_clip, read_pictures
from ldm.inference.text_to_image import Request, open_and_draw, pictures_of_prompts


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", nargs="?", default="a painting of a virus monster playing guitar", help="with the learnt word in it: a photo of *")
    add("--data_dir", required=True, metavar="FOLDER", help="pictures of the concept")
    add("--clip", required=True, metavar="PATH", help="the CLIP that compares: a folder in the Hugging Face layout, or a weights file of the clip package")
    add("--n_samples", type=int, default=64, help="pictures that are drawn (64)")
    add("--ddim_steps", type=int, default=50, help="steps of DDIM (50)")
    add("--scale", type=float, default=5.0, help="guidance, 1 for none (5)")
    add("--batch_size", type=int, default=8, help="pictures at a time (8); changes rounding, not the pictures")
    add_ldm_flags(parser)
    return add_common_flags(parser)


def line(name: str, found: Similarity, pairs: str) -> str:
    """One number with all that it needs to be read."""
    return f"{name}  {found.mean:.4f} ± {found.standard_error:.4f}  mean cosine of {pairs}; single pairs {found.least:.4f} to {found.most:.4f}"


def main(options: argparse.Namespace) -> None:
    """Draws, compares, prints."""
    if options.prompt is None:
        raise ValueError("--prompt needs a text behind it")
    positive("--n_samples", options.n_samples)
    positive("--batch_size", options.batch_size)
    pictures = read_pictures(options.data_dir)
    clip = open_clip(options.clip, chosen_device(options.device))
    request = Request(
        config=config_of(options.config, options.overrides, options.vocabulary),
        checkpoint=options.ckpt_path,
        embeddings=options.embedding_path,
        pictures=pictures_of_prompts([options.prompt], options.n_samples, options.seed),
        settings=Settings("DDIM", options.ddim_steps, 0.0, options.scale),
        height=options.H,
        width=options.W,
        batch_size=options.batch_size,
        device=options.device,
        trust_pickle=options.trust_pickle,
    )
    model, drawn = open_and_draw(request)
    text = without_words(model, options.prompt)
    samples = [picture for _, picture in drawn]
    directions = clip.of_pictures(samples)
    print(line("image similarity", cosines(directions, clip.of_pictures(pictures)), f"{len(samples)} samples × {len(pictures)} pictures"))
    if text:
        print(line("text similarity ", cosines(directions, clip.of_texts([text])), f"{len(samples)} samples × “{text}”"))
    else:
        print("text similarity   not measured: without the learnt word nothing is left of the prompt")
    height, width = samples[0].shape[1:]
    print("range             -1 to 1, higher is more alike; bare cosines, multiplied neither by 100 nor by CLIP's temperature; ± standard error over samples")
    print(f"encoder           {clip.name}")
    print(f"scaling           every picture's shorter side to {clip.side} px (bicubic, antialiased), middle square, CLIP's mean and deviation of colours")
    print(f"samples           {width}×{height} px, {options.ddim_steps} DDIM steps, guidance {options.scale:g}, seeds {options.seed} to "
          f"{options.seed + options.n_samples - 1}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
