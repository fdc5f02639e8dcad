"""Writing a checkpoint so that at every moment either the old file or the whole new one is there."""
from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FAILED_WRITE = re.compile(rf"os error ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b|PytorchStreamWriter failed|unexpected pos \d+")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; when the block ends without an error it takes the place of `path`.

    The data are on the disk (fsync) before the rename. On any error the temporary file is removed and the old file stays.
    Raises ValueError, naming file and size, where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        flush_to_disk(temporary)
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = why_not_written(error)
        if reason is None:
            raise
        raise ValueError(f"{path} could not be written: {reason}. What was there before is untouched.") from error


def why_not_written(error: BaseException) -> str | None:
    """What a user can do about this error while a file was written, None where it is of another kind."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; make room, or write to another folder"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return "the folder cannot be written; choose another one"
    # torch's zip writer and safetensors report a failed write as an error of their own kind, the cause in its words
    if isinstance(error, Exception) and FAILED_WRITE.search(str(error)):
        return "the disk is full; make room, or write to another folder"
    return None


def flush_to_disk(path: Path) -> None:
    """fsync of a file, or of a folder where the system allows that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


def current_umask() -> int:
    """The permissions that new files do not get; it can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None) -> None:
    """Weights alone, as .safetensors or (under the key `state_dict`) as .ckpt or .pt, by suffix.

    dtype: of the floating-point tensors, None leaves them. metadata: text kept in the file's head (.safetensors) or beside the weights.
    Raises ValueError for another suffix and for a disk that is full.
    """
    path = Path(path)
    tensors = {key: ready_to_save(value, dtype) for key, value in state_dict.items()}
    if path.suffix == ".safetensors":
        with atomic_write(path) as temporary:
            save_file(unshared(tensors), temporary, metadata=dict(metadata) if metadata else None)
    elif path.suffix in (".ckpt", ".pt", ".pth"):
        with atomic_write(path) as temporary:
            torch.save({"state_dict": tensors, **(metadata or {})}, temporary)
    else:
        raise ValueError(f"{path}: weights are written as .safetensors, .ckpt or .pt, not as {path.suffix or 'a file without a suffix'}")


def ready_to_save(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Detached, contiguous, and in `dtype` if it is a floating-point tensor."""
    tensor = tensor.detach()
    return (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one memory: the second gets a copy."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        result[key] = value.clone() if value.numel() and value.untyped_storage().data_ptr() in seen else value
        seen.add(result[key].untyped_storage().data_ptr())
    return result
