"""How far apart two outputs are, and how much each timestep counts.

R = E w(t) · d(f, f0). A loss takes f, f0 (B, C, h, w), the probes and the model, and returns R as a scalar; to add another, write `distances`,
and `compared` where d is not of the outputs themselves. One that sets `unconditional` is given f, f0 (B, 2, C, h, w).
A weighting takes t (B,) and the model, and returns w (B,).
"""
from pathlib import Path
from typing import Callable, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.regularization.checks import not_negative, one_of, positive
from ldm.regularization.types import Model, NoisyLatents, Part, Start

Weighting = Callable[[Tensor, Model], Tensor]

# LPIPS's networks: the file of torchvision's weights, and the least side in pixels that leaves every layer a position.
LPIPS_NETWORKS = {
    "alex": ("alexnet-owt-7be5be79.pth", 31),
    "vgg": ("vgg16-397923af.pth", 16),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", 17),
}


def squared_error(f: Tensor, f0: Tensor) -> Tensor:
    """Mean over (C, h, w) of (f − f0)²: (B,), fp32 whatever the precision of f."""
    return (f.float() - f0.float()).pow(2).flatten(1).mean(dim=1)


class Loss(Part):
    """What the losses share: the mean over the samples of w(t) · d(f, f0).

    t_weights: w, from t (B,) and the model to weights (B,); every timestep weighs 1 unless given.
    """

    unconditional = False  # whether the outputs for the empty prompt are compared too

    def __init__(self, t_weights: Optional[Weighting] = None):
        self.t_weights = t_weights

    def prepare(self, start: Start, first_t: int) -> None:
        """Load what is needed, once, before training. first_t: of the latents (`Latents.first_t`)."""

    def __call__(self, f: Tensor, f0: Tensor, probes: NoisyLatents, model: Model) -> Tensor:
        error = self.distances(*self.compared(f, f0, probes, model))
        return error.mean() if self.t_weights is None else (self.t_weights(probes.t, model).to(error) * error).mean()

    def compared(self, f: Tensor, f0: Tensor, probes: NoisyLatents, model: Model) -> Tuple[Tensor, Tensor]:
        """What `distances` is of: the outputs, (B, C, h, w) each."""
        return f, f0

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        """d of each sample: (B,), fp32."""
        raise NotImplementedError

    def describe(self) -> str:
        weighting = f" weighted by {self.t_weights.describe()}" if isinstance(self.t_weights, Part) else ""
        return super().describe() + weighting


class NoiseMSE(Loss):
    """Squared difference of the two outputs."""

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        return squared_error(f, f0)


class GuidedMSE(Loss):
    """Squared difference of the two outputs, and of what classifier-free guidance makes of them: the direction in which samples are drawn.

    d = ‖Δ_c‖² + guided_weight · ‖Δ_u + s (Δ_c − Δ_u)‖² / (s² + (s − 1)²), Δ_c and Δ_u the differences for the prompt and for the empty prompt,
    s = guidance_scale: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, whose 1 + w is s. The divisor makes both terms alike where Δ_c and Δ_u are
    independent and of one size. Small differences that NoiseMSE lets stand are magnified s-fold in samples; this holds them where they add up.
    guidance_scale: of the samples that will be drawn of the tuned model. Each probe costs two passes.
    """

    unconditional = True

    def __init__(self, guidance_scale: float = 3.0, guided_weight: float = 1.0, t_weights: Optional[Weighting] = None):
        super().__init__(t_weights)
        self.guidance_scale = positive(guidance_scale, "loss_config.params.guidance_scale")
        self.guided_weight = not_negative(guided_weight, "loss_config.params.guided_weight")

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        (f_c, f_u), (f0_c, f0_u) = f.float().unbind(1), f0.float().unbind(1)
        s = self.guidance_scale
        of_guided = squared_error(f_u + s * (f_c - f_u), f0_u + s * (f0_c - f0_u))
        return squared_error(f_c, f0_c) + self.guided_weight / (s**2 + (s - 1) ** 2) * of_guided


class NoiseHuber(Loss):
    """Squared difference Δ² up to |Δ| = delta and 2·delta·|Δ| − delta² beyond: single pixels that are far off pull no harder than at delta.

    Huber 1964, times 2, so that it is NoiseMSE where the two networks are close, and the weight of the term may stay.
    """

    def __init__(self, delta: float = 0.1, t_weights: Optional[Weighting] = None):
        super().__init__(t_weights)
        self.delta = positive(delta, "loss_config.params.delta")

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        return 2 * functional.huber_loss(f.float(), f0.float(), reduction="none", delta=self.delta).flatten(1).mean(dim=1)


