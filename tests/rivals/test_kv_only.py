"""Keys and values of the cross-attention are tuned, and the concept's vectors, and nothing else."""
from __future__ import annotations

import pytest
import torch

from ldm.rivals.kv_only import KVOnly
from tests.models.diffusion.tiny import UNET, with_params
from tests.regularization.tiny_runs import fit, plain_model, tensors_of
from tests.rivals.tiny_rivals import built


def test_exactly_keys_values_and_words_move(base, tmp_path):
    model = built(KVOnly, base)
    before = tensors_of(model)
    fit(model, tmp_path, steps=3)
    moved = {name for name, value in tensors_of(model).items() if not torch.equal(value, before[name])}
    expected = {name for name in before if ".attn2." in name and name.split(".")[-2] in ("to_k", "to_v")}
    assert len(expected) > 2 and moved == expected | {"embedding_manager.string_to_param_dict.*"}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == moved


def test_checkpoints_have_the_keys_of_plain_ones(base):
    assert list(built(KVOnly, base).state_dict()) == list(plain_model(base).state_dict())


def test_a_run_of_two_phases_tunes_keys_and_values_in_the_second(base):
    model = built(KVOnly, base, train_embeddings=False)
    words = [group["params"] for group in model.configure_opt_embedding().param_groups]
    assert len(words) == 1 and {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad} == {"embedding_manager"}
    model.configure_opt_model()
    assert {name.split(".")[-2] for name, parameter in model.named_parameters() if parameter.requires_grad} == {"to_k", "to_v"}


def test_without_unfrozen_networks_it_is_refused(base):
    with pytest.raises(ValueError, match="unfreeze_model is false"):
        built(KVOnly, base, unfreeze_model=False)


def test_a_network_without_cross_attention_is_refused():
    blind = with_params(UNET, use_spatial_transformer=False, context_dim=None)
    with pytest.raises(ValueError, match="unet_config has no cross-attention"):
        built(KVOnly, None, unet_config=blind)
