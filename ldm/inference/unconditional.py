"""Pictures from a model without a text: unconditional, or of class labels. The work of `scripts/sample_diffusion.py`.

    OUT/samples/<step, 8 digits>/<time>/{img/sample_NNNNNN.png, numpy/NxHxWxC-samples.npz, sampling_config.yaml}
"""
from __future__ import annotations

import datetime
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoints import read_checkpoint
from ldm.evaluation.models import chosen_device
from ldm.evaluation.montage import to_image
from ldm.inference import files
from ldm.inference.drawing import PictureNoise, Settings, check_steps, draw_latents, draw_latents_ancestrally, pictures_of, seeds_from
from ldm.inference.models import open_model
from ldm.inference.sizes import latent_shape
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.training.run_folder import TIME_FORMAT

logger = logging.getLogger(__name__)

CHECKPOINTS = ("model.ckpt", "model.safetensors", "checkpoints/last.ckpt")


class Source(NamedTuple):
    """A checkpoint, the yaml files of its model, and the folder that both belong to."""

    checkpoint: Path
    configs: list[Path]
    folder: Path


@dataclass(frozen=True)
class Request:
    """What is to be drawn. vanilla: all T steps of the diffusion in the place of the settings' sampler; classes: labels in turn, None for all there are."""

    source: Source
    config: DictConfig
    settings: Settings
    vanilla: bool = False
    count: int = 50_000
    batch_size: int = 10
    seed: int = 23
    classes: Sequence[int] | None = None
    device: str | None = None
    trust_pickle: bool = False


def find_source(resume: str | Path) -> Source:
    """What `--resume` names: a folder with config.yaml and model.ckpt, a run folder, or a checkpoint of either.

    Raises FileNotFoundError where one of the two is missing.
    """
    given = Path(resume)
    if given.is_dir():
        checkpoint = next((given / name for name in CHECKPOINTS if (given / name).is_file()), None)
        if checkpoint is None:
            raise FileNotFoundError(f"--resume: {given} holds no checkpoint; expected {', '.join(CHECKPOINTS)}")
        folder = given
    elif given.is_file():
        checkpoint, folder = given, given.parent.parent if given.parent.name == "checkpoints" else given.parent
    else:
        raise FileNotFoundError(f"--resume: cannot find {given} (looked from {Path.cwd()})")
    configs = [folder / "config.yaml"] if (folder / "config.yaml").is_file() else sorted((folder / "configs").glob("*.yaml"))
    if not configs:
        raise FileNotFoundError(f"--resume: {folder} holds neither config.yaml nor configs/*.yaml, so it is not known what model {checkpoint.name} is of")
    return Source(checkpoint, configs, folder)


def draw_to_folder(request: Request, out: Path) -> Path:
    """Draws, writes, returns the new folder. On Ctrl-C the pictures drawn so far stay.

    Raises ValueError or FileNotFoundError; before the model is loaded where that can be known.
    """
    files.check_outdir(out)
    seeds = seeds_from(request.seed, request.count)
    model = open_model(request.config, request.source.checkpoint, device=chosen_device(request.device), trust_pickle=request.trust_pickle)
    labels = labels_of(model, request.classes, request.count)
    shape = latent_shape(model)
    if not request.vanilla:
        check_steps(model, request.settings)
    step = read_checkpoint(request.source.checkpoint, trust_pickle=request.trust_pickle).get("global_step", 0)
    folder = new_folder(out / "samples" / f"{int(step):08}")
    how = {"sampler": "ancestral", "steps": model.num_timesteps} if request.vanilla else asdict(request.settings)
    about = {**how, "checkpoint": request.source.checkpoint.name}
    settings = yaml.safe_dump({**about, "n_samples": request.count, "batch_size": request.batch_size, "seed": request.seed, "classes": request.classes})
    files.write_new(folder, lambda _: "sampling_config.yaml", settings.encode())
    images = folder / "img"
    written: list[Path] = []
    try:
        with model.ema_scope("drawing"):
            for number, drawn in enumerate(drawn_pictures(model, request, seeds, labels, shape)):
                own = {"seed": str(seeds[number]), "settings": about, **({} if labels is None else {"class": str(labels[number])})}
                written.append(files.write_new(images, lambda n: f"sample_{n:06}.png", files.png(to_image(drawn), own), number)[0])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{len(written)} of {request.count} pictures were written and stay in {images}") from None
    write_array(folder / "numpy", written)
    return folder


def labels_of(model: LatentDiffusion, classes: Sequence[int] | None, count: int) -> list[int] | None:
    """A class for each picture, in turn; None for a model without classes. Raises ValueError for a model of another condition, or classes that it lacks."""
    encoder = model.cond_stage_model
    if model.model.conditioning_key is None:
        if classes:
            raise ValueError("--classes: this model is unconditional, it knows no classes")
        return None
    if not isinstance(encoder, ClassEmbedder):
        raise ValueError(
            f"this model is drawn under a condition of another kind (cond_stage_config: {type(encoder).__name__}): "
            "texts by scripts/stable_txt2img.py, masked pictures by scripts/inpaint.py"
        )
    known = encoder.embedding.num_embeddings
    wrong = [label for label in classes or () if not 0 <= label < known]
    if wrong:
        raise ValueError(f"--classes: {', '.join(map(str, wrong))}; this model has the classes 0 to {known - 1}")
    chosen = list(classes or range(known))
    return [chosen[i % len(chosen)] for i in range(count)]


def drawn_pictures(
    model: LatentDiffusion, request: Request, seeds: Sequence[int], labels: Sequence[int] | None, shape: tuple[int, int, int]
) -> Iterator[Tensor]:
    """(3, H, W) in [-1, 1] on the CPU, one after another."""
    steps = model.num_timesteps if request.vanilla else request.settings.steps
    starts = range(0, len(seeds), request.batch_size)
    with tqdm(total=len(starts) * steps, desc="ancestral" if request.vanilla else request.settings.sampler, unit="step") as bar:
        for start in starts:
            noise = PictureNoise(seeds[start : start + request.batch_size], shape)
            conditioning = None
            if labels is not None:
                conditioning = class_condition(model, labels[start : start + request.batch_size])
            options: Mapping[str, Any] = {"conditioning": conditioning, "callback": lambda _step: bar.update()}
            latents = draw_latents_ancestrally(model, noise, **options) if request.vanilla else draw_latents(model, noise, request.settings, **options)
            yield from pictures_of(model, latents)


@torch.no_grad()
def class_condition(model: LatentDiffusion, labels: Sequence[int]) -> Tensor:
    """(B, 1, d) of class labels."""
    return model.get_learned_conditioning({model.cond_stage_model.key: torch.tensor(labels, device=model.device)})


def new_folder(parent: Path) -> Path:
    """A folder that was not there, named by the time. Raises ValueError where it cannot be made."""
    now = datetime.datetime.now()
    while True:
        folder = files.make_folder(parent) / now.strftime(TIME_FORMAT)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # a second run in this second
            now += datetime.timedelta(seconds=1)


def write_array(folder: Path, pictures: Sequence[Path]) -> Path:
    """All pictures as one uint8 array (N, H, W, 3), entry `arr_0` of an .npz file, written picture by picture: 50,000 need not fit into memory."""
    height, width = np.asarray(Image.open(pictures[0])).shape[:2]
    shape = (len(pictures), height, width, 3)
    path = files.make_folder(folder) / f"{'x'.join(map(str, shape))}-samples.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for picture in pictures:
            entry.write(np.asarray(Image.open(picture)).tobytes())
    return path