class RelativeMSE(Loss):
    """Squared difference over the frozen output's own mean square, sample by sample: a share of the prediction, whatever its size.

    floor: the least mean square that is divided by.
    """

    def __init__(self, floor: float = 1.0e-6, t_weights: Optional[Weighting] = None):
        super().__init__(t_weights)
        self.floor = positive(floor, "loss_config.params.floor")

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        return squared_error(f, f0) / squared_error(f0, torch.zeros_like(f0)).clamp(min=self.floor)


class ImageSpace(Loss):
    """PTI's own distance: l2_weight · L2 + lpips_weight · LPIPS between the pictures that the two networks' x̂₀ decode to.

    Roich et al. 2021 (arXiv 2106.05744), L_R, whose generator's pictures are here D(x̂₀), D the first stage's decoder; L2 is the mean over (C, H, W).

    lpips_weight: with 0 LPIPS is neither loaded nor computed. net: LPIPS's network, `alex` (PTI's), `vgg` or `squeeze`.
    max_gain: x̂₀ magnifies a difference Δε by √((1−ᾱ)/ᾱ), 14.6 at the last step of Stable Diffusion's schedule. Probes at which that exceeds max_gain
    (there at 2: t ≥ 563) weigh 0 and are not decoded, so that the latents' part in R is at most max_gain² · ‖Δε‖². A model that predicts x0 magnifies
    nothing: all its timesteps count.
    Raises ValueError for a weight below 0, for two that are 0, for another network.
    """

    def __init__(self, l2_weight: float = 1.0, lpips_weight: float = 1.0, net: str = "alex", max_gain: float = 2.0, t_weights: Optional[Weighting] = None):
        super().__init__(t_weights)
        self.l2_weight = not_negative(l2_weight, "loss_config.params.l2_weight")
        self.lpips_weight = not_negative(lpips_weight, "loss_config.params.lpips_weight")
        if not self.l2_weight and not self.lpips_weight:
            raise ValueError("loss_config.params: l2_weight and lpips_weight are both 0, and nothing would be compared; expected one above 0")
        self.net = one_of(tuple(LPIPS_NETWORKS), net, "loss_config.params.net")
        self.max_gain = positive(max_gain, "loss_config.params.max_gain")
        self._lpips: Optional[nn.Module] = None

    def prepare(self, start: Start, first_t: int) -> None:
        """Load LPIPS. Raises ValueError where no probe could count or LPIPS cannot see the pictures, FileNotFoundError where its weights are absent."""
        gain = float(x0_gain(start.model)[first_t])
        if gain > self.max_gain:
            raise ValueError(
                f"loss_config.params.max_gain is {self.max_gain}, but the least timestep of the latents is {first_t}, where x̂₀ magnifies differences by "
                f"{gain:.3g}: no probe would count. What fits: latents of any timestep (PriorSamples; NoiseLatents with any_t: true), a smaller t_min, "
                "or a larger max_gain."
            )
        if self.lpips_weight:
            lpips = load_lpips(self.net)
            model = start.model
            z_0 = torch.zeros(1, model.channels, model.image_size, model.image_size, device=start.device)
            with torch.no_grad():
                _, colours, *sides = model.differentiable_decode_first_stage(z_0).shape
            least = LPIPS_NETWORKS[self.net][1]
            if colours != 3 or min(sides) < least:
                raise ValueError(
                    f"LPIPS ({self.net}) compares pictures of 3 channels and at least {least} × {least} pixels, but the first stage decodes to {colours} of "
                    f"{sides[0]} × {sides[1]}; set loss_config.params.lpips_weight: 0, or another net."
                )
            self._lpips = lpips.to(start.device)

    def __call__(self, f: Tensor, f0: Tensor, probes: NoisyLatents, model: Model) -> Tensor:
        rows = (x0_gain(model)[probes.t] <= self.max_gain).nonzero().flatten()
        if not len(rows):
            return 0 * f.sum()  # with its graph: what is differentiated is the same in every step
        counted = NoisyLatents(probes.z_t[rows], probes.t[rows], probes.choice.select(rows.tolist()))
        return super().__call__(f[rows], f0[rows], counted, model) * (len(rows) / len(f))

    def compared(self, f: Tensor, f0: Tensor, probes: NoisyLatents, model: Model) -> Tuple[Tensor, Tensor]:
        """D(x̂₀) of both networks, (B, 3, H, W) each; the frozen one's without a graph."""
        pictures = model.differentiable_decode_first_stage(predicted_x0(f, probes, model))
        with torch.no_grad():
            return pictures, model.differentiable_decode_first_stage(predicted_x0(f0, probes, model))

    def distances(self, f: Tensor, f0: Tensor) -> Tensor:
        error = self.l2_weight * squared_error(f, f0)
        return error if self._lpips is None else error + self.lpips_weight * self._lpips(f, f0).float().flatten()


