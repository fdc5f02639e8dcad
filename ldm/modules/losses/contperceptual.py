"""The training loss of published autoencoders with Gaussian latents (Rombach et al. 2021, arXiv 2112.10752, appendix G).

nll = sum over a picture of rec / e^s + s, with rec = |x - y| + perceptual_weight * LPIPS(x, y) and s = `logvar`
loss = nll + kl_weight * KL + adaptive weight * (-mean D(y)); sums over a picture, means over the batch.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.adversarial import AUTOENCODER, PerceptualAdversarialLoss, under


class DummyLoss(nn.Module):
    """In a config: this first stage is not trained."""


class LPIPSWithDiscriminator(PerceptualAdversarialLoss):
    """As above. kl_weight: price of a nat against summed pixels. logvar_init: s, which no optimiser trains (as published).

    pixelloss_weight multiplies |x - y|; the rest: PerceptualAdversarialLoss.
    """

    def __init__(
        self,
        disc_start: int,
        logvar_init: float = 0.0,
        kl_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_loss: str = "hinge",
    ):
        super().__init__(
            disc_start=disc_start,
            disc_num_layers=disc_num_layers,
            disc_in_channels=disc_in_channels,
            disc_factor=disc_factor,
            disc_weight=disc_weight,
            disc_ndf=64,
            perceptual_weight=perceptual_weight,
            use_actnorm=use_actnorm,
            disc_conditional=disc_conditional,
            disc_loss=disc_loss,
        )
        self.kl_weight = kl_weight
        self.pixel_weight = pixelloss_weight
        self.logvar = nn.Parameter(torch.tensor(float(logvar_init)))

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
        weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the autoencoder (optimizer_idx 0) or of the discriminator (1), and what to log.

        inputs, reconstructions: (B, C, H, W) in [-1, 1]. global_step: steps of the autoencoder so far. last_layer: the decoder's last weight.
        weights: per picture, broadcastable to (B, 1, 1, 1), for nll; None is 1.
        """
        if optimizer_idx != AUTOENCODER:
            loss, parts = self.discriminator_term(inputs, reconstructions, global_step, cond)
            return loss, under(split, parts)
        batch = len(inputs)
        rec_loss = self.pixel_weight * (inputs - reconstructions).abs() + self.perceptual_weight * self.perceptual_distance(inputs, reconstructions)
        nll = rec_loss / self.logvar.exp() + self.logvar                                      # (B, C, H, W)
        nll_loss = nll.sum() / batch
        weighted_nll_loss = nll_loss if weights is None else (weights * nll).sum() / batch
        kl_loss = posteriors.kl().sum() / batch
        term, adversarial = self.generator_term(nll_loss, reconstructions, global_step, last_layer, cond)
        loss = weighted_nll_loss + self.kl_weight * kl_loss + term
        parts = {"total_loss": loss, "logvar": self.logvar, "kl_loss": kl_loss, "nll_loss": nll_loss, "rec_loss": rec_loss.mean()}
        return loss, under(split, {name: value.detach() for name, value in parts.items()} | adversarial)
