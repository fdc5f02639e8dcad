"""The loss without a network: its units, its terms, one at a time."""
from __future__ import annotations

import pytest
import torch

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses import L1WithGradient
from ldm.modules.losses.reconstruction import neighbour_differences


def posterior(mean: float, batch: int = 2) -> DiagonalGaussianDistribution:
    """Unit variance; KL to N(0, 1) is mean² / 2 a latent entry."""
    return DiagonalGaussianDistribution(torch.cat([torch.full((batch, 4, 2, 2), mean), torch.zeros(batch, 4, 2, 2)], 1))


def test_constant_offset_costs_its_size_and_no_gradient():
    x = torch.rand(2, 3, 8, 8)
    loss, log = L1WithGradient(kl_weight=0.0)(x, x + 0.25, posterior(0.0), 0, 0)
    assert loss.item() == pytest.approx(0.25, abs=1e-6)
    assert log["train/gradient_loss"].item() == pytest.approx(0.0, abs=1e-6)


def test_alternating_columns_cost_twice_their_height_in_gradient():
    """Error +h, −h in turn: |x − y| is h, neighbours across differ by 2h, neighbours below by 0."""
    error = 0.1 * torch.tensor([1.0, -1.0]).repeat(4).expand(1, 3, 8, 8)
    loss, log = L1WithGradient(gradient_weight=3.0)(torch.zeros(1, 3, 8, 8), error, posterior(0.0, 1), 0, 0, split="val")
    assert log["val/rec_loss"].item() == pytest.approx(0.1)
    assert log["val/gradient_loss"].item() == pytest.approx(0.2)
    assert loss.item() == pytest.approx(0.1 + 3 * 0.2)
    assert set(log) == {"val/total_loss", "val/rec_loss", "val/gradient_loss", "val/kl_loss"}
    assert not any(value.requires_grad for value in log.values())


def test_kl_is_in_nats_a_latent_entry_whatever_the_sizes():
    x = torch.zeros(3, 3, 8, 8)
    loss, log = L1WithGradient(kl_weight=0.5)(x, x, posterior(2.0, 3), 0, 0)
    assert log["train/kl_loss"].item() == pytest.approx(2.0)
    assert loss.item() == pytest.approx(1.0)


def test_differences_are_linear():
    x, y = torch.randn(2, 1, 3, 5, 4)
    for of_both, of_x, of_y in zip(neighbour_differences(x - y), neighbour_differences(x), neighbour_differences(y), strict=True):
        torch.testing.assert_close(of_both, of_x - of_y)


def test_weights_scale_each_picture():
    x, y = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    loss, _ = L1WithGradient()(x, y, posterior(0.0), 0, 0, weights=torch.tensor([0.0, 3.0]).view(2, 1, 1, 1))
    assert loss.item() == pytest.approx(1.5)


def test_the_colour_term_is_the_squared_error_of_pooled_pictures_and_does_not_see_a_checkerboard():
    x = torch.zeros(1, 3, 8, 8)
    plain, coloured = L1WithGradient(kl_weight=0.0), L1WithGradient(kl_weight=0.0, colour_weight=2.0)
    shifted = x + torch.tensor([0.5, 0.0, 0.0]).view(1, 3, 1, 1)
    loss, log = coloured(x, shifted, posterior(0.0), 0, 0)
    assert log["train/colour_loss"].item() == pytest.approx(0.25 / 3)
    assert loss.item() - plain(x, shifted, posterior(0.0), 0, 0)[0].item() == pytest.approx(2 * 0.25 / 3)
    checkerboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1.0
    assert coloured(x, x + checkerboard, posterior(0.0), 0, 0)[1]["train/colour_loss"].item() == pytest.approx(0.0, abs=1e-12)


def test_the_latent_colour_term_is_the_squared_distance_of_three_channels_from_the_shrunk_picture():
    """Squares of one colour, and latents that are off by 0.5 in their first channel; the fourth is free."""
    colours = torch.rand(2, 3, 2, 2) * 2 - 1
    x = colours.repeat_interleave(4, 2).repeat_interleave(4, 3)
    mean = torch.cat([colours, torch.full((2, 1, 2, 2), 7.0)], 1)
    mean[:, 0] += 0.5
    near = DiagonalGaussianDistribution(torch.cat([mean, torch.zeros_like(mean)], 1))
    loss, log = L1WithGradient(kl_weight=0.0, latent_colour_weight=2.0)(x, x, near, 0, 0)
    assert log["train/latent_colour_loss"].item() == pytest.approx(0.25 / 3, rel=1e-5)
    assert loss.item() == pytest.approx(2 * 0.25 / 3, rel=1e-5)


def test_latents_too_few_for_colours_are_refused_by_the_keys_names():
    few = DiagonalGaussianDistribution(torch.zeros(1, 4, 2, 2))  # two channels: mean and variance of each
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="latent_colour_weight.*2 latent channels.*embed_dim"):
        L1WithGradient(latent_colour_weight=1.0)(x, x, few, 0, 0)
