"""`compile: …` compiles the network alone, changes neither its keys nor its answers, and says what it lacks."""
from __future__ import annotations

import copy

import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.diffusion import compiled
from tests.models.diffusion.tiny import WORDS, latent_diffusion

TRACED = {"backend": "aot_eager"}  # traces forward and backward as the default does, without a C++ compiler's minutes


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.randn(2, 5, 32)


def filled(model):
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.1)
    return model


def test_a_compiled_network_has_the_keys_answers_and_gradients_of_a_plain_one(inputs):
    plain, model = (filled(latent_diffusion(personalization_config=WORDS, unfreeze_model=True, compile=wanted)) for wanted in (False, OmegaConf.create(TRACED)))
    assert list(model.state_dict()) == list(plain.state_dict())
    answers = [each.apply_model(*inputs) for each in (model, plain)]
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)
    assert answers[1].std() > 1e-3
    for answer in answers:
        answer.square().mean().backward()
    for (name, ours), theirs in zip(model.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(copy.deepcopy(model).apply_model(*inputs), answers[1], atol=1e-5, rtol=1e-4)


def test_only_what_is_asked_for_is_compiled(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: seen.append((type(self).__name__, options)))
    monkeypatch.setattr(compiled.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    latent_diffusion()
    latent_diffusion(compile=False)
    assert seen == []
    latent_diffusion(compile=True)
    latent_diffusion(compile={"mode": "reduce-overhead"})
    assert seen == [("UNetModel", {}), ("UNetModel", {"mode": "reduce-overhead"})]


@pytest.mark.parametrize("wanted", ["yes", 3, {"no_such_option": 1}], ids=str)
def test_what_compile_does_not_take_is_refused_by_its_key(wanted, monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(ValueError, match=r"model\.params\.compile is"):
        latent_diffusion(compile=wanted)


def test_missing_tools_are_named_before_anything_runs(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and none of g\+\+"):
        latent_diffusion(compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="CXX names no-such-compiler"):
        latent_diffusion(compile=True)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="triton"):
        latent_diffusion(compile=True)
