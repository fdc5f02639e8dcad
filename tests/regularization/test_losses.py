"""How far apart, sample by sample, in fp32; and how much each timestep counts."""
import math

import pytest
import torch

from ldm.regularization import GuidedMSE, MinSNRWeights, NoiseHuber, NoiseMSE, NoisyLatents, RelativeMSE, UniformWeights, VLBWeights
from ldm.regularization.choices import Prompts
from tests.regularization.doubles import ToyModel


def probes_at(t) -> NoisyLatents:
    return NoisyLatents(torch.zeros(len(t), 2, 4, 4), torch.tensor(t), Prompts([""] * len(t)))


def test_mse_agrees_with_torch_and_is_the_mean_over_samples():
    f, f0 = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4)
    whole = NoiseMSE()(f, f0, probes_at([1] * 5), ToyModel())
    torch.testing.assert_close(whole, torch.nn.functional.mse_loss(f, f0))
    singles = [NoiseMSE()(f[i : i + 1], f0[i : i + 1], probes_at([1]), ToyModel()) for i in range(5)]
    torch.testing.assert_close(whole, torch.stack(singles).mean())


@pytest.mark.parametrize("loss", [NoiseMSE(), NoiseHuber(delta=1000.0), GuidedMSE(guidance_scale=1.0, guided_weight=0.0)])
def test_half_precision_outputs_are_accumulated_in_fp32(loss):
    f, f0 = torch.full((1, 2, 64, 64), 300.0, dtype=torch.float16), torch.zeros(1, 2, 64, 64, dtype=torch.float16)
    if loss.unconditional:
        f, f0 = (torch.stack([output, output], dim=1) for output in (f, f0))
    assert loss(f, f0, probes_at([1]), ToyModel()) == 90000.0  # beyond fp16, whose largest number is 65504
    assert RelativeMSE()(2 * f, f, probes_at([1]), ToyModel()) == 1.0


def test_guided_mse_is_that_of_the_prompt_and_that_of_the_guided_outputs():
    c, u, c0, u0 = torch.randn(4, 3, 2, 4, 4)
    f, f0 = torch.stack([c, u], dim=1), torch.stack([c0, u0], dim=1)
    probes, mse = probes_at([1] * 3), torch.nn.functional.mse_loss

    def guided(c, u, s):
        return s * c + (1 - s) * u

    for s, share in ((3.0, 1.0), (7.5, 0.25)):
        expected = mse(c, c0) + share * mse(guided(c, u, s), guided(c0, u0, s)) / (s * s + (1 - s) ** 2)
        torch.testing.assert_close(GuidedMSE(guidance_scale=s, guided_weight=share)(f, f0, probes, ToyModel()), expected)
    torch.testing.assert_close(GuidedMSE(guided_weight=0.0)(f, f0, probes, ToyModel()), NoiseMSE()(c, c0, probes, ToyModel()))


def test_guided_mse_weighs_both_terms_alike_where_differences_are_independent_and_of_one_size():
    f, f0 = torch.randn(1, 2, 2, 256, 256, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 2, 2, 256, 256)
    assert float(GuidedMSE(guidance_scale=5.0)(f, f0, probes_at([1]), ToyModel())) == pytest.approx(2.0, rel=0.02)


def test_huber_is_the_square_up_to_delta_and_a_line_with_the_same_slope_beyond():
    difference = torch.tensor([0.0, 0.1, -0.2, 0.25, 0.5, -3.0], requires_grad=True)
    f = difference.view(1, 1, 1, -1)
    loss = NoiseHuber(delta=0.25)(f, torch.zeros_like(f), probes_at([1]), ToyModel())
    by_hand = [0.0, 0.01, 0.04, 0.0625, 2 * 0.25 * 0.5 - 0.0625, 2 * 0.25 * 3.0 - 0.0625]
    torch.testing.assert_close(loss, torch.tensor(sum(by_hand) / 6))
    loss.backward()
    torch.testing.assert_close(difference.grad * 6, torch.tensor([0.0, 0.2, -0.4, 0.5, 0.5, -0.5]))


def test_huber_of_close_outputs_is_mse():
    f0 = torch.randn(3, 2, 4, 4)
    f = f0 + 0.09 * torch.rand_like(f0)
    args = f, f0, probes_at([1] * 3), ToyModel()
    torch.testing.assert_close(NoiseHuber()(*args), NoiseMSE()(*args))


def test_relative_mse_is_a_share_of_the_frozen_outputs_energy_in_each_sample():
    f0 = torch.randn(3, 2, 4, 4) * torch.tensor([0.1, 1.0, 50.0]).view(-1, 1, 1, 1)
    share = torch.tensor([0.1, 0.2, 0.3])
    loss = RelativeMSE()(f0 * (1 + share.view(-1, 1, 1, 1)), f0, probes_at([1] * 3), ToyModel())
    torch.testing.assert_close(loss, share.pow(2).mean())
    torch.testing.assert_close(RelativeMSE(floor=0.01)(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), probes_at([1]), ToyModel()), torch.tensor(100.0))


