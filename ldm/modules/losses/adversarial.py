"""A discriminator of patches and how its judgement enters a first stage's loss.

PatchGAN of Isola et al. 2016 (arXiv 1611.07004); the weight that balances it against the reconstruction: Esser et al. 2020 (arXiv 2012.09841), equation 7.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from torch import Tensor, nn

from ldm.modules.losses.perceptual import LPIPS

AUTOENCODER, DISCRIMINATOR = 0, 1  # optimizer_idx: who is being trained


def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Nothing more to gain beyond +1 for real and -1 for fake pictures (Lim & Ye 2017, arXiv 1705.02894), halved."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def vanilla_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy of real against fake (Goodfellow et al. 2014, arXiv 1406.2661), halved."""
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge_d_loss, "vanilla": vanilla_d_loss}


class PerceptualAdversarialLoss(nn.Module):
    """LPIPS and a discriminator of patches, with the arithmetic that losses for Gaussian latents and for codebooks share.

    disc_start: steps of the autoencoder before the discriminator counts. disc_factor: 0 switches it off for good. disc_weight: multiplies the
    adaptive weight. disc_conditional: the discriminator also sees `cond`, joined on the channels, which `disc_in_channels` counts.
    """

    def __init__(
        self,
        *,
        disc_start: int,
        disc_num_layers: int,
        disc_in_channels: int,
        disc_factor: float,
        disc_weight: float,
        disc_ndf: int,
        perceptual_weight: float,
        use_actnorm: bool,
        disc_conditional: bool,
        disc_loss: str,
    ):
        super().__init__()
        if disc_loss not in DISCRIMINATOR_LOSSES:
            raise ValueError(f"disc_loss is {disc_loss!r}; expected one of {', '.join(DISCRIMINATOR_LOSSES)}")
        self.perceptual_loss = LPIPS()
        self.perceptual_weight = perceptual_weight
        self.discriminator = NLayerDiscriminator(input_nc=disc_in_channels, ndf=disc_ndf, n_layers=disc_num_layers, use_actnorm=use_actnorm)
        self.discriminator.apply(weights_init)
        self.discriminator_iter_start = disc_start
        self.disc_loss = DISCRIMINATOR_LOSSES[disc_loss]
        self.disc_factor = disc_factor
        self.discriminator_weight = disc_weight
        self.disc_conditional = disc_conditional

    def perceptual_distance(self, x: Tensor, y: Tensor) -> Tensor:
        """LPIPS (B, 1, 1, 1), or zeros where it has no weight (then it needs no weights either)."""
        if self.perceptual_weight > 0:
            return self.perceptual_loss(x, y)
        return x.new_zeros(len(x), 1, 1, 1)

    def judge(self, pictures: Tensor, cond: Tensor | None) -> Tensor:
        """The discriminator's logits (B, 1, h, w), large for what it takes for real."""
        if (cond is not None) != self.disc_conditional:
            raise ValueError(f"disc_conditional is {self.disc_conditional} but cond was {'not ' if cond is None else ''}given")
        return self.discriminator(pictures if cond is None else torch.cat([pictures, cond], dim=1))

    def factor_at(self, global_step: int) -> float:
        """`disc_factor` once its time has come, 0 before."""
        return self.disc_factor if global_step >= self.discriminator_iter_start else 0.0

    def calculate_adaptive_weight(self, nll_loss: Tensor, g_loss: Tensor, last_layer: Tensor | None = None) -> Tensor:
        """disc_weight times the ratio of the gradients' norms of both losses at `last_layer`, at most 10^4; no gradient flows through it."""
        if last_layer is None:
            raise ValueError("a loss with a discriminator compares gradients at last_layer; pass the decoder's last weight")
        size_nll, size_g = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (nll_loss, g_loss))
        return (size_nll / (size_g + 1e-4)).clamp(0.0, 1e4).detach() * self.discriminator_weight

    def generator_term(
        self, nll_loss: Tensor, reconstructions: Tensor, global_step: int, last_layer: Tensor | None, cond: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What fooling the discriminator adds to the autoencoder's loss, and what to log of it."""
        g_loss = -self.judge(reconstructions, cond).mean()
        factor = self.factor_at(global_step)
        weight = g_loss.new_zeros(())
        if factor > 0 and torch.is_grad_enabled():  # validation has no gradients to compare
            weight = self.calculate_adaptive_weight(nll_loss, g_loss, last_layer)
        return weight * factor * g_loss, {"d_weight": weight, "disc_factor": g_loss.new_tensor(factor), "g_loss": g_loss.detach()}

    def discriminator_term(self, inputs: Tensor, reconstructions: Tensor, global_step: int, cond: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's own loss, and what to log of it."""
        real, fake = self.judge(inputs.detach(), cond), self.judge(reconstructions.detach(), cond)
        loss = self.factor_at(global_step) * self.disc_loss(real, fake)
        return loss, {"disc_loss": loss.detach(), "logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}


def under(split: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """`parts` with their names put under `split`/."""
    return {f"{split}/{name}": value for name, value in parts.items()}
