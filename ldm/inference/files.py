"""Pictures as files: numbered on from what is there, never over another file, each PNG with what it was drawn from.

A PNG's text chunks hold `prompt`, `seed` and `settings` (JSON); `PIL.Image.open(path).text` reads them.
"""
from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import make_grid

from ldm.checkpoints.writing import why_not_written
from ldm.evaluation.montage import to_image

LONGEST_NAME_BYTES = 150  # of the 255 that most file systems take, numbers and suffix come on top
NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f/]" if os.name == "posix" else r'[\x00-\x1f\x7f/\\:*?"<>|]')


def check_outdir(path: str | Path) -> Path:
    """The folder of that path, whether it is there yet or not; nothing is made. Raises ValueError where it cannot be written."""
    folder = Path(path)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"--outdir {folder}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--outdir {folder}: the folder {existing} cannot be written; name another one")
    return folder


def make_folder(path: Path) -> Path:
    """The folder, made where it was not there. Raises ValueError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {path} cannot be made: {error.strerror}. Name another one with --outdir.") from error
    return path


def next_number(folder: Path, name: str = "") -> int:
    """One more than the largest N among the files `<name>N.<any suffix>` of a folder; 0 without any. Gaps stay gaps."""
    pattern = re.compile(re.escape(name) + r"(\d+)\.[^.]+")
    found = [int(match[1]) for entry in (folder.iterdir() if folder.is_dir() else ()) if (match := pattern.fullmatch(entry.name))]
    return max(found, default=-1) + 1


def write_new(folder: Path, name: Callable[[int], str], content: bytes, number: int = 0) -> tuple[Path, int]:
    """Writes `content` under name(number), or under the first number after it that is free; returns the path and that number.

    Raises ValueError for a disk that is full and a folder that cannot be written; then no file is left.
    """
    make_folder(folder)
    for n in count(number):
        path = folder / name(n)
        try:
            with open(path, "xb") as file:
                try:
                    file.write(content)
                    file.flush()
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise
            return path, n
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"{path} could not be written: {why_not_written(error) or error.strerror}") from error
    raise AssertionError("there is always a larger number")


def write_beside(folder: Path, name: str, content: bytes) -> Path:
    """Writes `<name>.png`, or where that is taken `<name>-0001.png` and so on; returns the path. Raises as `write_new`."""
    return write_new(folder, lambda n: f"{name}-{n:04}.png" if n else f"{name}.png", content)[0]


def png(image: Image.Image, about: Mapping[str, Any] | None = None) -> bytes:
    """The picture as PNG. about: its text chunks; what is no text becomes JSON."""
    chunks = PngInfo()
    for key, value in (about or {}).items():
        chunks.add_text(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def grid(pictures: Sequence[Tensor], columns: int) -> Image.Image:
    """Pictures (3, H, W) in [-1, 1] as one image, in rows of `columns`."""
    return to_image(make_grid(torch.stack(list(pictures)).clamp(-1, 1), nrow=columns, pad_value=-1.0))


def name_of(text: str) -> str:
    """A text as the beginning of a file name: - for spaces, _ for what no name may hold, cut where it is too long."""
    name = NOT_IN_NAMES.sub("_", "-".join(text.split())).lstrip(".")
    return name.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore") or "empty-prompt"
