"""The term's probes in the batch's own pass of the network (`share_forward`): what two passes give, through whatever a subclass does."""
from __future__ import annotations

import copy

import pytest
import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regularized import RegularizedLatentDiffusion
from tests.models.diffusion.tiny import UNET, with_params
from tests.regularization.steps import move, step_of
from tests.regularization.tiny_runs import PARAMS, ready, regularized_model, term_config

COPY = {"teacher": "FrozenCopy", "latents": "TrainingLatents"}
GUIDED = ("GuidedMSE", {"guidance_scale": 3.0})
HYBRID = {"conditioning_key": "hybrid", "unet_config": with_params(UNET, in_channels=5), "personalization_config": None, "cond_stage_trainable": True}


def network_passes(model):
    """The sizes of the batches that the network meets from now on."""
    sizes, forward = [], model.model.forward
    model.model.forward = lambda z_t, t, **conditions: sizes.append(len(t)) or forward(z_t, t, **conditions)
    return sizes


def moved(model):
    torch.manual_seed(11)
    for module in model.tuned_modules().values():
        move(module)
    return model


def equal_but_for_rounding(found) -> bool:
    """Of two steps, (logs, gradient) each."""
    (logs, gradient), (other_logs, other) = found
    return logs == pytest.approx(other_logs, rel=1e-5) and bool((gradient - other).norm() < 1e-5 * other.norm())


def losses_and_gradient(model, step):
    loss, logs = step(model)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: float(value.detach()) for name, value in logs.items() if isinstance(value, torch.Tensor)}, gradient


@pytest.mark.parametrize(
    ("term", "probes"),
    [({"batch_size": 3}, 3), ({"batch_size": 3, "loss": GUIDED}, 6), (COPY, 2), ({"batch_size": 3, "teacher": "FrozenCopy"}, 3)],
    ids=["bank", "guided", "training latents", "copy"],
)
def test_one_pass_for_batch_and_probes_gives_what_two_give(base, tmp_path, term, probes):
    found = []
    for shared in (False, True):
        model = moved(ready(regularized_model(base, tmp_path, **term, share_forward=shared)))
        sizes = network_passes(model)
        found.append(losses_and_gradient(model, step_of))
        assert sizes == ([2 + probes] if shared else [2, probes]), "the frozen copy's own passes are not the network's"
    assert found[0][0]["train/loss_locality"] > 1e-3 and equal_but_for_rounding(found)


def test_one_pass_takes_a_hybrid_networks_conditions_together(base, tmp_path):
    z, t, mask = torch.randn(2, 4, 8, 8), torch.tensor([3, 9]), torch.rand(2, 1, 8, 8)
    found = []

    def step(model):
        cond = {"c_crossattn": [model.get_learned_conditioning(["a photo"] * 2)], "c_concat": [mask]}
        return model.p_losses(z, cond, t, noise=torch.ones_like(z))

    for shared in (False, True):
        torch.manual_seed(5)
        model = regularized_model(None, tmp_path, HYBRID, conditioning=("ClassPrompts", {"prompts": ["a cat"]}), **COPY, share_forward=shared)
        model._base = base
        moved(ready(model))
        sizes = network_passes(model)
        found.append(losses_and_gradient(model, step))
        assert sizes == ([4] if shared else [2, 2])
    assert found[0][0]["train/loss_locality"] > 1e-3 and equal_but_for_rounding(found)


def test_in_validation_and_in_steps_without_the_term_there_is_no_shared_pass(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, share_forward=True, every=2))
    sizes = network_passes(model)
    assert "train/loss_locality" not in step_of(model)[1] and sizes == [2]
    with torch.no_grad():
        assert "val/loss_locality" in step_of(model.eval())[1]
    assert sizes == [2, 2, 2]


class Scaled(RegularizedLatentDiffusion):
    def apply_model(self, *args, **kwargs):
        return 3.0 * super().apply_model(*args, **kwargs)


class Nearer(RegularizedLatentDiffusion):
    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        return super().apply_model(0.5 * x_noisy, t, cond, *args, **kwargs)


@pytest.mark.parametrize("kind", [Scaled, Nearer])
def test_an_override_of_apply_model_holds_for_both_networks_in_the_shared_pass_too(base, tmp_path, kind):
    model = ready(kind(**copy.deepcopy(PARAMS), ckpt_path=base, regularization_config=term_config(tmp_path, **COPY, share_forward=True)))
    assert step_of(model)[1]["train/loss_locality"] < 1e-10
    move(model.model)
    assert step_of(model)[1]["train/loss_locality"] > 1e-3


@pytest.mark.parametrize("before", [None, lambda *args, **kwargs: torch.zeros(2, 4, 8, 8)])
def test_nothing_is_left_of_a_shared_pass_that_failed(base, tmp_path, monkeypatch, before):
    """Neither where the failure came before the network was asked, nor where conditions do not go together."""
    model = ready(regularized_model(base, tmp_path, share_forward=True))
    if before is not None:
        model.apply_model = before
    z, t, c = torch.randn(2, 4, 8, 8), torch.tensor([3, 9]), model.encode_prompts(["a *"] * 2)
    own = dict(vars(model))
    with pytest.raises(ValueError, match=r"c_crossattn.*share_forward: false"):
        model.p_losses(z, torch.cat([c, c], dim=1), t)
    assert vars(model).get("apply_model") is own.get("apply_model")
    if before is None:
        assert model.apply_model(z, t, c).shape == z.shape
        assert "train/loss_locality" in model.p_losses(z, [c], t)[1]
    monkeypatch.setattr(LatentDiffusion, "p_losses", lambda self, *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.p_losses(z, c, t)
    assert vars(model).get("apply_model") is own.get("apply_model")


@pytest.mark.parametrize("asks", [0, 1])
def test_a_loss_whose_first_pass_has_no_graph_or_that_makes_none_is_told_what_to_set(base, tmp_path, monkeypatch, asks):
    def p_losses(self, x_start, cond, t, noise=None):
        with torch.no_grad():
            for _ in range(asks):
                self.apply_model(x_start, t, cond)
        return x_start.mean(), {}

    monkeypatch.setattr(LatentDiffusion, "p_losses", p_losses)
    model = ready(regularized_model(base, tmp_path, share_forward=True))
    with pytest.raises(RuntimeError, match="share_forward: false"):
        step_of(model)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_share_forward_is_true_or_false(base, tmp_path, value):
    with pytest.raises(ValueError, match="share_forward is .*expected true or false"):
        regularized_model(base, tmp_path, share_forward=value)
