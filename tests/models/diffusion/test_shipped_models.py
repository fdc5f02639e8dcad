"""Every diffusion model that a shipped yaml describes is built, without memory for its weights, and has the recorded keys."""
from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from tests.golden.case import REPOSITORY, oracle_file
from tests.modules.text_encoders import BERT_WORDS

MANIFESTS = ["sd_v1", "sd_v1_frozen", "sd_v1_inference", "txt2img_1p4B"]
SHIPPED = sorted(str(path.relative_to(REPOSITORY)) for folder in ("configs", "models") for path in (REPOSITORY / folder).rglob("*.yaml"))
DIFFUSION = [path for path in SHIPPED if "ldm.models.diffusion." in (REPOSITORY / path).read_text()]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A made-up vocabulary for BERT, which ships with nothing."""
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join([*BERT_WORDS, "sculpture", "painting", "toy"]) + "\n", encoding="utf-8")
    return str(path)


def built(path: str, vocabulary: str) -> LatentDiffusion:
    model = OmegaConf.load(REPOSITORY / path).model
    (model.params.first_stage_config.get("params") or {}).pop("ckpt_path", None)  # a published file, not at hand
    encoder = model.params.cond_stage_config
    if not isinstance(encoder, str) and encoder.target.endswith("BERTEmbedder") and encoder.params.get("use_tokenizer", True):
        encoder.params.vocabulary = vocabulary
    with torch.device("meta"):
        return instantiate_from_config(model)


@pytest.mark.parametrize("path", DIFFUSION)
def test_every_shipped_model_can_be_built_and_knows_who_trains(path, vocabulary):
    model = built(path, vocabulary)
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    words = model.embedding_manager is not None
    expected = {"embedding_manager"} if words else {"model"}
    if words and model.unfreeze_model:
        expected |= {"model", "cond_stage_model"}
    if model.adapters is not None:
        expected |= {"model"}
        assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("embedding_manager."))
    if not words and model.cond_stage_trainable:
        expected |= {"cond_stage_model"}
    assert trained == expected
    if model.cond_stage_trainable or not words:
        model.learning_rate = 1e-4
        optimizer = model.configure_optimizers()
        optimizer = optimizer["optimizer"] if model.use_scheduler else optimizer
        assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(parameter.requires_grad for parameter in model.parameters())


def test_models_that_could_not_be_built_elsewhere_are_among_them():
    sweep = json.loads(oracle_file("facts_config_sweep.json").read_text())
    failed = {path for path, outcome in sweep.items() if not outcome.startswith("ok")}
    assert len(failed) == 18 and failed <= set(DIFFUSION)


@pytest.mark.parametrize("name", MANIFESTS)
def test_keys_shapes_and_order_are_those_of_published_checkpoints(name, vocabulary):
    recorded = json.loads(oracle_file(f"manifest_{name}.json").read_text())
    model = built(recorded["config"], vocabulary)
    state = model.state_dict()

    def optional(key: str) -> bool:
        return key.endswith("position_ids") or key.startswith("first_stage_model.loss.")

    wanted = {key: (entry["shape"], entry["dtype"]) for key, entry in recorded["keys"].items() if not optional(key)}
    assert {key: (list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items() if not optional(key)} == wanted
    assert [key for key in state if not optional(key)] == [key for key in recorded["key_order"] if not optional(key)]
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded["n_params"]
    counted = Counter(key.split(".")[0] for key, parameter in model.named_parameters() if parameter.requires_grad)
    assert counted == recorded["requires_grad_true_count_by_prefix"]
    assert "lvlb_weights" not in state and hasattr(model, "lvlb_weights")
