"""A model to draw with: the config's networks, a checkpoint's weights, and the learnt words of a file or of that checkpoint."""
from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoints import load_tensors, read_checkpoint, read_state_dict
from ldm.checkpoints.embeddings import read_embeddings
from ldm.checkpoints.keys import NOTES
from ldm.evaluation.models import load_frozen
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.util import instantiate_from_config

MANAGER = "ldm.modules.embedding_manager.EmbeddingManager"
VECTORS = "embedding_manager.string_to_param_dict."
VOCABULARY_KEY = "model.params.cond_stage_config.params.vocabulary"


def open_model(
    config: DictConfig, checkpoint: str | Path, *, embeddings: str | Path | None = None, device: torch.device, trust_pickle: bool = False
) -> LatentDiffusion:
    """The model in eval mode, without gradients, on the device.

    embeddings: a file of learnt words; its words, and how many vectors each has, are the file's affair whatever the config says. Without it the
    checkpoint's own words are taken, and without any a prompt is plain text.
    Raises FileNotFoundError or ValueError for files that are missing or do not belong to that config.
    """
    check_checkpoint(Path(checkpoint), trust_pickle)  # what is wrong with the files is said before minutes go into the model
    if embeddings is not None and not Path(embeddings).is_file():
        raise FileNotFoundError(f"--embedding_path: no file {embeddings} (looked from {Path.cwd()}); a run writes checkpoints/embeddings.pt")
    words = None if embeddings is None else list(read_embeddings(embeddings)[0])
    model = load_frozen(without_training(config), Path(checkpoint), device=torch.device("cpu"), trust_pickle=trust_pickle)
    target = OmegaConf.select(config, "model.params.personalization_config.target") or MANAGER
    if words is not None:
        model.embedding_manager = manager_for(model, target, {"placeholder_strings": words[:1]})
        model.embedding_manager.load(str(embeddings))
    else:
        model.embedding_manager = words_of_checkpoint(model, target, checkpoint, trust_pickle)
    return model.eval().requires_grad_(False).to(device)


def check_checkpoint(path: Path, trust_pickle: bool) -> None:
    """Raises FileNotFoundError or ValueError for a file that is no checkpoint, or one that holds what a run learnt without the network."""
    notes = read_checkpoint(path, trust_pickle=trust_pickle).get(NOTES)
    if isinstance(notes, Mapping) and "base_sha256" in notes:
        raise ValueError(
            f"{path}: holds what its run learnt, and not the network that stayed as it was. Name that network's checkpoint ({notes.get('base_path')}), and "
            f"the words with --embedding_path ({path.parent / 'embeddings.pt'}); low-rank adapters are merged into it first by scripts/export_weights.py"
        )


def without_training(config: DictConfig) -> DictConfig:
    """The config without words, adapters and what weighs them: the words come from files, adapters are merged before a model is drawn with."""
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    params = OmegaConf.select(config, "model.params")
    if isinstance(params, DictConfig):
        for key in ("personalization_config", "adapter_config", "embedding_reg_weight"):
            params.pop(key, None)
    return config


def words_of_checkpoint(model: LatentDiffusion, target: str, checkpoint: str | Path, trust_pickle: bool) -> EmbeddingManager | None:
    """A manager with the words that a checkpoint carries, None where it carries none."""
    vectors = {key.removeprefix(VECTORS): value for key, value in read_state_dict(checkpoint, trust_pickle=trust_pickle).items() if key.startswith(VECTORS)}
    if not vectors:
        return None
    count = len(next(iter(vectors.values())))
    manager = manager_for(model, target, {"placeholder_strings": list(vectors), "num_vectors_per_token": count})
    load_tensors(manager, {f"string_to_param_dict.{word}": vector for word, vector in vectors.items()}, source=str(checkpoint))
    return manager


def manager_for(model: LatentDiffusion, target: str, params: dict) -> EmbeddingManager:
    """An embedding manager for the model's text encoder. Raises ValueError for an encoder that takes no words."""
    return instantiate_from_config({"target": target, "params": params}, embedder=model.cond_stage_model)
