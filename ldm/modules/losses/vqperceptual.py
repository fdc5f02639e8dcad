"""The training loss of autoencoders with a codebook (Esser et al. 2020, arXiv 2012.09841, equations 4 to 7).

loss = mean rec + codebook_weight * codebook loss + adaptive weight * (-mean D(y)), with rec = |x - y| + perceptual_weight * LPIPS(x, y).
Numbers and keys are those of taming's class of this name, whose constructor would download its weights.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.losses.adversarial import AUTOENCODER, PerceptualAdversarialLoss, under

PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


def codebook_use(indices: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Perplexity e^H of the codes in `indices`, and how many different ones there are; equal to n_classes if all are used alike."""
    shares = torch.bincount(indices.flatten(), minlength=n_classes).float() / indices.numel()
    return torch.special.entr(shares).sum().exp(), (shares > 0).sum()


class VQLPIPSWithDiscriminator(PerceptualAdversarialLoss):
    """As above. n_classes: size of the codebook, to log how much of it is used. pixel_loss: l1 or l2; pixelloss_weight multiplies it.

    perceptual_loss: lpips is the only one. The rest: PerceptualAdversarialLoss.
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_ndf: int = 64,
        disc_loss: str = "hinge",
        n_classes: int | None = None,
        perceptual_loss: str = "lpips",
        pixel_loss: str = "l1",
    ):
        super().__init__(
            disc_start=disc_start,
            disc_num_layers=disc_num_layers,
            disc_in_channels=disc_in_channels,
            disc_factor=disc_factor,
            disc_weight=disc_weight,
            disc_ndf=disc_ndf,
            perceptual_weight=perceptual_weight,
            use_actnorm=use_actnorm,
            disc_conditional=disc_conditional,
            disc_loss=disc_loss,
        )
        if perceptual_loss != "lpips":
            raise ValueError(f"perceptual_loss is {perceptual_loss!r}; expected lpips")
        if pixel_loss not in PIXEL_LOSSES:
            raise ValueError(f"pixel_loss is {pixel_loss!r}; expected one of {', '.join(PIXEL_LOSSES)}")
        self.codebook_weight = codebook_weight
        self.pixel_weight = pixelloss_weight
        self.pixel_loss = PIXEL_LOSSES[pixel_loss]
        self.n_classes = n_classes

    def forward(
        self,
        codebook_loss: Tensor,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
        predicted_indices: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the autoencoder (optimizer_idx 0) or of the discriminator (1), and what to log.

        codebook_loss: the quantiser's. inputs, reconstructions: (B, C, H, W) in [-1, 1]. global_step: steps of the autoencoder so far.
        last_layer: the decoder's last weight. predicted_indices: the codes, int64, of any shape; their use is logged if n_classes is set.
        """
        if optimizer_idx != AUTOENCODER:
            loss, parts = self.discriminator_term(inputs, reconstructions, global_step, cond)
            return loss, under(split, parts)
        p_loss = self.perceptual_distance(inputs, reconstructions)
        rec_loss = self.pixel_weight * self.pixel_loss(reconstructions, inputs, reduction="none") + self.perceptual_weight * p_loss
        nll_loss = rec_loss.mean()
        quant_loss = codebook_loss.mean()
        term, adversarial = self.generator_term(nll_loss, reconstructions, global_step, last_layer, cond)
        loss = nll_loss + self.codebook_weight * quant_loss + term
        parts = {"total_loss": loss, "quant_loss": quant_loss, "nll_loss": nll_loss, "rec_loss": rec_loss.mean(), "p_loss": p_loss.mean()}
        if predicted_indices is not None and self.n_classes is not None:
            perplexity, used = codebook_use(predicted_indices, self.n_classes)
            parts |= {"perplexity": perplexity, "cluster_usage": used.float()}
        return loss, under(split, {name: value.detach() for name, value in parts.items()} | adversarial)
