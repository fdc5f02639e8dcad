"""How far apart: the mean square, sample by sample, in fp32."""
import torch

from ldm.regularization import NoiseMSE, NoisyLatents
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


def test_mse_of_half_precision_outputs_is_accumulated_in_fp32():
    f, f0 = torch.full((1, 2, 64, 64), 300.0, dtype=torch.float16), torch.zeros(1, 2, 64, 64, dtype=torch.float16)
    assert NoiseMSE()(f, f0, probes_at([1]), ToyModel()) == 90000.0  # beyond fp16, whose largest number is 65504


def test_weights_over_t_apply_to_each_sample():
    def snr_at_most_5(t, model):  # min-SNR-γ for ε, Hang et al. 2023 (arXiv 2303.09556)
        abar = model.alphas_cumprod[t]
        return (abar / (1 - abar)).clamp(max=5.0) * (1 - abar) / abar

    model, f, f0, t = ToyModel(), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), [0, 7, 19]
    whole = NoiseMSE(snr_at_most_5)(f, f0, probes_at(t), model)
    by_hand = sum(snr_at_most_5(torch.tensor([t[i]]), model) * (f[i] - f0[i]).pow(2).mean() for i in range(3)) / 3
    torch.testing.assert_close(whole, by_hand.squeeze())
