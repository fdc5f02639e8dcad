"""Faults of a config that can be seen before anything is built, all of them at once, each with its key and the nearest right spelling."""
from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from ldm.training.arguments import NOT_ON_THE_COMMAND_LINE, trainer_arguments
from ldm.training.callbacks import DEFAULT_CALLBACKS, MODEL_CHECKPOINT, TRAINSTEPS
from ldm.training.compose import as_plain
from ldm.util import NO_MODULE_MARKS, accepted_parameters, get_obj_from_str

SECTIONS = ("model", "data", "lightning")
BLOCK_KEYS = ("target", "params")
# What the models take as a block to build; anything else is one if it says `target:`.
BLOCKS = ("unet_config", "first_stage_config", "cond_stage_config", "lossconfig", "ddconfig", "personalization_config", "regularization_config",
          "adapter_config", "scheduler_config", "optimizer_config")
LIGHTNING_KEYS = ("trainer", "callbacks", "modelcheckpoint", "logger")
NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
# Where a word of the user's stands a number may be meant as text.
WORDS = ("placeholder_strings", "initializer_words", "placeholder_token", "coarse_class_text")
# Blocks that the code builds with arguments of its own: what is missing in the yaml may come from there.
COMPLETED_BY_THE_CODE = ("personalization_config", "regularization_config", "scheduler_config", "optimizer_config")
# Keys that a class takes without naming them in its signature.
ALSO_ACCEPTED = {"ldm.modules.embedding_manager.EmbeddingManager": ("embedding_manager_ckpt",)}
NETWORK_OF_FIRST_STAGE = ("ldm.modules.diffusionmodules.model.Encoder", "ldm.modules.diffusionmodules.model.Decoder")


class ConfigError(ValueError):
    """What is wrong with a config, one line a fault."""

    def __init__(self, faults: list[str]):
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"the config has {count}, nothing was built:\n  " + "\n  ".join(faults))


def check_config(config: DictConfig) -> None:
    """Raises ConfigError with every fault: unknown keys, targets and parameters, missing ones, numbers written as text."""
    plain = as_plain(config)
    faults = [*unknown("", plain, SECTIONS), *missing("", plain, ("model", "data")), *texts(plain)]
    if isinstance(plain.get("model"), Mapping):
        faults += model_faults(plain["model"])
    if isinstance(plain.get("data"), Mapping):
        faults += block("data", plain["data"], BLOCK_KEYS, complete=True)
    if isinstance(plain.get("lightning"), Mapping):
        faults += lightning_faults(plain["lightning"])
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def model_faults(model: Mapping[str, Any]) -> list[str]:
    """Faults of the section model, with what is said better than by a list of keys."""
    faults = missing("model", model, ("base_learning_rate",))
    params = model.get("params") or {}
    regularised = takes_a_regulariser(str(model.get("target", "")))
    if "regularization_config" in params and not regularised:
        faults.append(f"model.params.regularization_config: {model.get('target')} has no such term and would ignore it; "
                      "set model.target to ldm.models.diffusion.regularized.RegularizedLatentDiffusion, or remove the section")
        model = {**model, "params": {key: value for key, value in params.items() if key != "regularization_config"}}
    elif regularised and not params.get("regularization_config"):
        faults.append("model.params.regularization_config: empty, so the regulariser would be off without a word; "
                      "fill it in (weight: 0 switches the term off openly), or set model.target to ldm.models.diffusion.ddpm.LatentDiffusion")
        model = {**model, "params": {key: value for key, value in params.items() if key != "regularization_config"}}
        return faults + [fault for fault in block("model", model, (*BLOCK_KEYS, "base_learning_rate"), complete=True) if "regularization_config" not in fault]
    return faults + block("model", model, (*BLOCK_KEYS, "base_learning_rate"), complete=True)


def takes_a_regulariser(target: str) -> bool:
    """Whether the class of this name, or one that it is made from, has the term. A name that does not resolve is reported elsewhere."""
    try:
        accepted = accepted_parameters(get_obj_from_str(target))
    except (ValueError, ImportError):
        return target.startswith("ldm.models.diffusion.regularized.")
    return accepted is not None and "regularization_config" in accepted


def lightning_faults(lightning: Mapping[str, Any]) -> list[str]:
    """Faults of the section lightning."""
    trainer = [*trainer_arguments(), *(NOT_ON_THE_COMMAND_LINE - {"self", "callbacks", "logger", "plugins"}), "gpus", "resume_from_checkpoint"]
    faults = unknown("lightning", lightning, LIGHTNING_KEYS) + unknown("lightning.trainer", lightning.get("trainer") or {}, trainer)
    faults += block("lightning.logger", lightning.get("logger") or {}, BLOCK_KEYS, complete=False)
    faults += block("lightning.modelcheckpoint", {"target": MODEL_CHECKPOINT, **(lightning.get("modelcheckpoint") or {})}, BLOCK_KEYS, complete=False)
    targets = {**DEFAULT_CALLBACKS, TRAINSTEPS: MODEL_CHECKPOINT}
    for name, callback in (lightning.get("callbacks") or {}).items():
        default = {"target": targets[name]} if name in targets else {}
        faults += block(f"lightning.callbacks.{name}", {**default, **(callback or {})}, BLOCK_KEYS, complete=False)
    return faults


