"""Parts of a model that bring their weights or words from files of their own, beside the model's checkpoint."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.checkpoints import read_state_dict
from ldm.checkpoints.construction import weights_at_hand
from ldm.checkpoints.keys import starts_with
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

# Where a part's config names weights: a first stage's checkpoint; a folder, or a file of the clip package.
WEIGHTS = ("ckpt_path", "version", "model")

FIRST_STAGE = "first_stage_model."


def weights(config: Any) -> str | None:
    """The file or folder with weights that this part's config names; None where it names none that is there."""
    params = (config.get("params") or {}) if isinstance(config, Mapping) else {}
    return next((str(params[key]) for key in WEIGHTS if isinstance(params.get(key), str) and Path(params[key]).expanduser().exists()), None)


def without_unneeded(config: Any, base: str, *, ignore_keys: Sequence[str] = (), trust_pickle: bool = False) -> Any:
    """A first stage's config; without the file that it names where that is not there and the base checkpoint brings a first stage.

    base: the checkpoint that will be loaded whole, but for keys that begin with an entry of `ignore_keys`. Raises as `read_state_dict` for it.
    """
    named = (config.get("params") or {}).get("ckpt_path") if isinstance(config, Mapping) else None
    if not named or Path(named).expanduser().exists():
        return config
    brought = [key for key in read_state_dict(base, trust_pickle=trust_pickle) if key.startswith(FIRST_STAGE) and not starts_with(key, ignore_keys)]
    if not brought:
        return config
    logger.warning("first_stage_config.params.ckpt_path: no file %s; left out, since %s brings a first stage", named, base)
    return {**config, "params": {key: value for key, value in config["params"].items() if key != "ckpt_path"}}


def built(config: Any) -> Any:
    """The part that the config describes; with data, also where the rest of the model waits for a checkpoint, if it names weights."""
    if weights(config) is None:
        return instantiate_from_config(config)
    with weights_at_hand():
        return instantiate_from_config(config)


def words(personalization_config: Mapping[str, Any]) -> str | None:
    """The file of learnt words that the config names."""
    return (personalization_config.get("params") or {}).get("embedding_manager_ckpt") or None
