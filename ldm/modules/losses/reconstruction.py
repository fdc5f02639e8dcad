"""A reconstruction loss without a network in it, for small first stages trained on a CPU.

loss = mean |x - y| + gradient_weight * (mean |dx(x - y)| + mean |dy(x - y)|) + colour_weight * mean pool(x - y)^2
       + latent_colour_weight * mean (z_rgb - shrunk(x))^2 + kl_weight * KL per latent entry

dx, dy are the differences of neighbouring pixels: plain L1 is content with blurred outlines, its gradients are not (gradient difference loss
with exponent 1, Mathieu et al. 2015, arXiv 1511.05440). pool averages squares of 4 × 4 pixels: what is left there is a wrong colour and no
outline, and its square makes a pink drawn grey matter more than many small errors. Without it a code of four channels learns shapes long
before it learns colours. z_rgb are the first three channels of the posterior's mean, shrunk(x) is the picture at the size of the latents:
left to itself a small code may put all colours on one line, each between two others, and a red that is a little off comes out yellow.
"""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


def neighbour_differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal (B, C, H, W-1) and vertical (B, C, H-1, W) differences of neighbouring pixels of (B, C, H, W)."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


class L1WithGradient(nn.Module):
    """Mean L1 of pixels and of their differences, with a Kullback-Leibler term; called as LPIPSWithDiscriminator is.

    kl_weight: price of one nat *per latent entry*. KL to N(0, 1) is summed over the entries of a picture, averaged over the batch and divided by
        the number of entries, so that it is a mean like the two L1 terms and one weight serves every resolution. (LPIPSWithDiscriminator weighs
        sums against sums: its kl_weight w is kl_weight = w * latent entries / pixel values here.)
    gradient_weight: weight of the differences against the pixels, both in the units of pixels ([-1, 1]).
    colour_weight: weight of the squared error of colours, averaged over POOL × POOL pixels.
    latent_colour_weight: weight of the squared distance of the first three latent channels from the colours of the pixels that each entry stands for.
    """

    POOL = 4

    def __init__(self, kl_weight: float = 1e-4, gradient_weight: float = 1.0, colour_weight: float = 0.0, latent_colour_weight: float = 0.0):
        super().__init__()
        self.kl_weight = kl_weight
        self.gradient_weight = gradient_weight
        self.colour_weight = colour_weight
        self.latent_colour_weight = latent_colour_weight

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
        """The loss and what to log of it.

        inputs, reconstructions: (B, C, H, W) in [-1, 1]. weights: per picture, broadcastable to (B, 1, 1, 1), for the L1 terms; None is 1.
        optimizer_idx, global_step, last_layer and cond matter to losses with a discriminator alone.
        """
        error = reconstructions - inputs
        if weights is not None:
            error = error * weights
        across, down = neighbour_differences(error)  # the difference of differences, since both are linear
        rec_loss = error.abs().mean()
        gradient_loss = across.abs().mean() + down.abs().mean()
        kl_loss = posteriors.kl().mean() / posteriors.mean[0].numel()
        loss = rec_loss + self.gradient_weight * gradient_loss + self.kl_weight * kl_loss
        parts = {"rec_loss": rec_loss, "gradient_loss": gradient_loss, "kl_loss": kl_loss}
        if self.colour_weight:
            parts["colour_loss"] = F.avg_pool2d(error, self.POOL).square().mean()
            loss = loss + self.colour_weight * parts["colour_loss"]
        if self.latent_colour_weight:
            shrunk = F.adaptive_avg_pool2d(inputs, posteriors.mean.shape[-2:])
            if posteriors.mean.shape[1] < shrunk.shape[1]:
                raise ValueError(
                    f"lossconfig.params.latent_colour_weight is {self.latent_colour_weight}, but {posteriors.mean.shape[1]} latent channels (embed_dim) "
                    f"cannot hold the {shrunk.shape[1]} colours of a picture; set it to 0, or embed_dim to at least {shrunk.shape[1]}"
                )
            parts["latent_colour_loss"] = F.mse_loss(posteriors.mean[:, : shrunk.shape[1]], shrunk)
            loss = loss + self.latent_colour_weight * parts["latent_colour_loss"]
        parts["total_loss"] = loss
        return loss, {f"{split}/{name}": value.detach() for name, value in parts.items()}