def predicted_x0(f: Tensor, probes: NoisyLatents, model: Model) -> Tensor:
    """x̂₀ = (z_t − √(1−ᾱ_t) f)/√ᾱ_t (Ho et al. 2020, eq. 15), or f where the model predicts x0: (B, C, h, w), in the precision of z_t."""
    if model.parameterization == "x0":
        return f.to(probes.z_t)
    abar = model.alphas_cumprod[probes.t].float().view(-1, 1, 1, 1)
    return ((probes.z_t.float() - (1 - abar).sqrt() * f.float()) / abar.sqrt()).to(probes.z_t)


def x0_gain(model: Model) -> Tensor:
    """‖Δx̂₀‖/‖Δε‖ at each t: √((1−ᾱ)/ᾱ), (T,). 0 where the model predicts x0, and x̂₀ comes from no ε."""
    abar = model.alphas_cumprod.float()
    return torch.zeros_like(abar) if model.parameterization == "x0" else ((1 - abar) / abar).sqrt()


def load_lpips(net: str) -> nn.Module:
    """torchmetrics' LPIPS (Zhang et al. 2018, arXiv 1801.03924): (B, 3, H, W) in [-1, 1], twice -> (B, 1, 1, 1); frozen, in eval mode.

    Raises FileNotFoundError where torchvision's weights are not in torch hub's cache: nothing is downloaded.
    """
    name, _ = LPIPS_NETWORKS[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"loss_config.params.net is {net!r}, but LPIPS's weights are not there: expected torchvision's {path}. Get it with "
            f"`curl --create-dirs -o {path} https://download.pytorch.org/models/{name}`, or set loss_config.params.lpips_weight: 0."
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # here: it brings torchvision, which no other loss needs

    # The metric itself averages over the batch, and refuses pictures a little beyond [-1, 1], as decoders make them: its network does neither.
    return LearnedPerceptualImagePatchSimilarity(net_type=net).net.requires_grad_(False)


class UniformWeights(Part):
    """Every timestep weighs 1."""

    def __call__(self, t: Tensor, model: Model) -> Tensor:
        return torch.ones_like(t, dtype=torch.float32)


class VLBWeights(Part):
    """The weights of the KL divergence between the two models' sampling chains: of ‖Δε‖² summed over a step's latent (Ho et al. 2020, eq. 8).

    w_t = β_t² / (2 σ_t² α_t (1 − ᾱ_t)) for t ≥ 1, σ_t² the posterior variance; w_0 = w_1. With a model that predicts x0, times ᾱ_t/(1 − ᾱ_t),
    which turns Δx0 into Δε. Far below 1 for most t (0.0065 on average for Stable Diffusion's schedule): the weight of the term grows in turn.
    """

    def __call__(self, t: Tensor, model: Model) -> Tensor:
        return (vlb_weights(model.alphas_cumprod) * eps_per_output(model)).float()[t]


class MinSNRWeights(Part):
    """Timesteps of little noise weigh no more than at SNR γ: w_t = min(SNR_t, γ)/SNR_t for ε, min(SNR_t, γ) for x0 (Hang et al. 2023, arXiv 2303.09556)."""

    def __init__(self, gamma: float = 5.0):
        self.gamma = positive(gamma, "t_weights_config.params.gamma")

    def __call__(self, t: Tensor, model: Model) -> Tensor:
        abar = model.alphas_cumprod.double()
        snr = abar / (1 - abar)
        return ((self.gamma / snr).clamp(max=1) * eps_per_output(model)).float()[t]


def vlb_weights(alphas_cumprod: Tensor) -> Tensor:
    """w_t of `VLBWeights` for a model that predicts ε, from ᾱ (T,): (T,), float64."""
    abar = alphas_cumprod.double()
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    alpha = abar / before
    beta = 1 - alpha
    variance = beta * (1 - before) / (1 - abar)
    weights = beta[1:] ** 2 / (2 * variance[1:] * alpha[1:] * (1 - abar[1:]))
    return torch.cat([weights[:1], weights])


def eps_per_output(model: Model) -> Tensor:
    """‖Δε‖² over the squared difference of the outputs, for each t: (T,), float64. 1 where the model predicts ε, ᾱ/(1 − ᾱ) where x0."""
    abar = model.alphas_cumprod.double()
    return abar / (1 - abar) if model.parameterization == "x0" else torch.ones_like(abar)
