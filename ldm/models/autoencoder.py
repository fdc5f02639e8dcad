"""First stages: pictures to latents, and back.

AutoencoderKL: Gaussian latents, held near N(0, 1) by a small Kullback-Leibler term (Kingma & Welling 2013; Rombach et al. 2021, arXiv 2112.10752).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.first_stage import FirstStage
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class AutoencoderKL(FirstStage):
    """Variational autoencoder of pictures (B, C, H, W) in [-1, 1] with latents (B, embed_dim, h, w).

    ddconfig: arguments of Encoder and Decoder, with `double_z: true`. lossconfig: what to train on (`torch.nn.Identity`: not at all).
    ckpt_path, ignore_keys: weights to start from, and the prefixes of those to leave out. image_key: of the pictures in a batch.
    monitor: the logged value by which the best checkpoint is chosen.
    colorize_nlabels: pictures are maps of so many channels, shown as fixed random colours.
    scheduler_config: factor of the learning rate by step. use_ema, ema_decay: keep averaged weights. optimizer_config: `target` and `params`;
    Adam with betas (0.5, 0.9) if left out.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        *,
        scheduler_config: Mapping[str, Any] | None = None,
        use_ema: bool = False,
        ema_decay: float = 0.999,
        optimizer_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if not ddconfig["double_z"]:
            raise ValueError("ddconfig.double_z is false; AutoencoderKL needs true: its encoder gives means and log-variances")
        self.image_key = image_key
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.set_up_training(lossconfig, scheduler_config=scheduler_config, optimizer_config=optimizer_config)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], kernel_size=1)
        self.embed_dim = embed_dim
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))
        if monitor is not None:
            self.monitor = monitor
        self.set_up_average(use_ema, ema_decay)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)

    def autoencoder_modules(self) -> Sequence[nn.Module]:
        return self.encoder, self.decoder, self.quant_conv, self.post_quant_conv

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Pictures (B, C, H, W) -> the distribution of their latents, each (B, embed_dim, h, w)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, embed_dim, h, w) -> pictures (B, out_ch, H, W)."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, input: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """The reconstruction, from a sample or else from the mean, and the distribution of the latents."""
        posterior = self.encode(input)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior

    def compute_loss(self, x: Tensor, optimizer_idx: int, split: str) -> tuple[Tensor, dict[str, Tensor]]:
        reconstructions, posterior = self(x)
        return self.loss(x, reconstructions, posterior, optimizer_idx, self.loss_step, last_layer=self.get_last_layer(), split=split)

    def get_last_layer(self) -> nn.Parameter:
        """The weight at which losses with a discriminator compare the sizes of their gradients."""
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], only_inputs: bool = False, **kwargs: Any) -> dict[str, Tensor]:
        """Rows of pictures (B, C, H, W): inputs, their reconstructions, and samples (decoded standard noise)."""
        x = self.get_input(batch, self.image_key).to(self.device)
        if only_inputs:
            return {"inputs": x}
        with self.ema_scope("log_images"):
            reconstructions, posterior = self(x)
            samples = self.decode(torch.randn_like(posterior.mean))
        return {"inputs": x, "reconstructions": reconstructions, "samples": samples}
