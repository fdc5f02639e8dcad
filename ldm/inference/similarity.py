"""How alike pictures are to other pictures, and to a text, by CLIP: the two numbers of textual inversion.

similarity = mean over all pairs of cos(CLIP(a), CLIP(b))        Gal et al. 2022 (arXiv 2208.01618), section 5; Radford et al. 2021 (arXiv 2103.00020)

A cosine lies in [-1, 1]; nothing here multiplies it by 100 or by CLIP's temperature. What is compared is only as meaningful as the CLIP that is named.
"""
from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize
from transformers import CLIPModel, CLIPTokenizer

from ldm.checkpoints import read_state_dict
from ldm.checkpoints.reading import first_line
from ldm.data.images import list_pictures, open_picture, to_model_range
from ldm.modules.encoders.clip_tokenizer import clip_tokenizer
from ldm.modules.encoders.modules import CLIP_MEAN, CLIP_STD

ENCODED_AT_ONCE = 16
NEEDED_KEYS = ("text_projection", "positional_embedding", "token_embedding.weight", "visual.conv1.weight")


class Clip(NamedTuple):
    """A CLIP. images: (B, 3, side, side) → (B, d); texts: n of them → (n, d), both not yet of length 1; name: what it is, for a report."""

    name: str
    side: int
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor]

    @torch.no_grad()
    def of_pictures(self, pictures: Sequence[Tensor]) -> Tensor:
        """Directions (N, d), each of length 1, of pictures (3, H, W) in [-1, 1] of any sizes."""
        ready = torch.stack([prepared(picture, self.side) for picture in pictures])
        return torch.cat([F.normalize(self.images(chunk).float().cpu(), dim=1) for chunk in ready.split(ENCODED_AT_ONCE)])

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Directions (n, d), each of length 1."""
        return F.normalize(self.texts(texts).float().cpu(), dim=1)


class Similarity(NamedTuple):
    """Cosines of all pairs of a sample with something else, in [-1, 1]. standard_error: of the mean over samples, the others taken as given."""

    mean: float
    standard_error: float
    least: float
    most: float


def cosines(samples: Tensor, others: Tensor) -> Similarity:
    """samples: (N, d), others: (M, d), all of length 1."""
    pairs = samples @ others.T  # (N, M)
    by_sample = pairs.mean(dim=1)
    error = by_sample.std() / len(by_sample) ** 0.5 if len(by_sample) > 1 else torch.tensor(float("nan"))
    return Similarity(pairs.mean().item(), error.item(), pairs.min().item(), pairs.max().item())


def prepared(picture: Tensor, side: int) -> Tensor:
    """A picture (3, H, W) in [-1, 1] as CLIP was trained on: shorter side to `side` (bicubic, antialiased), the middle square, normalised."""
    x = resize((picture.float() + 1.0) / 2.0, [side], interpolation=InterpolationMode.BICUBIC, antialias=True)
    x = center_crop(x.clamp(0.0, 1.0), [side, side])
    return (x - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def read_pictures(folder: str | Path) -> list[Tensor]:
    """The pictures of a folder, (3, H, W) in [-1, 1]. Raises ValueError or OSError without any."""
    try:
        paths = list_pictures(folder)
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace("data_root:", "--data_dir:")) from error
    return [torch.from_numpy(to_model_range(open_picture(path))).permute(2, 0, 1) for path in paths]


def open_clip(path: str | Path, device: torch.device) -> Clip:
    """The CLIP of a folder in the Hugging Face layout, or of a weights file of the clip package; in fp32, nothing is downloaded.

    Raises FileNotFoundError for a path where nothing is, ValueError where it is no CLIP.
    """
    path = Path(path)
    if path.is_dir():
        return clip_of_folder(path, device)
    if path.is_file():
        return clip_of_file(path, device)
    raise FileNotFoundError(
        f"--clip: there is no {path} (looked from {Path.cwd()}); name a folder in the Hugging Face layout (clip-vit-base-patch32), "
        "or a weights file of the clip package (ViT-B-32.pt). Nothing is downloaded."
    )


def clip_of_folder(folder: Path, device: torch.device) -> Clip:
    """A `transformers.CLIPModel`."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"--clip: the folder {folder} has no config.json; expected config and weights of a CLIP model in the Hugging Face layout")
    try:
        model, report = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # whatever config.json of another model leads to
        raise ValueError(f"--clip: the folder {folder} is not readable as a CLIP model ({first_line(error)})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"--clip: the weights in {folder} lack {len(missing)} tensors of a CLIP model, e.g. {missing[0]}")
    own_tokenizer = (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True) if own_tokenizer else clip_tokenizer()
    model = model.eval().to(device)
    vision = model.config.vision_config

    def texts(given: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(given), truncation=True, max_length=model.config.text_config.max_position_embeddings, padding=True, return_tensors="pt")
        return _features(model.get_text_features(**tokens.to(device)))

    name = f"{folder.resolve().name} (transformers, patches of {vision.patch_size} at {vision.image_size} px, {model.config.projection_dim} dimensions)"
    return Clip(name, vision.image_size, lambda x: _features(model.get_image_features(pixel_values=x.to(device))), texts)


def clip_of_file(path: Path, device: torch.device) -> Clip:
    """A model of the clip package, whose tokenizer pads with 0: a TorchScript archive as it was published, or named tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what that package imports, and of TorchScript's end: nothing that a user can mend
        from clip import tokenize
        from clip.model import build_model

        tensors = clip_tensors(path)
        missing = [key for key in NEEDED_KEYS if key not in tensors]
        if missing:
            raise ValueError(f"--clip: {path} is no weights file of the clip package: it has no tensor {missing[0]}; it begins with {next(iter(tensors))}")
        try:
            model = build_model(tensors).float().eval().to(device)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"--clip: the tensors in {path} are not those of a CLIP model ({first_line(error)})") from error
    side = model.visual.input_resolution
    name = f"{path.name} (clip package, {side} px, {model.text_projection.shape[1]} dimensions)"
    return Clip(name, side, lambda x: model.encode_image(x.to(device)), lambda given: model.encode_text(tokenize(list(given), truncate=True).to(device)))


def clip_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive, or of any checkpoint. Raises as `read_state_dict`."""
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    return read_state_dict(path)


def _features(output: Any) -> Tensor:
    # transformers returns the projected features bare, or in a record, by version
    return output if isinstance(output, Tensor) else output.pooler_output
