"""A folder of photographs -> pictures that a network can take.

List (skip what is no picture, once and by name), open (upright, opaque, 8 bits a colour), crop, resize, scale to [-1, 1].
What a phone or a desktop leaves in such a folder is expected here: EXIF rotation, alpha, 16 bits, capital extensions, hidden files.
"""
from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Pillow opens more, but some of it (EPS through Ghostscript) is no photograph and starts other programs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# One latent cell of Stable Diffusion's first stage is 8 pixels wide: a smaller picture shows nothing.
LEAST_SIDE_PIXELS = 8
INTERPOLATIONS = {
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PROGRESS_FROM_PICTURES = 100
NAMES_SHOWN = 8


def list_pictures(folder: str | Path) -> list[Path]:
    """The pictures that lie in `folder` itself, sorted by name; each has been decoded once.

    Hidden files, sub-folders and files that are no pictures are left out; one warning names them.
    Raises FileNotFoundError or NotADirectoryError for a wrong path; ValueError where no picture is left, and for pictures
    that are damaged, too small or too large, all of them in one message.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"data_root: there is no {folder} (looked from {Path.cwd()}); wanted: a folder with pictures in it")
    if not folder.is_dir():
        raise NotADirectoryError(f"data_root: {folder} is a file; wanted: the folder that the pictures lie in, perhaps {folder.parent}")
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    pictures, problems = [], []
    for path in tqdm(files, desc=f"reading {folder}", unit="picture", disable=len(files) < PROGRESS_FROM_PICTURES):
        about = path.stat()
        is_picture, problem = _examine(path, about.st_mtime_ns, about.st_size)
        if problem:
            problems.append(f"{path.name}: {problem}")
        elif is_picture:
            pictures.append(path)
    if problems:
        raise ValueError(f"data_root: {folder} holds {len(problems)} picture(s) that cannot be used; replace or remove:\n  " + "\n  ".join(problems))
    if not pictures:
        raise ValueError(f"data_root: no picture in {folder}; found: {_inventory(entries)}; wanted: pictures ({', '.join(_formats())}) in the folder itself")
    left_out = [entry for entry in entries if entry not in set(pictures)]
    if left_out:
        _say_once(f"{folder}: {len(pictures)} picture(s) used; left out, no pictures: {_names(left_out)}{_advice(left_out)}")
    else:
        logger.info("%s: %d picture(s)", folder, len(pictures))
    return pictures


def open_picture(path: str | Path) -> Image.Image:
    """The picture at `path` as a person sees it: turned as EXIF says, alpha over white, RGB with 8 bits a colour.

    Raises ValueError for a picture that is damaged, too small or too large, or whose range of values is not known.
    """
    try:
        with Image.open(path, formats=_formats()) as file:
            _check_size(*file.size)
            upright = ImageOps.exif_transpose(file)
            upright.load()
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture ({', '.join(_formats())})") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {_too_large(error)}") from error
    except _Unusable as error:
        raise ValueError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's readers raise for broken data
        raise ValueError(f"{path}: damaged ({error})") from error
    try:
        return _to_rgb(upright)
    except (_Unusable, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def centre_square(picture: Image.Image) -> Image.Image:
    """The middle of the picture, as wide and high as its shorter side."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def prepare_picture(path: str | Path, *, size: int | None, centre_crop: bool, interpolation: Image.Resampling) -> Image.Image:
    """Open, crop to the middle if asked, and bring to size × size pixels, whatever the proportions (None: leave them)."""
    picture = open_picture(path)
    if centre_crop:
        picture = centre_square(picture)
    return picture if size is None else picture.resize((size, size), resample=interpolation)


def to_model_range(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 in [-1, 1] from an RGB picture."""
    return np.asarray(picture, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)


class _Unusable(Exception):
    """Why a picture that can be recognised cannot be trained on."""


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def _examine(path: Path, modified_ns: int, bytes_: int) -> tuple[bool, str | None]:
    """Whether the file is a picture, and what is wrong with it. Its date and size are only the key under which the answer is remembered."""
    try:
        with Image.open(path, formats=_formats()) as file:
            _check_size(*file.size)
            _check_mode(file)
            file.draft("RGB", (LEAST_SIDE_PIXELS, LEAST_SIDE_PIXELS))  # JPEG: all of the file is read, little of it computed
            file.load()
    except UnidentifiedImageError:
        return False, None
    except Image.DecompressionBombError as error:
        return True, _too_large(error)
    except _Unusable as error:
        return True, str(error)
    except PermissionError:
        return True, "may not be read (permissions)"
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return True, f"damaged ({error})"
    return True, None


def _check_size(width: int, height: int) -> None:
    if min(width, height) < LEAST_SIDE_PIXELS:
        raise _Unusable(f"{width}×{height} pixels are too few; each side needs at least {LEAST_SIDE_PIXELS}")


def _check_mode(picture: Image.Image) -> None:
    if picture.mode == "F":
        raise _Unusable("floating-point values, whose range is not known; save it with 8 bits a colour")


def _too_large(error: Image.DecompressionBombError) -> str:
    # Pillow refuses twice its MAX_IMAGE_PIXELS (179 megapixels) before anything is decoded.
    return f"too many pixels to be decoded safely, scale it down first ({str(error).partition(',')[0]})"


def _to_rgb(picture: Image.Image) -> Image.Image:
    _check_mode(picture)
    if picture.mode.startswith("I"):  # 16 bits a value: Pillow's own conversion would clip at 255
        values = np.asarray(picture).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise _Unusable("values beyond 16 bits; save it with 8 bits a colour")
        return Image.fromarray(np.rint(values / 257.0).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


@functools.cache
def _say_once(message: str) -> None:
    # A training and a validation set read the same folder.
    logger.warning(message)


def _names(entries: Sequence[Path]) -> str:
    shown = ", ".join(entry.name + ("/" if entry.is_dir() else "") for entry in entries[:NAMES_SHOWN])
    return shown + (f" and {len(entries) - NAMES_SHOWN} more" if len(entries) > NAMES_SHOWN else "")


def _inventory(entries: Sequence[Path]) -> str:
    return _names(entries) + _advice(entries) if entries else "nothing, it is empty"


def _advice(entries: Sequence[Path]) -> str:
    phone = any(entry.suffix.lower() in (".heic", ".heif") for entry in entries)
    return " (save HEIC photographs as JPEG first)" if phone else ""
