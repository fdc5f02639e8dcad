"""First stages: pictures (B, C, H, W) in [-1, 1] to latents (B, embed_dim, h, w), and back.

AutoencoderKL        Gaussian latents, held near N(0, 1) (Kingma & Welling 2013, arXiv 1312.6114; Rombach et al. 2021, arXiv 2112.10752)
VQModel              latents from a codebook (van den Oord et al. 2017, arXiv 1711.00937; Esser et al. 2020, arXiv 2012.09841)
VQModelInterface     the same for diffusion: its latents are those before the codebook, which belongs to the decoder
IdentityFirstStage   diffusion on pixels

Arguments that all share: ddconfig, of Encoder and Decoder. lossconfig: what to train on (torch.nn.Identity: not at all). ckpt_path, ignore_keys:
weights to start from, and the prefixes of those to leave out. image_key: of the pictures in a batch. colorize_nlabels: pictures are label maps of so
many channels, shown in random colours. monitor: the logged value by which the best checkpoint is chosen. scheduler_config: factor of the learning rate
by step. use_ema, ema_decay: keep averaged weights. optimizer_config: `target` and `params`; Adam with betas (0.5, 0.9) if left out.
perceptual_ckpt: file or files with the weights of LPIPS, for a loss that has it.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import Tensor, nn

from ldm.checkpoints.construction import weights_to_come
from ldm.models.first_stage import FirstStage
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

COMMITMENT_WEIGHT = 0.25  # beta of van den Oord et al.
RESIZE_STEP_PIXELS = 16
STEPS_AT_FULL_SIZE = 5


class AutoencoderKL(FirstStage):
    """Variational autoencoder; `ddconfig.double_z` must be true, for means and log-variances."""

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
        perceptual_ckpt: str | Sequence[str] = (),
    ):
        super().__init__()
        if not ddconfig.get("double_z", True):
            raise ValueError("ddconfig.double_z is false; AutoencoderKL needs true: its encoder gives means and log-variances")
        self.image_key = image_key
        with weights_to_come(self.file_has_all_weights(ckpt_path, ignore_keys)):
            self.encoder = Encoder(**ddconfig)
            self.decoder = Decoder(**ddconfig)
            self.set_up_loss(lossconfig, scheduler_config=scheduler_config, optimizer_config=optimizer_config, perceptual_ckpt=perceptual_ckpt)
            self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, kernel_size=1)
            self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], kernel_size=1)
        self.embed_dim = embed_dim
        self.set_up_colours(colorize_nlabels)
        if monitor is not None:
            self.monitor = monitor
        self.set_up_weights(ckpt_path, ignore_keys, use_ema=use_ema, ema_decay=ema_decay)

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

    def reconstruct(self, x: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        return self(x)

    def compute_loss(
        self, x: Tensor, reconstructions: Tensor, encoded: DiagonalGaussianDistribution, optimizer_idx: int, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(x, reconstructions, encoded, optimizer_idx, self.autoencoder_step, last_layer=self.get_last_layer(), split=split)

    def get_last_layer(self) -> nn.Parameter:
        """The weight at which a loss with a discriminator compares the sizes of its gradients."""
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], only_inputs: bool = False, **kwargs: Any) -> dict[str, Tensor]:
        """Rows of pictures (B, C, H, W): inputs; by the averaged weights, if there are any, reconstructions and samples (decoded standard noise)."""
        x = self.get_input(batch, self.image_key).to(self.device)
        rows = {"inputs": x}
        if not only_inputs:
            with self.ema_scope("log_images"):
                rows["reconstructions"], posterior = self(x)
                rows["samples"] = self.decode(torch.randn_like(posterior.mean))
        return self.for_the_eye(rows)


class VQModel(FirstStage):
    """Autoencoder whose latents are the nearest of `n_embed` vectors, position by position.

    batch_resize_range: (smallest, largest) side length in pixels; each batch is resized to one of them. lr_g_factor: learning rate of the autoencoder
    over that of the discriminator. remap: .npy file with the codes in use. sane_index_shape: codes come as (B, h, w) instead of flat.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: int,
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        batch_resize_range: tuple[int, int] | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        lr_g_factor: float = 1.0,
        remap: str | None = None,
        sane_index_shape: bool = False,
        use_ema: bool = False,
        *,
        ema_decay: float = 0.9999,
        optimizer_config: Mapping[str, Any] | None = None,
        perceptual_ckpt: str | Sequence[str] = (),
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.n_embed = n_embed
        self.image_key = image_key
        with weights_to_come(self.file_has_all_weights(ckpt_path, ignore_keys)):
            self.encoder = Encoder(**ddconfig)
            self.decoder = Decoder(**ddconfig)
            self.set_up_loss(lossconfig, scheduler_config=scheduler_config, optimizer_config=optimizer_config, perceptual_ckpt=perceptual_ckpt)
            self.quantize = VectorQuantizer2(n_embed, embed_dim, beta=COMMITMENT_WEIGHT, remap=remap, sane_index_shape=sane_index_shape)
            self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, kernel_size=1)
            self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], kernel_size=1)
        self.set_up_colours(colorize_nlabels)
        if monitor is not None:
            self.monitor = monitor
        self.batch_resize_range = batch_resize_range
        self.lr_g_factor = self.generator_lr_factor = lr_g_factor
        self.set_up_weights(ckpt_path, ignore_keys, use_ema=use_ema, ema_decay=ema_decay)

    def autoencoder_modules(self) -> Sequence[nn.Module]:
        return self.encoder, self.decoder, self.quantize, self.quant_conv, self.post_quant_conv

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> latents (B, embed_dim, h, w) before the codebook."""
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Any, Any, Tensor]]:
        """The nearest codebook vectors (B, embed_dim, h, w), the codebook loss, and a triple that ends with their indices."""
        return self.quantize(self.encode_to_prequant(x))

    def decode(self, quant: Tensor) -> Tensor:
        """Codebook vectors (B, embed_dim, h, w) -> pictures (B, out_ch, H, W)."""
        return self.decoder(self.post_quant_conv(quant))

    def decode_code(self, code_b: Tensor) -> Tensor:
        """Pictures of codes (B, h, w), int64."""
        if code_b.ndim != 3:
            raise ValueError(f"codes must have shape (B, h, w); got {tuple(code_b.shape)}: reshape them, or set sane_index_shape")
        return self.decode(self.quantize.get_codebook_entry(code_b.flatten(), (*code_b.shape, self.embed_dim)))

    def forward(self, input: Tensor, return_pred_indices: bool = False) -> tuple[Tensor, ...]:
        """The reconstruction and the codebook loss; with `return_pred_indices` also the codes."""
        quant, codebook_loss, (_, _, indices) = self.encode(input)
        reconstruction = self.decode(quant)
        return (reconstruction, codebook_loss, indices) if return_pred_indices else (reconstruction, codebook_loss)

    def get_input(self, batch: Mapping[str, Any], k: str) -> Tensor:
        x = super().get_input(batch, k)
        if self.batch_resize_range is None:
            return x
        smallest, largest = self.batch_resize_range
        sizes = range(smallest, largest + RESIZE_STEP_PIXELS, RESIZE_STEP_PIXELS)
        # The largest comes first: who lacks the memory for it shall learn so at once.
        size = largest if self.autoencoder_step < STEPS_AT_FULL_SIZE else sizes[torch.randint(len(sizes), ()).item()]
        return x if size == x.shape[2] else F.interpolate(x, size=size, mode="bicubic")

    def reconstruct(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        reconstruction, codebook_loss, indices = self(x, return_pred_indices=True)
        return reconstruction, (codebook_loss, indices)

    def compute_loss(
        self, x: Tensor, reconstructions: Tensor, encoded: tuple[Tensor, Tensor], optimizer_idx: int, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        codebook_loss, indices = encoded
        return self.loss(
            codebook_loss,
            x,
            reconstructions,
            optimizer_idx,
            self.autoencoder_step,
            last_layer=self.get_last_layer(),
            split=split,
            predicted_indices=indices,
        )

    def get_last_layer(self) -> nn.Parameter:
        """The weight at which a loss with a discriminator compares the sizes of its gradients."""
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], only_inputs: bool = False, plot_ema: bool = False, **kwargs: Any) -> dict[str, Tensor]:
        """Rows of pictures (B, C, H, W): inputs, reconstructions and, with `plot_ema`, those by the averaged weights."""
        x = self.get_input(batch, self.image_key).to(self.device)
        rows = {"inputs": x}
        if not only_inputs:
            rows["reconstructions"] = self.reconstruct(x)[0]
            if plot_ema:
                with self.ema_scope("log_images"):
                    rows["reconstructions_ema"] = self.reconstruct(x)[0]
        return self.for_the_eye(rows)


class VQModelInterface(VQModel):
    """VQModel as diffusion uses it: latents are continuous, and `decode` finds the nearest codebook vectors first."""

    def __init__(self, embed_dim: int, *args: Any, **kwargs: Any):
        super().__init__(*args, embed_dim=embed_dim, **kwargs)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> latents (B, embed_dim, h, w) before the codebook."""
        return self.encode_to_prequant(x)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents (B, embed_dim, h, w) -> pictures (B, out_ch, H, W); with `force_not_quantize` as they are."""
        return super().decode(h if force_not_quantize else self.quantize(h)[0])

    def forward(self, input: Tensor, return_pred_indices: bool = False) -> tuple[Tensor, ...]:
        quant, codebook_loss, (_, _, indices) = self.quantize(self.encode(input))
        reconstruction = self.decode(quant, force_not_quantize=True)
        return (reconstruction, codebook_loss, indices) if return_pred_indices else (reconstruction, codebook_loss)


class IdentityFirstStage(nn.Module):
    """No first stage: latents are the pictures. vq_interface: `quantize` answers as a quantiser does, with a loss and indices that are None."""

    def __init__(self, *args: Any, vq_interface: bool = False, **kwargs: Any):
        super().__init__()
        self.vq_interface = vq_interface

    def encode(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x

    def decode(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x

    def quantize(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return (x, None, [None, None, None]) if self.vq_interface else x

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x