def block(where: str, config: Any, keys: Collection[str], *, complete: bool) -> list[str]:
    """Faults of one `{target, params}` and of those inside it. complete: no argument of the constructor may be missing."""
    if not isinstance(config, Mapping):
        return [] if config is None or config in NO_MODULE_MARKS else [f"{where}: is {config!r}, expected target: and params:"]
    faults = unknown(where, config, keys)
    params = config.get("params") or {}
    if not isinstance(params, Mapping):
        return [*faults, f"{where}.params: is {params!r}, expected keys with values"]
    if "target" in config:
        try:
            target = get_obj_from_str(str(config["target"]))
        except ValueError as error:
            faults.append(f"{where}.target: {error}")
        except ImportError as error:
            faults.append(f"{where}.target: {config['target']} cannot be imported ({error})")
        else:
            faults += call_faults(where, str(config["target"]), target, params, complete=complete)
    elif complete:
        faults.append(f"{where}: has no target: (the class to build)")
    return faults + [fault for key, value in nested(params) for fault in inner(f"{where}.params.{key}", key, value)]


def inner(where: str, key: str, value: Any) -> list[str]:
    """Faults of a block that stands among another one's parameters."""
    if key.rpartition(".")[2] == "ddconfig":
        return unknown(where, value, network_keys()) if isinstance(value, Mapping) else []
    return block(where, value, BLOCK_KEYS, complete=not any(name in where for name in COMPLETED_BY_THE_CODE))


def nested(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, block) of the blocks directly below these parameters, inside lists too."""
    for key, value in params.items():
        if key in BLOCKS or (isinstance(value, Mapping) and "target" in value):
            yield key, value
        elif isinstance(value, list):
            yield from ((f"{key}[{index}]", item) for index, item in enumerate(value) if isinstance(item, Mapping) and "target" in item)


def call_faults(where: str, name: str, target: Callable[..., Any], params: Mapping[str, Any], *, complete: bool) -> list[str]:
    """Parameters that the constructor does not take, lacks, or gets as text."""
    accepted = named_parameters(name, target)
    if accepted is not None and "regularization_config" in where:
        accepted = [*accepted, *(f"{key}_config" for key in accepted)]     # its parts are built first: X_config becomes the argument X
    faults = unknown(f"{where}.params", params, accepted) if accepted is not None else []
    defaults = signature_defaults(target)
    if complete:
        for key, default in defaults.items():
            if default is inspect.Parameter.empty and key not in params:
                hint = "; give --data_root FOLDER" if key == "data_root" else ""
                faults.append(f"{where}.params.{key}: missing, {name} needs it{hint}")
    for key, value in params.items():
        numeric = isinstance(defaults.get(key), (int, float)) and not isinstance(defaults.get(key), bool)
        if numeric and isinstance(value, str):
            faults.append(f"{where}.params.{key}: {value!r} is text, expected a number")
    return faults


def named_parameters(name: str, target: Callable[..., Any]) -> Collection[str] | None:
    """Names that a constructor knows, None where it may know others.

    One of ours that takes any keyword and ignores it (as the original's does) still names those that mean something.
    """
    accepted = accepted_parameters(target)
    if accepted is None and name.startswith("ldm.") and inspect.isclass(target):
        own = [cls for cls in target.__mro__ if cls.__module__.startswith("ldm.") and "__init__" in vars(cls)]
        accepted = {parameter for cls in own for parameter in inspect.signature(vars(cls)["__init__"]).parameters} - {"self", "args", "kwargs"}
    return None if accepted is None else [*accepted, *ALSO_ACCEPTED.get(name, ())]


def signature_defaults(target: Callable[..., Any]) -> dict[str, Any]:
    """Parameter → default of a call, for those that can be given by name.

    A constructor with `**kwargs` hands them on, so those of the constructors above it count too.
    """
    constructors = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object] if inspect.isclass(target) else [target]
    found: dict[str, Any] = {}
    for function in constructors:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):                        # written in C
            break
        by_name = [each for each in parameters.values() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"]
        found = {**{each.name: each.default for each in by_name}, **found}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break
    return found


def network_keys() -> set[str]:
    """Keys of a `ddconfig`: encoder and decoder get the same one, each ignores what is the other's."""
    return {key for name in NETWORK_OF_FIRST_STAGE for key, _ in signature_defaults(get_obj_from_str(name)).items()}


def unknown(where: str, given: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """A fault for each key that is not known here."""
    return [f"{joined(where, key)}: unknown{did_you_mean(str(key), known)}" for key in given if key not in known]


def missing(where: str, given: Mapping[str, Any], required: Collection[str]) -> list[str]:
    """A fault for each key that has to be here and is not."""
    return [f"{joined(where, key)}: missing" for key in required if given.get(key) is None]


def did_you_mean(key: str, known: Collection[str]) -> str:
    """`; did you mean …?`, or what is known here where nothing is near."""
    near = difflib.get_close_matches(key, sorted(map(str, known)), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(sorted(map(str, known)))}" if len(known) <= 8 else ""


def joined(where: str, key: Any) -> str:
    """A dotted key."""
    return f"{where}.{key}" if where else str(key)


def texts(value: Any, where: str = "") -> list[str]:
    """A fault for each number with an exponent that is text: yaml reads `1e-7` so where OmegaConf has not read the file."""
    if isinstance(value, Mapping):
        return [fault for key, item in value.items() if key not in WORDS for fault in texts(item, joined(where, key))]
    if isinstance(value, list):
        return [fault for index, item in enumerate(value) for fault in texts(item, f"{where}[{index}]")]
    if isinstance(value, str) and "e" in value.lower() and NUMBER_AS_TEXT.fullmatch(value.strip()):
        return [f"{where}: {value!r} is text, not a number; write it with a point and without quotes, like 1.0e-7"]
    return []
