"""What the commands that draw share: flags, and how a config comes together from a file and words of the command line."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ldm.evaluation.command import add_device_flag
from ldm.inference.models import VOCABULARY_KEY
from ldm.training.compose import merge


def add_common_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Flags of every command that draws, beside the original's own."""
    group = parser.add_argument_group("of every command that draws")
    add_device_flag(group)
    group.add_argument(
        "--trust-pickle", "--trust_pickle", action="store_true", help="read a checkpoint that holds more than weights: it can run code, so only your own"
    )
    group.add_argument("overrides", nargs="*", metavar="key.sub.key=value", help="any value of the config")
    return parser


def add_vocabulary_flag(parser: argparse.ArgumentParser) -> None:
    """For models whose text encoder is BERT's."""
    parser.add_argument("--vocabulary", metavar="FILE", help="vocab.txt of bert-base-uncased, for models with BERT's text encoder (it is not shipped)")


def add_ldm_flags(parser: argparse.ArgumentParser) -> None:
    """Model, words, size and seed of the commands that draw prompts with LDM-1.4B."""
    add = parser.add_argument
    add("--ckpt_path", required=True, metavar="FILE", help="checkpoint of the model, .ckpt or .safetensors")
    add("--embedding_path", metavar="FILE", help="learnt words; without it those of the checkpoint, if it has any")
    add("--config", default="configs/latent-diffusion/txt2img-1p4B-eval_with_tokens.yaml", help="yaml of the model")
    add("--H", type=int, help="height in pixels; by default that the model was trained on (256)")
    add("--W", type=int, help="width in pixels, likewise")
    add("--seed", type=int, default=42, help="of the first picture; the others count on from it")
    add_vocabulary_flag(parser)


def config_of(paths: str | Path | Sequence[Path], overrides: Sequence[str], vocabulary: str | None = None) -> DictConfig:
    """The yaml files with the words that override them. Raises ValueError for a word that is no override, as it comes of a prompt without quotes."""
    strays = [word for word in overrides if "=" not in word or not word.split("=")[0].strip()]
    if strays:
        raise ValueError(f"{' '.join(strays)}: not understood; expected key.sub.key=value. A prompt of several words needs quotes: --prompt \"a photo of *\"")
    config = merge([paths] if isinstance(paths, (str, Path)) else paths, overrides)
    if vocabulary is not None:
        OmegaConf.update(config, VOCABULARY_KEY, vocabulary, force_add=True)
    return config


def positive(name: str, value: int | None) -> None:
    """Raises ValueError for a count below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
