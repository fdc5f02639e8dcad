"""Trains the characters model from nothing, stage by stage, and writes what ships under assets/characters/.

python scripts/pretrain_characters.py [--logdir logs/pretrain] [--out assets/characters] [--first-stage FILE]

Stages: first stage on crops round the faces and on whole pictures (FIRST_STAGES) → latents cached → UNet and text encoder → one file in fp16 → classifiers.
Interrupted, it goes on where it stopped when called again; a finished stage is not repeated, unless what it is made from has changed since.
"""
from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from ldm.evaluation.command import run_command
from ldm.evaluation.tuning import file_hash

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST_STAGE = "configs/characters/autoencoder.yaml"
DENOISER = "configs/characters/pretrain.yaml"


def steps(count: int, *, schedule: int) -> tuple[str, str]:
    """Overrides for a run of so many steps on a cosine of `schedule` steps."""
    return f"lightning.trainer.max_steps={count}", f"model.params.scheduler_config.params.max_decay_steps={schedule}"


def rate(learning_rate: float) -> str:
    return f"model.base_learning_rate={learning_rate}"


def colour(weight: float) -> str:
    return f"model.params.lossconfig.params.colour_weight={weight}"


def latent_colour(weight: float) -> str:
    return f"model.params.lossconfig.params.latent_colour_weight={weight}"


def kl(weight: float) -> str:
    return f"model.params.lossconfig.params.kl_weight={weight}"


# Cheap crops first: a quarter of the pixels, and the details that come last are all in the face. Shapes are learnt before colours,
# which get a term of their own from the third stage on, and in the last two channels of their own. Each stage starts from the one before it.
ON_CROPS = (
    "data.params.train.params.crop=32", "data.params.validation.params.crop=32", "data.params.batch_size=8",
    "model.params.scheduler_config.params.lr_min=0.1",
)  # fmt: skip
FIRST_STAGES = {
    "crops": (*ON_CROPS, *steps(5105, schedule=20000), rate(1.5e-3), kl(1e-4), colour(0), latent_colour(0)),
    "settle": (*ON_CROPS, *steps(4977, schedule=7500), kl(1e-4), colour(0), latent_colour(0), "data.params.train.params.seed=1"),
    "colours": (*ON_CROPS, *steps(6500, schedule=6500), kl(1e-4), latent_colour(0), "data.params.train.params.seed=2"),
    "whole": (*steps(3600, schedule=3600), rate(5e-4), kl(2e-3), latent_colour(0), "data.params.train.params.seed=3"),
    "smooth": (*steps(2968, schedule=3600), rate(4e-4), latent_colour(0), "data.params.train.params.seed=4"),
    "channels": (*ON_CROPS, *steps(4500, schedule=4500), kl(2e-3), "data.params.train.params.seed=5"),
    "last": ("data.params.train.params.seed=6",),
}


def command(*words: str) -> None:
    """Runs a Python command of this repository; stops with its exit status when it fails."""
    print("python", *words, flush=True)
    status = subprocess.run([sys.executable, *words], cwd=REPOSITORY).returncode
    if status != 0:
        sys.exit(status)


def fingerprint(*made_from: str | Path | None) -> str:
    """Eight hexadecimal digits that tell files (by their bytes) and words apart: part of a stage's name, so that a stage made otherwise is another one."""
    digest = hashlib.sha256()
    for part in made_from:
        digest.update((file_hash(part) if isinstance(part, Path) else repr(part)).encode() + b"\0")
    return digest.hexdigest()[:8]


def train(stage: str, config: str, logdir: Path, *overrides: str, start_from: Path | None = None) -> Path:
    """Trains `config` in a run folder `<time>_<stage>-<fingerprint>` below logdir, or goes on with the one that is there; returns its last checkpoint."""
    name = f"{stage}-{fingerprint(REPOSITORY / config, *overrides, start_from)}"
    for folder in sorted(logdir.glob(f"*_{name}"), reverse=True):
        last = folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            if not (folder / "finished").is_file():
                command("main.py", "-t", "--no-test", "-r", str(folder), "--scale_lr", "false")
                (folder / "finished").touch()
            return last
    words = ["main.py", "--base", config, "-t", "--no-test", "-n", name, "--logdir", str(logdir), "--scale_lr", "false"]
    command(*words, *(["--actual_resume", str(start_from)] if start_from else []), *overrides)
    folder = sorted(logdir.glob(f"*_{name}"))[-1]
    (folder / "finished").touch()
    return folder / "checkpoints" / "last.ckpt"


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--logdir", type=Path, default=Path("logs/pretrain"))
    parser.add_argument("--out", type=Path, default=Path("assets/characters"))
    parser.add_argument("--first-stage", type=Path, metavar="FILE", help="a trained first stage to build on; without it one is trained")
    return parser


def main(options: argparse.Namespace) -> None:
    """Goes through the stages."""
    first_stage = options.first_stage
    if first_stage is None:
        for name, overrides in FIRST_STAGES.items():
            first_stage = train(name, FIRST_STAGE, options.logdir, *overrides, start_from=first_stage)
    latents = options.logdir / f"latents-{fingerprint(REPOSITORY / FIRST_STAGE, first_stage)}.safetensors"
    if not latents.is_file():
        command("scripts/encode_characters.py", "--config", FIRST_STAGE, "--ckpt", str(first_stage), "--out", str(latents))
    start = options.logdir / f"start-{fingerprint(REPOSITORY / DENOISER)}.safetensors"
    if not start.is_file():
        command("scripts/start_characters.py", "--config", DENOISER, "--out", str(start))
    denoiser = train("denoiser", DENOISER, options.logdir, f"data.params.train.params.path={latents}", start_from=start)
    command("scripts/assemble_characters.py", "--first-stage", str(first_stage), "--denoiser", str(denoiser), "--out", str(options.out / "model.safetensors"))
    if not (options.out / "classifiers.safetensors").is_file():
        command("scripts/train_classifiers.py", "--out", str(options.out / "classifiers.safetensors"))
    command("scripts/check_characters.py", "--model", str(options.out / "model.safetensors"))


if __name__ == "__main__":
    sys.exit(run_command(main, parser()))
