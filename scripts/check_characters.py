"""Measures the characters model: what its first stage keeps, and whether its samples show what a prompt names.

python scripts/check_characters.py [--model assets/characters/model.safetensors] [--out results/characters_model.json]

Bars: from reconstructions each attribute is read right in ≥ 98 %; on 200 prompts whose combination of attributes never occurred in training
each attribute is drawn as named in ≥ 90 % (DDIM, 50 steps, the guidance of the shipped configs). Two contact sheets stand beside the numbers.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ldm.checkpoints import atomic_write
from ldm.evaluation.attributes import DEFAULT_WEIGHTS, load_classifier
from ldm.evaluation.command import add_device_flag, run_command
from ldm.evaluation.models import chosen_device, load_frozen, sampling_of
from ldm.evaluation.montage import tiles, to_image
from ldm.evaluation.quality import prompt_accuracy, reconstruction_accuracy
from ldm.evaluation.tuning import CHARACTER_BASE, CHARACTER_CONFIGS
from ldm.training.compose import read_config

RECONSTRUCTION_BAR, PROMPT_BAR = 0.98, 0.90


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", type=Path, default=CHARACTER_BASE, metavar="FILE")
    parser.add_argument("--classifiers", type=Path, default=DEFAULT_WEIGHTS, metavar="FILE")
    parser.add_argument("--renders", type=int, default=2000, help="fresh renders that are reconstructed (2000)")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of unseen combinations, a sample each (200)")
    parser.add_argument("--out", type=Path, default=Path("results/characters_model.json"), metavar="FILE")
    add_device_flag(parser)
    return parser


def main(options: argparse.Namespace) -> None:
    """Measures, writes, says which bars are met."""
    config = read_config(CHARACTER_CONFIGS["unregularized"])
    model = load_frozen(config, options.model, device=chosen_device(options.device))
    classifier = load_classifier(options.classifiers)
    sampling = sampling_of(config)
    kept, renders, reconstructions = reconstruction_accuracy(model, classifier, options.renders)
    drawn, prompts, samples = prompt_accuracy(model, classifier, sampling, options.prompts)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "reconstructions": {"renders": options.renders, "read_right": kept},
        "samples": {"prompts": len(prompts), "ddim_steps": sampling.steps, "guidance_scale": sampling.guidance_scale, "drawn_as_named": drawn},
    }
    with atomic_write(options.out) as temporary:
        Path(temporary).write_text(json.dumps(result, indent=1) + "\n")
    pairs = [to_image(picture) for k in range(24) for picture in (renders[k], reconstructions[k])]
    tiles(pairs, columns=12, side=128).save(options.out.with_name(f"{options.out.stem}_reconstructions.png"))
    tiles([to_image(picture) for picture in samples[:48]], columns=12, side=128).save(options.out.with_name(f"{options.out.stem}_samples.png"))
    for name, shares, bar in (("reconstructed", kept, RECONSTRUCTION_BAR), ("drawn as named", drawn, PROMPT_BAR)):
        for attribute, values in shares.items():
            if attribute != "kind" or name == "reconstructed":
                lowest = min((value for value in values if value != "all"), key=values.__getitem__)
                verdict = "met   " if values["all"] >= bar else "MISSED"
                print(f"{verdict} {attribute:12s} {name} {values['all']:.3f} (wanted {bar}); lowest: {lowest} {values[lowest]:.3f}")
    print(f"numbers and contact sheets: {options.out}")


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
