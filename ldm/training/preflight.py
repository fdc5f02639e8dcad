"""What can go wrong with files and sizes, found before the model is built: folders, weights, numbers that do not fit each other."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoints.reading import checked, read_checkpoint
from ldm.data.images import list_pictures
from ldm.training.compose import PERSONALIZATION, SETS, as_plain
from ldm.training.run_folder import RunFolder
from ldm.training.validation import signature_defaults
from ldm.util import get_obj_from_str, instantiate_from_config


def check(config: DictConfig, folder: RunFolder) -> None:
    """All checks, cheapest first. Raises FileNotFoundError, NotADirectoryError or ValueError."""
    plain = as_plain(config)
    check_writable(folder)
    check_words(plain)
    check_sizes(plain)
    check_files(config)
    for _, params in data_sets(plain):
        if params.get("data_root") is not None:
            list_pictures(params["data_root"])


def check_writable(folder: RunFolder) -> None:
    """The run folder can be made, or written where it is there. Raises ValueError."""
    there = folder.path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"the run folder {folder.path} cannot be made: {there} is a file. Choose another place with --logdir.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"the run folder {folder.path} cannot be made: {there} is not writable. Choose another place with --logdir.")


def check_files(config: DictConfig) -> None:
    """The weights and embeddings to start from are there and look like such."""
    for flag, key in (("--actual_resume", "model.params.ckpt_path"), ("--embedding_manager_ckpt", f"{PERSONALIZATION}.params.embedding_manager_ckpt")):
        path = OmegaConf.select(config, key)
        if path:
            try:
                checked(path)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{flag}: {error}") from None


def check_words(plain: Mapping[str, Any]) -> None:
    """Captions show the word that is learnt, and the text encoder can learn it. Raises ValueError.

    Words, their first vectors and their number are tried on an encoder without weights, in a fraction of a second and before any file is read.
    """
    params = plain["model"].get("params") or {}
    personal = params.get("personalization_config")
    if not personal:
        return
    words = (personal.get("params") or {}).get("placeholder_strings") or []
    for name, data in data_sets(plain):
        token = data.get("placeholder_token")
        if token is not None and words and token not in words:
            raise ValueError(f"data.params.{name}.params.placeholder_token is {token!r}, but {PERSONALIZATION}.params.placeholder_strings are "
                             f"{', '.join(map(repr, words))}: the captions would never show the word that is learnt. --placeholder_string sets both.")
    encoder = params.get("cond_stage_config")
    folder = (encoder.get("params") or {}).get("version") if isinstance(encoder, Mapping) else None
    if isinstance(encoder, Mapping) and not os.path.isdir(str(folder)):
        with torch.device("meta"):
            instantiate_from_config(personal, embedder=instantiate_from_config(encoder))


def check_sizes(plain: Mapping[str, Any]) -> None:
    """The pictures' size, the first stage and the network fit each other. Raises ValueError."""
    model = plain["model"]
    params = model.get("params") or {}
    latent = "first_stage_config" in params
    factor = downsampling(params["first_stage_config"] if latent else model)
    if factor is None:
        return
    for name, data in data_sets(plain):
        size = data.get("size")
        if not isinstance(size, int):
            continue
        key = f"data.params.{name}.params.size"
        if size % factor:
            below, above = size // factor * factor or factor, (size // factor + 1) * factor
            raise ValueError(f"{key} is {size}, which the first stage cannot divide by {factor}: take {below} or {above}")
        check_halvings(key, size, factor, params.get("unet_config"))
        image_size = params.get("image_size")
        if latent and isinstance(image_size, int) and size // factor != image_size:
            pixels = " (that is the size in pixels; the size of the latents is wanted)" if image_size == size and factor > 1 else ""
            raise ValueError(f"model.params.image_size is {image_size}{pixels}, but {key} {size} divided by {factor}, as the first stage does, "
                             f"is {size // factor}: set model.params.image_size: {size // factor}, or {key}: {image_size * factor}")
    if latent:
        check_channels(params)


def check_halvings(key: str, size: int, factor: int, unet_config: Any) -> None:
    """The network can halve pictures of this size as often as it does, and double them back to the same. Raises ValueError."""
    if not isinstance(unet_config, Mapping) or not str(unet_config.get("target", "")).endswith("openaimodel.UNetModel"):
        return
    given = unet_config.get("params") or {}
    levels = given.get("channel_mult") or signature_defaults(get_obj_from_str(unet_config["target"])).get("channel_mult") or (1,)
    halvings = len(levels) - 1
    wanted = factor * 2**halvings
    if size % wanted:
        below, above = size // wanted * wanted or wanted, (size // wanted + 1) * wanted
        what = f"pictures of {size // factor} × {size // factor} latents" if factor > 1 else "pictures of that size"
        raise ValueError(f"{key} is {size}: the network halves {what} {halvings} times, which takes multiples of {wanted} pixels: take {below} or {above}")


def check_channels(params: Mapping[str, Any]) -> None:
    """The latents have as many channels as model and network say. Raises ValueError."""
    first = (params["first_stage_config"] or {}).get("params") or {}
    made, wanted = first.get("embed_dim"), params.get("channels")
    if isinstance(made, int) and isinstance(wanted, int) and made != wanted:
        raise ValueError(f"model.params.channels is {wanted}, but the first stage makes latents of {made} channels (embed_dim)")
    network = (params.get("unet_config") or {}).get("params") or {}
    out = network.get("out_channels")
    if isinstance(out, int) and isinstance(wanted, int) and out not in (wanted, 2 * wanted):
        raise ValueError(f"model.params.unet_config.params.out_channels is {out}, but the latents have {wanted} channels (model.params.channels)")


def downsampling(first_stage: Any) -> int | None:
    """By how much a first stage makes pictures smaller; None where its config does not say."""
    if not isinstance(first_stage, Mapping):
        return None
    if str(first_stage.get("target", "")).endswith(".IdentityFirstStage"):
        return 1
    levels = ((first_stage.get("params") or {}).get("ddconfig") or {}).get("ch_mult")
    return 2 ** (len(levels) - 1) if levels else None


def data_sets(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, parameters with the constructor's defaults) of each data set of the config."""
    sets = (plain.get("data") or {}).get("params") or {}
    for name in SETS:
        config = sets.get(name)
        if isinstance(config, Mapping) and "target" in config:
            defaults = signature_defaults(get_obj_from_str(config["target"]))
            yield name, {**{key: value for key, value in defaults.items() if value is not None}, **(config.get("params") or {})}


def steps_done(path: str | Path) -> int:
    """Optimiser steps of the training whose state a checkpoint holds. Raises ValueError for one that holds weights only."""
    content = read_checkpoint(path)
    lacking = [key for key in ("optimizer_states", "loops", "global_step") if key not in content]
    if lacking:
        raise ValueError(f"--resume: {path} holds weights only (no {', '.join(lacking)}), so there is no run to go on with. "
                         f"To start a new run from these weights: --actual_resume {path}")
    return int(content["global_step"])
