"""A model of 64-pixel pictures with a learnt word, random and quick; its configs, with and without the term; runs made by the training command."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from ldm.checkpoints import save_weights
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from tests.models.diffusion.tiny import DEFAULTS, PICTURES, WORDS, with_params
from tests.regularization.tiny_runs import term_config

FIRST_STAGE = with_params(PICTURES, ddconfig={**PICTURES["params"]["ddconfig"], "resolution": 64, "ch_mult": [1, 1, 1, 1]})
WORD = with_params(WORDS, initializer_words=["character"])
PARAMS: dict[str, Any] = {
    **DEFAULTS, "first_stage_config": FIRST_STAGE, "personalization_config": WORD, "unfreeze_model": True, "model_lr": 1.0e-2, "first_stage_key": "image",
}  # fmt: skip


def config(data_root: Path | None = None, *, term: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """What a yaml of the characters model holds, at toy size; term: a regularization_config."""
    data = {"target": "ldm.data.personalized.PersonalizedBase", "params": {"size": 64, "repeats": 4, **({"data_root": str(data_root)} if data_root else {})}}
    regularized = "ldm.models.diffusion.regularized.RegularizedLatentDiffusion"
    return {
        "model": {
            "base_learning_rate": 5.0e-3,
            "target": regularized if term else "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {**copy.deepcopy(PARAMS), **params, **({"regularization_config": term} if term else {})},
        },
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {"batch_size": 2, "num_workers": 0, "train": copy.deepcopy(data), "validation": copy.deepcopy(data)},
        },
        "lightning": {
            "callbacks": {"image_logger": {"target": "main.ImageLogger", "params": {"batch_frequency": 100, "max_images": 1, "disabled": True}}},
            "trainer": {"max_steps": 3, "limit_val_batches": 0},
        },
    }


def write_configs(folder: Path) -> dict[str, Path]:
    """The pair of yaml files by role."""
    paths = {}
    for role, term in (("unregularized", None), ("regularized", term_config(folder / "banks"))):
        paths[role] = folder / f"{role}.yaml"
        paths[role].write_text(yaml.safe_dump(config(term=term)))
    return paths


def write_base(path: Path) -> Path:
    """Weights drawn from seed 0, no layer of the network zero."""
    model = random_model()
    save_weights(path, {key: value for key, value in model.state_dict().items() if not key.startswith("embedding_manager.")})
    return path


def random_model(**params: Any) -> LatentDiffusion:
    """The model in eval mode, from seed 0."""
    torch.manual_seed(0)
    model = instantiate_from_config(OmegaConf.create(config(**params)).model)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05)
    return model.eval().requires_grad_(False)
