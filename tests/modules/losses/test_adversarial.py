"""The losses of the published first stages, term by term, against their formulas."""
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses import LPIPSWithDiscriminator, VQLPIPSWithDiscriminator
from ldm.modules.losses.adversarial import hinge_d_loss, vanilla_d_loss
from ldm.modules.losses.contperceptual import DummyLoss
from ldm.modules.losses.vqperceptual import codebook_use

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
POSTERIOR = DiagonalGaussianDistribution(torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1)))


class Last(nn.Module):
    """Stands for the decoder: pictures times one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Brightness(nn.Module):
    """Stands for LPIPS: the squared difference of the mean brightness."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).mean(dim=(1, 2, 3), keepdim=True).square()


def kl_loss(**options) -> LPIPSWithDiscriminator:
    return LPIPSWithDiscriminator(**{"disc_start": 0, "perceptual_weight": 0.0, "disc_num_layers": 1, **options})


def vq_loss(**options) -> VQLPIPSWithDiscriminator:
    return VQLPIPSWithDiscriminator(**{"disc_start": 0, "perceptual_weight": 0.0, "disc_num_layers": 1, **options})


def test_before_its_start_the_discriminator_counts_nothing():
    loss = kl_loss(disc_start=3, kl_weight=0.1, logvar_init=0.7)
    last = Last()
    y = last(X)
    total, log = loss(X, y, POSTERIOR, 0, 2, last_layer=last.weight)
    nll = ((X - y).abs() / math.exp(0.7) + 0.7).sum() / 2
    torch.testing.assert_close(total, nll + 0.1 * POSTERIOR.kl().sum() / 2)
    assert log["train/disc_factor"] == 0
    assert loss(X, y, POSTERIOR, 1, 2)[0] == 0
    assert loss(X, y, POSTERIOR, 1, 3)[0] > 0


@pytest.mark.parametrize("make", [kl_loss, vq_loss])
def test_adaptive_weight_makes_both_gradients_alike_at_the_last_layer(make):
    # A sum over pixels is so large that the weight would meet its upper limit; e^6 brings it down.
    loss = make(disc_weight=0.5).eval() if make is vq_loss else make(disc_weight=0.5, logvar_init=6.0, kl_weight=0.0).eval()
    last = Last()
    y = last(X)
    given = (torch.tensor(0.0), X, y) if make is vq_loss else (X, y, POSTERIOR)
    total, log = loss(*given, 0, 0, last_layer=last.weight)
    rec = (X - y).abs()
    nll = rec.mean() if make is vq_loss else (rec / math.exp(6.0) + 6.0).sum() / 2
    g = -loss.discriminator(y).mean()
    of_nll, of_g, of_total = (torch.autograd.grad(value, last.weight, retain_graph=True)[0] for value in (nll, g, total))
    weight = 0.5 * of_nll.abs() / (of_g.abs() + 1e-4)
    torch.testing.assert_close(log["train/d_weight"], weight.squeeze(), rtol=1e-4, atol=1e-5)
    # no gradient flows through the weight itself
    torch.testing.assert_close(of_total, of_nll + weight * of_g, rtol=1e-4, atol=1e-4)


def test_adaptive_weight_has_an_upper_limit():
    weight = Last().weight
    value = kl_loss(disc_weight=2.0).calculate_adaptive_weight(1e6 * weight.sum(), 0.0 * weight.sum(), weight)
    assert value == 2e4


def test_validation_leaves_the_adversarial_term_out():
    loss, last = kl_loss(kl_weight=0.0), Last()
    with torch.no_grad():
        y = last(X)
        total, log = loss(X, y, POSTERIOR, 0, 10, last_layer=last.weight, split="val")
    torch.testing.assert_close(total, (X - y).abs().sum() / 2)
    assert log["val/d_weight"] == 0
    assert {"val/rec_loss", "val/nll_loss", "val/kl_loss", "val/logvar", "val/total_loss", "val/disc_factor", "val/g_loss"} <= set(log)


@pytest.mark.parametrize("make", [kl_loss, vq_loss])
def test_perceptual_distance_is_added_to_every_pixel(make):
    loss, y = make(perceptual_weight=2.0, pixelloss_weight=3.0, disc_factor=0.0), 0.3 * X
    loss.perceptual_loss = Brightness()
    given = (torch.tensor(0.0), X, y) if make is vq_loss else (X, y, POSTERIOR)
    _, log = loss(*given, 0, 0)
    rec = 3.0 * (X - y).abs() + 2.0 * Brightness()(X, y)
    torch.testing.assert_close(log["train/rec_loss"], rec.mean())
    torch.testing.assert_close(log["train/nll_loss"], rec.mean() if make is vq_loss else rec.sum() / 2)


