"""Filling the masked part of pictures. The work of `scripts/inpaint.py`.

In a folder, NAME.png and NAME_mask.png (white: to be filled). The network sees, beside the noisy latents, the masked picture's latents and the mask
at their size, joined on channels (Rombach et al. 2022, arXiv 2112.10752, section 4.5).
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ldm.data.images import open_picture, to_model_range
from ldm.evaluation.models import chosen_device
from ldm.evaluation.montage import to_image
from ldm.inference import files
from ldm.inference.drawing import PictureNoise, Settings, check_steps, draw_latents, pictures_of, seeds_from
from ldm.inference.models import open_model
from ldm.inference.sizes import nearest, pixels_per_latent, side_multiple
from ldm.models.diffusion.ddpm import LatentDiffusion

MASK_SUFFIX = "_mask.png"
WHITE_FROM = 0.5


class Pair(NamedTuple):
    """A picture and its mask."""

    picture: Path
    mask: Path


class Masked(NamedTuple):
    """picture: (1, 3, H, W) in [-1, 1]; mask: (1, 1, H, W), 1 where it is to be filled."""

    picture: Tensor
    mask: Tensor

    def blacked_out(self) -> Tensor:
        """The picture, (1, 3, H, W) in [-1, 1], black where it is to be filled."""
        return (self.picture + 1.0) * (1.0 - self.mask) - 1.0


def pairs_in(folder: str | Path) -> list[Pair]:
    """The pairs of a folder, by name. Raises FileNotFoundError or ValueError without any, or for a mask without a picture."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"--indir: no folder {folder} (looked from {Path.cwd()})")
    masks = sorted(folder.glob(f"*{MASK_SUFFIX}"))
    pairs = [Pair(folder / f"{mask.name.removesuffix(MASK_SUFFIX)}.png", mask) for mask in masks]
    alone = [pair.mask.name for pair in pairs if not pair.picture.is_file()]
    if alone:
        raise ValueError(f"--indir: {folder} holds {', '.join(alone)} without the picture of that name; expected pairs NAME.png, NAME{MASK_SUFFIX}")
    if not pairs:
        raise ValueError(f"--indir: {folder} holds no NAME{MASK_SUFFIX}; expected pairs NAME.png, NAME{MASK_SUFFIX} (white: to be filled)")
    return pairs


def read_pair(pair: Pair) -> Masked:
    """Picture and mask as tensors. Raises ValueError for files that are no pictures, or whose sizes differ."""
    picture, mask = open_picture(pair.picture), open_picture(pair.mask).convert("L")
    if picture.size != mask.size:
        sizes = ["×".join(map(str, image.size)) for image in (picture, mask)]
        raise ValueError(f"{pair.mask}: is {sizes[1]} pixels, and {pair.picture.name} is {sizes[0]}; they must be of one size")
    x = torch.from_numpy(to_model_range(picture)).permute(2, 0, 1)[None]
    white = (torch.from_numpy(to_model_range(mask))[None, None] + 1.0) / 2.0 >= WHITE_FROM
    return Masked(x, white.float())


def fill_to_files(
    config: DictConfig, checkpoint: str | Path, indir: str | Path, outdir: str | Path, settings: Settings, *, seed: int = 42, device: str | None = None,
    trust_pickle: bool = False,
) -> list[Path]:
    """Fills every pair of `indir` and writes it under its picture's name to `outdir`; returns the files. On Ctrl-C those written so far stay.

    Raises ValueError or FileNotFoundError; what is wrong with a picture before anything is drawn.
    """
    files.check_outdir(outdir)
    pairs = pairs_in(indir)
    sizes = [read_pair(pair).picture.shape[2:] for pair in pairs]
    seeds = seeds_from(seed, len(pairs))
    model = open_model(config, checkpoint, device=chosen_device(device), trust_pickle=trust_pickle)
    check_model(model)
    check_steps(model, settings)
    check_sizes(model, pairs, sizes)
    written: list[Path] = []
    try:
        with model.ema_scope("drawing"), tqdm(total=len(pairs) * settings.steps, desc=settings.sampler, unit="step") as bar:
            for pair, its_seed in zip(pairs, seeds, strict=True):
                filled = fill(model, read_pair(pair), its_seed, settings, bar)
                about = {"seed": str(its_seed), "settings": {"sampler": settings.sampler, "steps": settings.steps, "checkpoint": Path(checkpoint).name}}
                written.append(files.write_beside(Path(outdir), pair.picture.stem, files.png(to_image(filled), about)))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{len(written)} of {len(pairs)} pictures were written and stay in {outdir}") from None
    return written


def check_model(model: LatentDiffusion) -> None:
    """Raises ValueError unless the network takes the masked picture and the mask on channels."""
    taken, wanted = model.model.diffusion_model.in_channels, 2 * model.channels + 1
    if model.model.conditioning_key != "concat" or taken != wanted or not hasattr(model.cond_stage_model, "encode"):
        raise ValueError(
            f"this model does not fill masks: conditioning_key is {model.model.conditioning_key!r} and its network takes {taken} channels; "
            f"expected concat, {wanted} channels ({model.channels} of the latents, {model.channels} of the masked picture's, 1 of the mask), "
            "and cond_stage_config: __is_first_stage__"
        )


def check_sizes(model: LatentDiffusion, pairs: Sequence[Pair], sizes: Sequence[Sequence[int]]) -> None:
    """Raises ValueError, naming each picture with sides that the model cannot take."""
    multiple = side_multiple(model)
    problems = [
        f"{pair.picture} is {width}×{height} pixels: this model needs sides that are multiples of {multiple}, {' and '.join(wrong)}"
        for pair, (height, width) in zip(pairs, sizes, strict=True)
        if (wrong := [f"{side} → {nearest(side, multiple)}" for side in (width, height) if side % multiple])
    ]
    if problems:
        raise ValueError("; ".join(problems))


@torch.no_grad()
def fill(model: LatentDiffusion, masked: Masked, seed: int, settings: Settings, bar: tqdm) -> Tensor:
    """The picture with its masked part drawn, (3, H, W) in [-1, 1] on the CPU; what is not masked stays as it was."""
    c = condition_of(model, masked)  # (1, channels + 1, h, w)
    noise = PictureNoise([seed], (model.channels, *c.shape[2:]))
    latents = draw_latents(model, noise, settings, conditioning=c, callback=lambda _step: bar.update())
    predicted = pictures_of(model, latents)
    return ((1.0 - masked.mask) * masked.picture + masked.mask * predicted)[0]


def condition_of(model: LatentDiffusion, masked: Masked) -> Tensor:
    """(1, channels + 1, h, w): the first stage's encoding of the picture without its masked part, and the mask in [-1, 1] at that size."""
    f = pixels_per_latent(model)
    encoding = model.get_learned_conditioning(masked.blacked_out().to(model.device))
    mask = F.interpolate(masked.mask.to(model.device) * 2.0 - 1.0, size=[side // f for side in masked.mask.shape[2:]])
    return torch.cat([encoding, mask.to(encoding)], dim=1)
