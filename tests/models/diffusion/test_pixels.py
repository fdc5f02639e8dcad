"""Diffusion of pictures themselves."""
from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.ddpm import DDPM, uniform_on_device
from ldm.models.diffusion.noise_schedule import eps_from_x_0
from tests.models.diffusion.tiny import UNET, randomise, with_params

NETWORK = with_params(UNET, in_channels=3, out_channels=3, use_spatial_transformer=False, context_dim=None, attention_resolutions=[])


def ddpm(**params) -> DDPM:
    settings = {"timesteps": 20, "image_size": 8, "use_ema": False, "linear_start": 0.05, "linear_end": 0.4, "log_every_t": 5}
    return DDPM(NETWORK, **{**settings, **params})


def batch(size: int = 3) -> dict:
    return {"image": torch.rand(size, 8, 8, 3) * 2 - 1}


@pytest.mark.parametrize("parameterization", ["eps", "x0"])
@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_loss_by_hand(parameterization, loss_type):
    model = randomise(ddpm(parameterization=parameterization, loss_type=loss_type, original_elbo_weight=0.3, l_simple_weight=0.7)).train()
    x, noise, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([0, 11])
    loss, logs = model.p_losses(x, t, noise)
    error = (noise if parameterization == "eps" else x) - model.model(model.q_sample(x, t, noise), t)
    per_sample = (error.abs() if loss_type == "l1" else error**2).mean(dim=(1, 2, 3))
    simple, vlb = per_sample.mean(), (model.lvlb_weights[t] * per_sample).mean()
    torch.testing.assert_close(loss, 0.7 * simple + 0.3 * vlb)
    assert {key: round(value.item(), 5) for key, value in logs.items()} == {
        "train/loss_simple": round(simple.item(), 5), "train/loss_vlb": round(vlb.item(), 5), "train/loss": round(loss.item(), 5),
    }  # fmt: skip
    assert model.get_loss(x, noise).ndim == 0 and model.get_loss(x, noise, mean=False).shape == x.shape


def test_a_batch_becomes_a_loss_and_an_optimiser_trains_it():
    model = ddpm()
    model.learning_rate = 1e-3
    optimizer = model.configure_optimizers()
    loss, logs = model.shared_step(batch())
    loss.backward()
    optimizer.step()
    assert set(logs) == {"train/loss_simple", "train/loss_vlb", "train/loss"}
    assert type(optimizer) is torch.optim.AdamW and optimizer.param_groups[0]["weight_decay"] == 0.01
    assert model.model.diffusion_model.out[2].weight.any()


def test_grey_pictures_get_a_channel():
    x = ddpm().get_input({"image": torch.zeros(2, 8, 4, dtype=torch.float64)}, "image")
    assert x.shape == (2, 1, 8, 4) and x.dtype == torch.float32


def test_sampling_clips_what_it_takes_for_the_data():
    model = randomise(ddpm()).eval()
    samples, seen = model.sample(batch_size=2, return_intermediates=True)
    assert samples.shape == (2, 3, 8, 8) and len(seen) == 6 and torch.equal(seen[-1], samples)
    assert samples.abs().max() <= 1.0, "the last step's mean is the clipped picture"
    unclipped = model.p_mean_variance(10 * samples, torch.tensor([5, 5]), clip_denoised=False).mean
    assert not torch.allclose(unclipped, model.p_mean_variance(10 * samples, torch.tensor([5, 5]), clip_denoised=True).mean)


def test_a_perfect_denoiser_ends_at_the_data():
    model, x0 = ddpm(), torch.rand(1, 3, 8, 8)
    model.model.forward = lambda x, t: eps_from_x_0(model.tables, x, t, x0.expand_as(x))
    torch.testing.assert_close(model.sample(batch_size=2), x0.expand(2, -1, -1, -1), atol=1e-4, rtol=1e-4)


def test_pictures_for_the_log():
    log = randomise(ddpm()).log_images(batch(), N=2)
    assert set(log) == {"inputs", "diffusion_row", "samples", "denoise_row"}
    assert len(log["inputs"]) == len(log["samples"]) == 2
    assert log["diffusion_row"].shape == (3, 2 * 10 + 2, 5 * 10 + 2)  # two samples, five stages, two pixels between them
    assert set(randomise(ddpm()).log_images(batch(), sample=False)) == {"inputs", "diffusion_row"}
    assert set(randomise(ddpm()).log_images(batch(), sample=False, return_keys=["inputs"])) == {"inputs"}


def test_uniform_numbers_between_two_bounds():
    drawn = uniform_on_device(2.0, -1.0, (1000,), "cpu")
    assert -1.0 <= drawn.min() < -0.9 and 1.9 < drawn.max() <= 2.0