@pytest.mark.parametrize("loss", [NoiseMSE, NoiseHuber, RelativeMSE])
def test_weights_over_t_apply_to_each_sample(loss):
    def steep(t, model):
        return model.alphas_cumprod[t] ** 2

    model, f, f0, t = ToyModel(), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), [0, 7, 19]
    whole = loss(t_weights=steep)(f, f0, probes_at(t), model)
    each = [loss()(f[i : i + 1], f0[i : i + 1], probes_at([t[i]]), model) for i in range(3)]
    torch.testing.assert_close(whole, sum(model.alphas_cumprod[t[i]] ** 2 * each[i] for i in range(3)) / 3)
    uniform = loss(t_weights=UniformWeights())(f, f0, probes_at(t), model)
    torch.testing.assert_close(uniform, sum(each) / 3)


def scheduled(betas, parameterization: str = "eps") -> ToyModel:
    model = ToyModel()
    model.alphas_cumprod = (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0).float()
    model.parameterization = parameterization
    return model


def gaussian_kl(mean_gap: float, variance: float) -> float:
    """KL of two Gaussians of one variance."""
    return mean_gap**2 / (2 * variance)


@pytest.mark.parametrize("parameterization", ["eps", "x0"])
def test_vlb_weights_are_the_kl_of_one_ancestral_step(parameterization):
    """A step's mean is linear in the output: two outputs 1 apart, sent through the posterior mean, against the KL of the two Gaussians."""
    betas = [0.02, 0.05, 0.1, 0.2, 0.3]
    abar, before = [], 1.0
    weights = VLBWeights()(torch.arange(5), scheduled(betas, parameterization))
    for t, beta in enumerate(betas):
        now = before * (1 - beta)
        abar.append(now)
        if t > 0:
            x0_gap = 1.0 if parameterization == "x0" else math.sqrt((1 - now) / now)  # x0 = (z_t − √(1−ᾱ) ε)/√ᾱ
            mean_gap = math.sqrt(before) * beta / (1 - now) * x0_gap  # Ho et al. 2020, eq. 7
            variance = beta * (1 - before) / (1 - now)
            assert float(weights[t]) == pytest.approx(gaussian_kl(mean_gap, variance), rel=1e-4)
        before = now
    as_eps = [float(w) * (1 - a) / a if parameterization == "x0" else float(w) for w, a in zip(weights, abar)]
    assert as_eps[0] == pytest.approx(as_eps[1], rel=1e-4), "the first is the second, in ε"


@pytest.mark.parametrize("parameterization", ["eps", "x0"])
def test_min_snr_weights_cap_the_signal_to_noise_ratio(parameterization):
    model = scheduled([0.01, 0.1, 0.3, 0.9], parameterization)
    weights = MinSNRWeights(gamma=5.0)(torch.arange(4), model)
    for t, abar in enumerate(model.alphas_cumprod.tolist()):
        snr = abar / (1 - abar)
        expected = min(snr, 5.0) if parameterization == "x0" else min(snr, 5.0) / snr
        assert float(weights[t]) == pytest.approx(expected, rel=1e-4)
    assert len(set(weights.tolist())) > 2


def test_weights_over_t_follow_the_timesteps_of_the_batch():
    t = torch.tensor([3, 0, 3])
    for weighting in (UniformWeights(), VLBWeights(), MinSNRWeights()):
        every = weighting(torch.arange(20), ToyModel())
        assert torch.equal(weighting(t, ToyModel()), every[t]) and every.dtype == torch.float32 and (every > 0).all()


def test_losses_say_their_settings_and_weighting():
    assert NoiseHuber(delta=0.5, t_weights=MinSNRWeights(3.0)).describe() == "NoiseHuber(delta=0.5) weighted by MinSNRWeights(gamma=3.0)"
    assert NoiseMSE().describe() == "NoiseMSE()"


@pytest.mark.parametrize(
    ("make", "key"), [(lambda: NoiseHuber(delta=0.0), "delta is 0"), (lambda: RelativeMSE(floor=-1.0), "floor is -1"), (lambda: MinSNRWeights(0), "gamma is 0"),
                      (lambda: GuidedMSE(guidance_scale=0.0), "guidance_scale is 0"), (lambda: GuidedMSE(guided_weight=-1.0), "guided_weight is -1")]
)
def test_impossible_settings_are_refused_by_name(make, key):
    with pytest.raises(ValueError, match=key):
        make()
