"""LPIPS: equal to taming's with the same weights, silent never without weights."""
from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from ldm.modules.losses.perceptual import LPIPS


def random_weights(lpips: LPIPS) -> dict[str, torch.Tensor]:
    """Weights under which features neither die nor explode; those of the distance are >= 0, as learnt ones are."""
    with torch.no_grad():
        for name, weight in lpips.named_parameters():
            if name.startswith("lin"):
                weight.uniform_(0.0, 1.0)
            elif name.endswith("weight"):
                nn.init.kaiming_normal_(weight)
            else:
                weight.uniform_(-0.1, 0.1)
    return lpips.state_dict()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return random_weights(LPIPS())


@pytest.fixture
def lpips(weights) -> LPIPS:
    module = LPIPS()
    module.load_state_dict(weights)
    return module


def taming_lpips(monkeypatch) -> nn.Module:
    """taming's class, built without its two downloads (the module imports `requests` for one of them)."""
    monkeypatch.setitem(sys.modules, "requests", sys.modules.get("requests", ModuleType("requests")))
    module = pytest.importorskip("taming.modules.losses.lpips")
    from torchvision.models import vgg

    monkeypatch.setattr(module.models, "vgg16", lambda pretrained: nn.Sequential())
    monkeypatch.setattr(nn.Sequential, "features", vgg.make_layers(vgg.cfgs["D"]), raising=False)
    monkeypatch.setattr(module.LPIPS, "load_from_pretrained", lambda self: None)
    return module.LPIPS().eval()


def test_distance_and_gradient_are_tamings(lpips, weights, monkeypatch):
    theirs = taming_lpips(monkeypatch)
    assert list(theirs.state_dict()) == list(weights)
    theirs.load_state_dict(weights)
    x, y = torch.rand(2, 2, 3, 16, 32) * 2 - 1
    y.requires_grad_(True)
    distance = lpips(x, y)
    expected = theirs(x, y)
    assert distance.shape == (2, 1, 1, 1)
    torch.testing.assert_close(distance, expected, atol=1e-5, rtol=1e-4)
    gradient, expected_gradient = (torch.autograd.grad(value.sum(), y)[0] for value in (distance, expected))
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-4 * expected_gradient.abs().max().item(), rtol=0)


def test_distance_is_a_distance(lpips):
    x, y = torch.rand(2, 1, 3, 16, 16)
    assert lpips(x, x).item() == 0.0
    assert lpips(x, y).item() > 0.0
    torch.testing.assert_close(lpips(x, y), lpips(y, x))


def test_distance_is_the_same_in_training(lpips):
    x, y = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(lpips.train()(x, y), lpips.eval()(x, y))
    assert not any(weight.requires_grad for weight in lpips.parameters())


def test_without_weights_it_refuses_and_says_what_to_do():
    x = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="perceptual_ckpt.*perceptual_weight: 0"):
        LPIPS()(x, x)


def test_half_the_weights_are_not_enough(weights):
    module = LPIPS()
    module.adopt({key: value for key, value in weights.items() if key.startswith("lin")})
    x = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"net\.slice1\.0\.weight"):
        module(x, x)


def test_weights_are_adopted_from_torchvision_and_from_a_checkpoint(lpips, weights):
    x, y = torch.rand(2, 1, 3, 16, 16)
    of_torchvision = {f"features.{key.split('.', 2)[2]}": value for key, value in weights.items() if key.startswith("net.")}
    of_torchvision["classifier.0.weight"] = torch.zeros(1)
    linear = {key: value for key, value in weights.items() if key.startswith("lin")}
    in_parts, at_once = LPIPS(), LPIPS()
    in_parts.adopt(of_torchvision)
    in_parts.adopt(linear)
    at_once.adopt({f"first_stage_model.loss.perceptual_loss.{key}": value for key, value in weights.items()})
    assert torch.equal(in_parts(x, y), lpips(x, y))
    assert torch.equal(at_once(x, y), lpips(x, y))


def test_what_is_no_weights_is_an_error():
    with pytest.raises(ValueError, match="no weights found"):
        LPIPS().adopt({"model.conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight has shape \(1, 3, 1, 1\), expected \(1, 64, 1, 1\)"):
        LPIPS().adopt({"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)})
