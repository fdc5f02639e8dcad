"""Reading checkpoints of every format, without running what is in them.

A pickled file is read with `weights_only=True`; one that needs more is refused, and the refusal names the flag that allows it.
"""
from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


class StandIn:
    """What a class becomes that a checkpoint mentions beside its weights: nothing of it is imported or run."""


# Checkpoints of Lightning 1 (Stable Diffusion's own among them) mention callbacks by class and scores as numpy's numbers.
CALLBACKS = ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
NUMBERS = (np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType)
HARMLESS = [
    *((StandIn, f"pytorch_lightning.callbacks.{name}") for name in CALLBACKS),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *NUMBERS,
]
_trusted: ContextVar[bool] = ContextVar("trusted", default=False)

GLOBAL = re.compile(r"GLOBAL (\S+)")
SUFFIXES = ".ckpt, .pt, .pth or .safetensors"


def read_state_dict(path: str | Path, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, on the CPU: .safetensors, or pickled with or without a `state_dict` around them.

    Raises FileNotFoundError, or ValueError that says what the file looks like instead of a checkpoint.
    """
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    inner = content.get("state_dict", content)
    tensors = {key: value for key, value in inner.items() if isinstance(value, Tensor)} if isinstance(inner, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path}: holds no named tensors; its keys are {', '.join(map(str, list(content)[:8])) or 'none'}")
    return tensors


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> dict[str, Any]:
    """Everything in a checkpoint file, tensors on the CPU. Of a .safetensors file: its named tensors.

    Raises as `read_state_dict`.
    """
    path = checked(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        content = load_pickled(path, weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {refusal(path, error)}") from error
    except Exception as error:  # a byte that was changed can lead the unpickler to any of them
        raise damaged(path, "a checkpoint", error) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a checkpoint (a dictionary)")
    return dict(content)


def load_pickled(path: Path, *, weights_only: bool) -> Any:
    """torch.load on the CPU; files in today's format are mapped, not read, so that loading needs the memory of the model alone."""
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=weights_only and not _trusted.get(), mmap=zipfile.is_zipfile(path))


@contextmanager
def trusting_pickles(yes: bool = True) -> Iterator[None]:
    """Inside, files that hold more than weights are read too, by whoever reads: the user vouches for them."""
    token = _trusted.set(yes or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, mapped from disk."""
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, ".safetensors", error) from error


def damaged(path: Path, kind: str, error: Exception) -> ValueError:
    """The error for a file that begins like a checkpoint and cannot be read to its end."""
    return ValueError(f"{path}: not readable as {kind}, the file is damaged or was cut short ({first_line(error)}). Copy or download it again.")


def checked(path: str | Path) -> Path:
    """The path of a file that may be a checkpoint, judged by its first bytes.

    Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path} (looked from {Path.cwd()})")
    looks = what_it_looks_like(path)
    if looks is not None:
        raise ValueError(f"{path}: not a checkpoint, it is {looks}. Expected a {SUFFIXES} file with weights.")
    return path


def what_it_looks_like(path: Path) -> str | None:
    """In words, what a file is that cannot be a checkpoint; None where it may be one."""
    if path.is_dir():
        return "a folder"
    if path.stat().st_size == 0:
        return "an empty file (0 bytes)"
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: the weights themselves were not downloaded (run `git lfs pull`)"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "a picture"
    if path.suffix in (".yaml", ".yml"):
        return "a yaml config; config files are given with --base"
    if path.suffix != ".safetensors" and is_text(head):
        if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
            return "a web page, probably saved in place of a download"
        return f"a text file that begins with {head.splitlines()[0][:40].decode(errors='replace')!r}"
    return None


def is_text(head: bytes) -> bool:
    """Whether the first bytes read as text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\n\r\t" for character in text)


def refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Why an unpickling error stopped the reading: more than weights in it, or no checkpoint at all."""
    text = str(error)
    if "weights_only" in text.lower() or "unsupported" in text.lower():
        named = GLOBAL.search(text)
        if named is not None and named[1].endswith(".ParameterDict"):
            return "a file of learnt words, not of weights: it is given with --embedding_manager_ckpt (training) or --embedding_path (sampling)."
        detail = f" ({named[1]})" if named else ""
        return f"holds more than weights{detail}. Reading it can run code hidden in it; if you trust where it comes from, say so with --trust_pickle."
    return f"not a checkpoint, or damaged ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
