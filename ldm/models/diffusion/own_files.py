"""Parts of a model that bring their weights or words from files of their own, beside the model's checkpoint."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoints.construction import weights_at_hand
from ldm.util import instantiate_from_config

# Where a part's config names weights: a first stage's checkpoint; a folder, or a file of the clip package.
WEIGHTS = ("ckpt_path", "version", "model")


def weights(config: Any) -> str | None:
    """The file or folder with weights that this part's config names; None where it names none that is there."""
    params = (config.get("params") or {}) if isinstance(config, Mapping) else {}
    return next((str(params[key]) for key in WEIGHTS if isinstance(params.get(key), str) and Path(params[key]).expanduser().exists()), None)


def built(config: Any) -> Any:
    """The part that the config describes; with data, also where the rest of the model waits for a checkpoint, if it names weights."""
    if weights(config) is None:
        return instantiate_from_config(config)
    with weights_at_hand():
        return instantiate_from_config(config)


def words(personalization_config: Mapping[str, Any]) -> str | None:
    """The file of learnt words that the config names."""
    return (personalization_config.get("params") or {}).get("embedding_manager_ckpt") or None
