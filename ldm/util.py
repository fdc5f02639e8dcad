"""From a `target:` in a yaml file to the object it names, and a few helpers that the whole library shares.

A yaml file comes from anywhere, so a target resolves only within this project and a short list of library classes.
"""
from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

OURS = ("ldm", "main")
# Either a full name or, with a dot at the end, all that lies below it.
LIBRARY_TARGETS = (
    "torch.nn.Identity",
    "torch.optim.",
    "taming.data.faceshq.",
    "pytorch_lightning.callbacks.",
    "pytorch_lightning.loggers.",
    "bitsandbytes.optim.",
)
# The library's constructor downloads weights; ours has its numbers and its keys, and asks no one.
STAND_INS = {"taming.modules.losses.vqperceptual": "ldm.modules.losses.vqperceptual"}
# Conditions that need no module of their own: a yaml writes them where a mapping with `target:` would stand.
NO_MODULE_MARKS = ("__is_first_stage__", "__is_unconditional__")
CHARACTERS_PER_256_PIXELS = 40


def exists(x: Any) -> bool:
    """Whether x is anything but None."""
    return x is not None


def default(val: Any, d: Any) -> Any:
    """`val` unless it is None; otherwise `d`, called first if it is a plain function."""
    if exists(val):
        return val
    return d() if isinstance(d, FunctionType) else d


def instantiate_from_config(config: Mapping[str, Any] | str, **kwargs: Any) -> Any:
    """Build what `config` describes: `{target: dotted.name, params: {...}}`.

    kwargs: joined with `params`. The strings `__is_first_stage__` and `__is_unconditional__` give None.
    Raises KeyError without a `target`; ValueError for a target that does not resolve, for parameters that it
    does not take (with the nearest right spelling) and for required ones that are missing, all of them at once.
    """
    if isinstance(config, str) and config in NO_MODULE_MARKS:
        return None
    if isinstance(config, str) or "target" not in config:
        raise KeyError(f"expected a mapping with `target:` (and, if needed, `params:`), got {config!r}")
    target = get_obj_from_str(config["target"])
    params = config.get("params") or {}
    problems = _faults_of_call(target, [*params, *kwargs])
    problems += [f"{key}: given by the code and by params" for key in params if key in kwargs]
    if problems:
        raise ValueError(f"{config['target']}: " + "; ".join(problems))
    return target(**params, **kwargs)


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The class or function with the dotted name `string`, from `ldm`, `main` or LIBRARY_TARGETS.

    reload: read its module anew first. Raises ValueError for any other name, with the nearest one that exists.
    """
    module_name, _, name = string.rpartition(".")
    module_name = STAND_INS.get(module_name, module_name)
    ours = module_name.split(".")[0] in OURS
    if not ours and not any(string == known or (known.endswith(".") and string.startswith(known)) for known in LIBRARY_TARGETS):
        library = ", ".join(known + "*" if known.endswith(".") else known for known in LIBRARY_TARGETS)
        raise ValueError(f"target {string!r} is not allowed: targets lie in ldm.*, main.* or {library}{_did_you_mean(string)}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Missing is either the named module itself, or something that it needs: the second is no misspelling.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        installed = "" if ours or error.name != string.split(".")[0] else f" (the package {error.name} is not installed)"
        raise ValueError(f"target {string!r}: there is no module {error.name}{installed}{_did_you_mean(string)}") from error
    if reload:
        module = importlib.reload(module)
    if not hasattr(module, name):
        near = _nearest(name, [known for known in dir(module) if not known.startswith("_")])
        hint = f"; did you mean {module_name}.{near}?" if near else _did_you_mean(string)
        raise ValueError(f"target {string!r}: {module_name} has no {name}{hint}")
    return getattr(module, name)


def accepted_parameters(target: Callable[..., Any]) -> frozenset[str] | None:
    """The keyword names that calling `target` takes; None if it takes any name.

    A constructor with `**kwargs` hands them on, so the names of the constructors above it count too.
    """
    names: set[str] = set()
    for function in _constructors(target):
        parameters = inspect.signature(function).parameters.values()
        names.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return frozenset(names - {"self"})
    return None


def log_txt_as_img(wh: tuple[int, int], xc: Sequence[str], size: int = 10) -> torch.Tensor:
    """Each text of `xc` as a picture, black on white, for a row of an image log.

    wh: width and height in pixels; size: of the letters, in pixels. Returns (B, 3, height, width), float32 in [-1, 1].
    """
    width, height = wh
    font = ImageFont.load_default(size)
    columns = max(1, int(CHARACTERS_PER_256_PIXELS * width / 256))
    pages = []
    for text in xc:
        page = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(page).text((0, 0), textwrap.fill(text, columns), fill="black", font=font)
        pages.append(np.asarray(page))
    return torch.from_numpy(np.stack(pages)).permute(0, 3, 1, 2) / 127.5 - 1.0


def ismap(x: Any) -> bool:
    """Whether x is a batch of feature maps: a tensor (B, C, H, W) with C > 3."""
    return isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] > 3


def isimage(x: Any) -> bool:
    """Whether x is a batch of pictures: a tensor (B, C, H, W) with C = 1 or 3."""
    return isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)


def mean_flat(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over all but the first dimension: (B, ...) -> (B,)."""
    return tensor.mean(dim=tuple(range(1, tensor.ndim)))


def count_params(model: torch.nn.Module, verbose: bool = False) -> int:
    """Number of parameters of `model`, trained or not; verbose: also log it in millions."""
    total = sum(p.numel() for p in model.parameters())
    if verbose:
        logger.info("%s has %.2f M parameters", type(model).__name__, total / 1e6)
    return total


def _constructors(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    if not inspect.isclass(target):
        return [target]
    return [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]


def _faults_of_call(target: Callable[..., Any], given: Sequence[str]) -> list[str]:
    try:
        accepted = accepted_parameters(target)
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C, or no function: the call itself will tell
        return []
    faults = []
    if accepted is not None:
        for key in given:
            if key not in accepted:
                near = _nearest(key, accepted)
                faults.append(f"{key}: unknown" + (f", did you mean {near}?" if near else ""))
    for p in parameters:
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default is p.empty and p.name not in given:
            faults.append(f"{p.name}: missing")
    return faults


def _nearest(name: str, known: Sequence[str] | frozenset[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)


def _did_you_mean(target: str) -> str:
    """`; did you mean ...?` for a misspelt target: the nearest module where targets may lie, and in it the nearest name."""
    module_name, _, name = target.rpartition(".")
    near = _nearest(module_name, [known for known in _target_modules() if known != module_name])
    if near is None:
        return ""
    try:
        near_name = _nearest(name, [known for known in dir(importlib.import_module(near)) if not known.startswith("_")])
    except ImportError:
        near_name = None
    return f"; did you mean {near}.{near_name}?" if near_name else f"; the nearest module is {near}"


def _target_modules() -> list[str]:
    root = Path(__file__).parent
    files = (path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py"))
    own = [".".join(path.parts).removesuffix(".__init__") for path in files]
    return ["main", *own, *(known.rpartition(".")[0] for known in LIBRARY_TARGETS)]
