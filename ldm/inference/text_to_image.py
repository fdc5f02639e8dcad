"""Prompts to files: what `scripts/txt2img.py` and `scripts/stable_txt2img.py` share.

Picture i of a prompt has the seed `seed + i`, whatever the batch size, the other prompts and the device: any one of them can be drawn again alone.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ldm.evaluation.models import chosen_device
from ldm.evaluation.montage import to_image
from ldm.evaluation.sampling import encode_prompts
from ldm.inference import files
from ldm.inference.drawing import PictureNoise, Settings, check_steps, draw_latents, effective, pictures_of, seeds_from
from ldm.inference.models import open_model
from ldm.inference.prompts import tokenizer_of, warn_of_absent_words, warn_of_unread
from ldm.inference.sizes import latent_shape
from ldm.models.diffusion.ddpm import LatentDiffusion


class Picture(NamedTuple):
    """One to be drawn."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Request:
    """What is to be drawn with which model. height, width: pixels, None for those that the model was trained on; channels, factor: C and f, checked.

    start_seed: of one start noise for all pictures, in the place of their own (--fixed_code).
    """

    config: DictConfig
    checkpoint: str
    embeddings: str | None
    pictures: Sequence[Picture]
    settings: Settings
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    factor: int | None = None
    batch_size: int = 4
    start_seed: int | None = None
    device: str | None = None
    trust_pickle: bool = False


@dataclass(frozen=True)
class Output:
    """Where pictures go. digits: of the numbers in `samples`; columns: of the grid; numbered_grid: its name always ends in a number."""

    folder: Path
    digits: int = 5
    samples: bool = True
    grid_name: str | None = None
    columns: int = 3
    numbered_grid: bool = True


def pictures_of_prompts(prompts: Sequence[str], each: int, seed: int) -> list[Picture]:
    """`each` pictures of every prompt. Round by round: all prompts with the first seed, then all with the next."""
    return [Picture(prompt, its_seed) for its_seed in seeds_from(seed, each) for prompt in prompts]


def draw_to_files(request: Request, output: Output) -> list[Path]:
    """Draws and writes, batch after batch; returns the files.

    Raises ValueError or FileNotFoundError, before the model is loaded where that can be known. On Ctrl-C what was drawn so far stays.
    """
    files.check_outdir(output.folder)
    model, pictures = open_and_draw(request)
    request = replace(request, settings=replace(request.settings, precision=effective(request.settings.precision, model.device)))
    folder = files.make_folder(output.folder) / "samples"
    number = files.next_number(folder)
    written: list[Path] = []
    shown: list[Tensor] = []
    try:
        for picture, drawn in pictures:
            if output.samples:
                content = files.png(to_image(drawn), described(picture, drawn, request))
                path, taken = files.write_new(folder, lambda n: f"{n:0{output.digits}}.png", content, number)
                written.append(path)
                number = taken + 1
            shown.append(drawn)
    except KeyboardInterrupt:
        stay = f"{len(written)} of {len(request.pictures)} pictures were written and stay in {folder}" if written else "before a picture was written"
        raise KeyboardInterrupt(stay) from None
    if output.grid_name is not None:
        written.append(write_grid(shown, output, request))
    return written


def open_and_draw(request: Request) -> tuple[LatentDiffusion, Iterator[tuple[Picture, Tensor]]]:
    """The model, and each picture with what was drawn, (3, H, W) in [-1, 1] on the CPU: drawn as they are asked for, batch after batch.

    Raises ValueError or FileNotFoundError; logs what of the prompts does not reach the model.
    """
    model = open_model(
        request.config, request.checkpoint, embeddings=request.embeddings, device=chosen_device(request.device), trust_pickle=request.trust_pickle
    )
    tokenizer_of(model)
    check_steps(model, request.settings)
    shape = latent_shape(model, request.height, request.width, channels=request.channels, factor=request.factor)
    prompts = [picture.prompt for picture in request.pictures]
    warn_of_unread(model, prompts)
    warn_of_absent_words(model, prompts, request.embeddings or request.checkpoint)
    return model, drawn_pictures(model, request, shape)


def drawn_pictures(model: LatentDiffusion, request: Request, shape: tuple[int, int, int]) -> Iterator[tuple[Picture, Tensor]]:
    """What `open_and_draw` gives, from a model that is there."""
    guided = request.settings.scale != 1.0
    batches = [request.pictures[start : start + request.batch_size] for start in range(0, len(request.pictures), request.batch_size)]
    with model.ema_scope("drawing"), tqdm(total=len(batches) * request.settings.steps, desc=request.settings.sampler, unit="step") as bar:
        for batch in batches:
            latents = draw_latents(
                model,
                PictureNoise([picture.seed for picture in batch], shape, request.start_seed),
                request.settings,
                conditioning=encode_prompts(model, [picture.prompt for picture in batch]),
                unconditional=encode_prompts(model, [""] * len(batch)) if guided else None,
                callback=lambda _step: bar.update(),
            )
            yield from zip(batch, pictures_of(model, latents, request.settings.precision), strict=True)


def described(picture: Picture, drawn: Tensor, request: Request) -> dict[str, Any]:
    """What a picture was drawn from, for its file."""
    start = {} if request.start_seed is None else {"start_noise_of_seed": request.start_seed}
    return {"prompt": picture.prompt, "seed": str(picture.seed), "settings": {**settings_of(drawn, request), **start}}


def settings_of(drawn: Tensor, request: Request) -> dict[str, Any]:
    """All but prompt and seed."""
    words = {} if request.embeddings is None else {"embeddings": Path(request.embeddings).name}
    return {**asdict(request.settings), "width": drawn.shape[2], "height": drawn.shape[1], "checkpoint": Path(request.checkpoint).name, **words}


def write_grid(shown: Sequence[Tensor], output: Output, request: Request) -> Path:
    """All pictures in one file beside the folder of samples."""
    seeds = list(dict.fromkeys(picture.seed for picture in request.pictures))
    about = {"prompt": "\n".join(dict.fromkeys(picture.prompt for picture in request.pictures)), "seed": ", ".join(map(str, seeds))}
    content = files.png(files.grid(shown, output.columns), {**about, "settings": settings_of(shown[0], request)})
    name = output.grid_name
    if output.numbered_grid:
        return files.write_new(output.folder, lambda n: f"{name}-{n:04}.png", content, files.next_number(output.folder, f"{name}-"))[0]
    return files.write_beside(output.folder, name, content)
