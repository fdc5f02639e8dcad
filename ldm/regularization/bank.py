"""What the frozen model drew or said before training: made once, kept on disk, found again by a key.

The key is the SHA-256 of all that determines the content, θ₀'s tensors included. A file that is truncated, or holds something else
than its key says, is made anew. The folder is a cache: it may be deleted at any time.
"""
import contextlib
import hashlib
import inspect
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Union

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, AttributeError, TypeError, ImportError, pickle.UnpicklingError)


def hash_tensors(named_tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over names, shapes and values as fp32, in the order of the names: dtype and device do not matter."""
    digest = hashlib.sha256()
    for name in sorted(named_tensors):
        tensor = named_tensors[name].detach()
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.to("cpu", torch.float32).contiguous().reshape(-1).numpy()))
    return digest.hexdigest()


def hash_facts(facts: Any) -> str:
    """SHA-256, in hexadecimal, of plain values (what json can write), whatever the order of the keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def default_folder() -> Path:
    """Where banks are kept unless `cache_dir` says otherwise: below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm-locality"


def made_once(
    name: str,
    facts: Mapping[str, Any],
    make: Callable[[], Dict[str, Tensor]],
    *,
    cache_dir: Union[str, Path, None] = None,
    rank: int = 0,
    wait: Callable[[], Any] = lambda: None,
) -> Dict[str, Tensor]:
    """What `make` returns, from disk if it was made before with the same `facts`.

    name: what it is, for people. wait: returns when every rank has come to it. Rank 0 makes and writes; the others wait, and make
    their own only where they cannot see its file. A folder that cannot be written costs a warning and the next run's time.
    """
    key = hash_facts({"format": FORMAT, **facts})
    path = Path(cache_dir or default_folder()).expanduser() / f"{name.replace(' ', '-')}-{key[:16]}.pt"
    if rank:
        wait()
    try:
        tensors = _read(path, key)
        if tensors is None:
            _say_why(path, name)
            tensors = make()
            if rank == 0:
                _write(path, key, tensors)
        else:
            logger.info("%s: found in %s", name, path)
    finally:
        if not rank:  # in any case: the others would wait for ever
            wait()
    return tensors


def _say_why(path: Path, name: str) -> None:
    if not path.exists():
        others = len(list(path.parent.glob(f"{name.replace(' ', '-')}-*.pt")))
        beside = f" (there are {others} of other models or settings)" if others else ""
        logger.info("%s: none in %s of this base model and with these settings%s: made now", name, path.parent, beside)


def _read(path: Path, key: str) -> Optional[Dict[str, Tensor]]:
    """The tensors of a whole file with this key, else None."""
    if not path.exists():
        return None
    # Nothing but tensors and plain values is needed, and torch before 1.13 cannot be told so.
    safely = {"weights_only": True} if "weights_only" in inspect.signature(torch.load).parameters else {}
    try:
        content = torch.load(path, map_location="cpu", **safely)
        found = content["key"]
        tensors = dict(content["tensors"])
    except UNREADABLE as error:
        logger.warning("%s cannot be read (%s): made anew", path, str(error).splitlines()[0] if str(error) else type(error).__name__)
        return None
    if found != key or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        logger.warning("%s holds something else than its name says (key %s instead of %s): made anew", path, str(found)[:16], key[:16])
        return None
    return tensors


def _write(path: Path, key: str, tensors: Dict[str, Tensor]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save({"key": key, "tensors": tensors}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        logger.info("kept in %s", path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        logger.warning("%s cannot be written (%s): the next run makes it again; cache_dir names another folder", path, error)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
