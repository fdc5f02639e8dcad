"""PLMS: DDIM's update with the noise extrapolated from the last predictions, by linear multistep.

Liu et al. 2022, PNDM (arXiv 2202.09778), section 3.2: Adams-Bashforth of order 2 to 4; the first step averages two evaluations (improved Euler).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.sampling import Intermediates, LatentSampler, NoiseOptions, predict_eps, quantizer, update

ADAMS_BASHFORTH = {  # order: weights of the present prediction, the last one, the one before …
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def extrapolate(eps: Tensor, old_eps: Sequence[Tensor]) -> Tensor:
    """Adams-Bashforth of the order that the past allows. old_eps: the last predictions, oldest first, at least one."""
    history = [eps, *reversed(old_eps[-3:])]
    return sum(weight * e for weight, e in zip(ADAMS_BASHFORTH[len(history)], history, strict=True))


class PLMSSampler(LatentSampler):
    """Samples by PLMS; always without added noise (eta = 0)."""

    name = "PLMS"

    def make_schedule(self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = True) -> None:
        """As in DDIM. Raises ValueError unless ddim_eta is 0."""
        if ddim_eta != 0:
            raise ValueError(f"ddim_eta is {ddim_eta}; PLMS adds no noise, so it must be 0 (DDIM takes others)")
        super().make_schedule(ddim_num_steps, ddim_discretize, ddim_eta, verbose)

    def _sampling(self, cond: Any, shape: Sequence[int], **options: Any) -> tuple[Tensor, Intermediates]:
        return self.plms_sampling(cond, shape, **options)

    @torch.no_grad()
    def plms_sampling(
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
        steps = self._steps(ddim_use_original_steps, timesteps)
        old_eps: list[Tensor] = []

        def step(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, Tensor]:
            x_prev, x0_hat, eps = self.p_sample_plms(
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
                old_eps=old_eps,
                t_next=torch.full_like(t, int(steps[max(index - 1, 0)])),
                normals=normals,
            )
            old_eps[:] = [*old_eps, eps][-3:]
            return x_prev, x0_hat

        return self._walk(
            step,
            shape,
            steps,
            x_T=x_T,
            mask=mask,
            x0=x0,
            callback=callback,
            img_callback=img_callback,
            log_every_t=log_every_t,
            verbose=verbose,
        )

    @torch.no_grad()
    def p_sample_plms(
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
        old_eps: Sequence[Tensor] | None = None,
        t_next: Tensor | None = None,
        *,
        normals: Iterator[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step from x at t: (x_prev, x0_hat, the model's own eps). old_eps: the predictions so far, oldest first.

        t_next: the next step towards the data, needed where there are none yet. Raises ValueError where it is missing then.
        """
        sizes = self.step_sizes(use_original_steps).at(index)
        noise = NoiseOptions(repeat_noise, temperature, noise_dropout, normals)
        quantize = quantizer(self.model) if quantize_denoised else None

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return predict_eps(
                self.model,
                x,
                t,
                c,
                scale=unconditional_guidance_scale,
                unconditional=unconditional_conditioning,
                score_corrector=score_corrector,
                corrector_kwargs=corrector_kwargs,
            )

        eps = predict(x, t)
        if old_eps:
            better = extrapolate(eps, old_eps)
        elif t_next is None:
            raise ValueError("t_next: the first PLMS step needs to know where it leads")
        else:
            x_euler, _ = update(x, eps, sizes, noise.draw(x), quantize)
            better = (eps + predict(x_euler, t_next)) / 2
        x_prev, x0_hat = update(x, better, sizes, noise.draw(x), quantize)
        return x_prev, x0_hat, eps
