"""DDIM: the diffusion's marginals reached in few steps, without noise (eta = 0) or with as much as DDPM adds (eta = 1).

Song et al. 2021 (arXiv 2010.02502), eq. 12; the update itself is `sampling.update`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.sampling import Intermediates, LatentSampler, NoiseOptions, predict_eps, quantizer, update
from ldm.modules.diffusionmodules.util import extract_into_tensor


class DDIMSampler(LatentSampler):
    """Samples by DDIM, and goes the way back from data to noise for image-to-image."""

    name = "DDIM"

    def _sampling(self, cond: Any, shape: Sequence[int], **options: Any) -> tuple[Tensor, Intermediates]:
        return self.ddim_sampling(cond, shape, **options)

    @torch.no_grad()
    def ddim_sampling(
        self,
        cond: Any,
        shape: Sequence[int],
        x_T: Tensor | None = None,
        ddim_use_original_steps: bool = False,
        callback: Callable[[int], Any] | None = None,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        log_every_t: int = 100,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        *,
        normals_sequence: Sequence[Tensor] | None = None,
        verbose: bool = True,
    ) -> tuple[Tensor, Intermediates]:
        """The walk behind `sample`, after `make_schedule`. timesteps: only the so many cleanest steps; ddim_use_original_steps: all T of the diffusion."""
        normals = None if normals_sequence is None else iter(normals_sequence)

        def step(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, Tensor]:
            return self.p_sample_ddim(
                x,
                cond,
                t,
                index=index,
                use_original_steps=ddim_use_original_steps,
                quantize_denoised=quantize_denoised,
                temperature=temperature,
                noise_dropout=noise_dropout,
                score_corrector=score_corrector,
                corrector_kwargs=corrector_kwargs,
                unconditional_guidance_scale=unconditional_guidance_scale,
                unconditional_conditioning=unconditional_conditioning,
                normals=normals,
            )

        return self._walk(
            step,
            shape,
            self._steps(ddim_use_original_steps, timesteps),
            x_T=x_T,
            mask=mask,
            x0=x0,
            callback=callback,
            img_callback=img_callback,
            log_every_t=log_every_t,
            verbose=verbose,
        )

    @torch.no_grad()
    def p_sample_ddim(
        self,
        x: Tensor,
        c: Any,
        t: Tensor,
        index: int,
        repeat_noise: bool = False,
        use_original_steps: bool = False,
        quantize_denoised: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        *,
        normals: Iterator[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step from x at t, which is number `index` of the sampler's steps: (x_prev, x0_hat), each the shape of x."""
        eps = predict_eps(
            self.model,
            x,
            t,
            c,
            scale=unconditional_guidance_scale,
            unconditional=unconditional_conditioning,
            score_corrector=score_corrector,
            corrector_kwargs=corrector_kwargs,
        )
        noise = NoiseOptions(repeat_noise, temperature, noise_dropout, normals).draw(x)
        return update(x, eps, self.step_sizes(use_original_steps).at(index), noise, quantizer(self.model) if quantize_denoised else None)

    @torch.no_grad()
    def stochastic_encode(self, x0: Tensor, t: Tensor, use_original_steps: bool = False, noise: Tensor | None = None) -> Tensor:
        """x0 noised to the sampler's step number t (B,), or to step t of the diffusion with `use_original_steps`."""
        sizes = self.step_sizes(use_original_steps)
        if noise is None:
            noise = torch.randn_like(x0)
        return extract_into_tensor(sizes.alphas.sqrt(), t, x0.shape) * x0 + extract_into_tensor(sizes.sqrt_one_minus_alphas, t, x0.shape) * noise

    @torch.no_grad()
    def decode(
        self,
        x_latent: Tensor,
        cond: Any,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        use_original_steps: bool = False,
        *,
        verbose: bool = True,
    ) -> Tensor:
        """Denoise x_latent through the `t_start` cleanest of the sampler's steps, or of the diffusion's with `use_original_steps`."""
        samples, _ = self.ddim_sampling(
            cond,
            x_latent.shape,
            x_T=x_latent,
            ddim_use_original_steps=use_original_steps,
            timesteps=t_start,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            verbose=verbose,
        )
        return samples