@pytest.mark.parametrize("make", [kl_loss, vq_loss])
def test_perceptual_distance_without_weights_is_refused(make):
    given = (torch.tensor(0.0), X, X) if make is vq_loss else (X, X, POSTERIOR)
    with pytest.raises(ValueError, match="LPIPS has no weights"):
        make(perceptual_weight=1.0)(*given, 0, 0)


@pytest.mark.parametrize("make", [kl_loss, vq_loss])
def test_discriminator_learns_from_detached_pictures(make):
    loss = make(disc_loss="vanilla", disc_factor=0.5)
    y = (0.5 * X).requires_grad_(True)
    given = (torch.tensor(0.0), X, y) if make is vq_loss else (X, y, POSTERIOR)
    total, log = loss(*given, 1, 0)
    total.backward()
    assert y.grad is None
    assert all(weight.grad is not None for weight in loss.discriminator.parameters())
    assert set(log) == {"train/disc_loss", "train/logits_real", "train/logits_fake"}


def test_conditional_discriminator_sees_the_condition():
    loss = kl_loss(disc_conditional=True, disc_in_channels=4, disc_factor=0.0)
    cond = torch.zeros(2, 1, 32, 32)
    loss(X, X, POSTERIOR, 0, 0, cond=cond)
    with pytest.raises(ValueError, match="disc_conditional is True but cond was not given"):
        loss(X, X, POSTERIOR, 0, 0)
    with pytest.raises(ValueError, match="disc_conditional is False but cond was given"):
        kl_loss(disc_factor=0.0)(X, X, POSTERIOR, 0, 0, cond=cond)


def test_weights_of_pictures_act_on_the_likelihood_alone():
    loss = kl_loss(kl_weight=1.0, disc_factor=0.0)
    y = 0.5 * X
    total, log = loss(X, y, POSTERIOR, 0, 0, weights=torch.tensor([2.0, 0.0]).view(2, 1, 1, 1))
    torch.testing.assert_close(total, (X - y).abs()[0].sum() + POSTERIOR.kl().sum() / 2)
    torch.testing.assert_close(log["train/nll_loss"], (X - y).abs().sum() / 2)


def test_codebook_loss_is_weighted_and_added():
    y = 0.5 * X
    total, log = vq_loss(codebook_weight=0.25, disc_factor=0.0, pixel_loss="l2")(torch.tensor([1.0, 3.0]), X, y, 0, 0)
    torch.testing.assert_close(total, (X - y).square().mean() + 0.25 * 2.0)
    assert log["train/quant_loss"] == 2.0
    assert "train/perplexity" not in log


def test_use_of_the_codebook_is_logged():
    _, log = vq_loss(n_classes=8, disc_factor=0.0)(torch.tensor(0.0), X, X, 0, 0, predicted_indices=torch.tensor([[0, 1], [0, 1]]))
    assert log["train/perplexity"].item() == pytest.approx(2.0)
    assert log["train/cluster_usage"] == 2
    perplexity, used = codebook_use(torch.arange(8), 8)
    assert perplexity.item() == pytest.approx(8.0)
    assert used == 8


def test_discriminator_losses_at_known_logits():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert hinge_d_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 1.0))
    cross_entropy = nn.functional.binary_cross_entropy_with_logits
    expected = 0.5 * (cross_entropy(real, torch.ones(2)) + cross_entropy(fake, torch.zeros(2)))
    torch.testing.assert_close(vanilla_d_loss(real, fake), expected)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (kl_loss, {"disc_loss": "wasserstein"}, "'wasserstein'.*hinge, vanilla"),
        (vq_loss, {"perceptual_loss": "clips"}, "'clips'.*lpips"),
        (vq_loss, {"pixel_loss": "l3"}, "'l3'.*l1, l2"),
    ],
)
def test_unknown_choice_is_an_error_that_lists_the_known(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_last_layer_is_needed_once_the_discriminator_counts():
    with pytest.raises(ValueError, match="last_layer"):
        kl_loss()(X, 0.5 * X, POSTERIOR, 0, 0)


def test_dummy_loss_has_nothing_in_it():
    assert not list(DummyLoss().state_dict())
