"""Each of our weights has one place in diffusers' networks, and both then answer alike: the map that the speed comparison rests on."""
from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from ldm.util import instantiate_from_config
from tests.golden.case import REPOSITORY

pytest.importorskip("diffusers")
UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 2,
    "channel_mult": [1, 2, 2], "num_heads": 4, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 24, "legacy": False,
}  # fmt: skip
FIRST_STAGE = {
    "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2,
    "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def keys():
    spec = importlib.util.spec_from_file_location("diffusers_keys", REPOSITORY / "benchmarks" / "diffusers_keys.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_unets_answer_alike_and_share_their_weights(keys):
    ours = instantiate_from_config({"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": UNET}).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    theirs = keys.unet_twin(ours, UNET).eval()
    assert {id(p) for p in theirs.parameters()} == {id(p) for p in ours.parameters()}
    z, t, c = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 77, 24)
    with torch.no_grad():
        answer = ours(z, t, context=c)
        torch.testing.assert_close(theirs(z, t, encoder_hidden_states=c).sample, answer, atol=1e-4, rtol=1e-4)
    assert answer.std() > 1e-2


def test_the_first_stages_answer_alike(keys):
    config = {"embed_dim": 4, "ddconfig": FIRST_STAGE, "lossconfig": {"target": "torch.nn.Identity"}}
    ours = instantiate_from_config({"target": "ldm.models.autoencoder.AutoencoderKL", "params": config}).eval()
    theirs = keys.first_stage_twin(ours, FIRST_STAGE).eval()
    z, x = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(z).sample, ours.decode(z), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs.encode(x).latent_dist.mean, ours.encode(x).mean, atol=1e-4, rtol=1e-4)
