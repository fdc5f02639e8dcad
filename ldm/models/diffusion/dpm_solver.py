"""DPM-Solver++: the diffusion's differential equation by a multistep method of second order in the data's prediction, good from about 15 steps on.

Lu et al. 2022 (arXiv 2211.01095), algorithm 2, on the noise levels of Karras et al. 2022 (arXiv 2206.00364), eq. 5; the arithmetic is
`diffusers.DPMSolverMultistepScheduler`, an optional dependency.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.sampling import Intermediates, LatentSampler, predict_eps

WALK_OPTIONS = ("x_T", "mask", "x0", "callback", "img_callback", "log_every_t", "verbose")
GUIDANCE_OPTIONS = ("score_corrector", "corrector_kwargs")


def scheduler_class() -> type:
    """The solver's class. Raises ValueError where diffusers is not installed."""
    try:
        from diffusers import DPMSolverMultistepScheduler
    except ImportError as error:
        raise ValueError('DPM-Solver++ needs the package diffusers: pip install diffusers (or pip install -e ".[dpm]"), or take DDIM or PLMS') from error
    return DPMSolverMultistepScheduler


class DPMSolverSampler(LatentSampler):
    """Samples by DPM-Solver++; always without added noise (eta = 0)."""

    name = "DPM-Solver++"

    def make_schedule(self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = True) -> None:
        """Its own steps, closer together near the data. Raises ValueError unless ddim_eta is 0 and ddim_num_steps is from 1 to T."""
        if ddim_eta != 0:
            raise ValueError(f"ddim_eta is {ddim_eta}; DPM-Solver++ adds no noise, so it must be 0 (DDIM takes others)")
        T = self.ddpm_num_timesteps
        if not 1 <= ddim_num_steps <= T:
            raise ValueError(f"{ddim_num_steps} sampling steps were asked for; the model was trained with {T}, so it must be 1 to {T}")
        self.solver = scheduler_class()(
            num_train_timesteps=T,
            trained_betas=self.model.betas.detach().float().cpu().tolist(),
            algorithm_type="dpmsolver++",
            solver_order=2,
            use_karras_sigmas=True,  # with steps even in t the last one, of first order, is so long that half of the gain over DDIM is lost
        )
        self.solver.set_timesteps(ddim_num_steps)
        self.solver.set_begin_index(0)
        self.ddim_timesteps = self.solver.timesteps.numpy()[::-1].copy()

    def _sampling(self, cond: Any, shape: Any, **options: Any) -> tuple[Tensor, Intermediates]:
        refused = [name for name, plain in (("quantize_denoised", False), ("noise_dropout", 0.0), ("temperature", 1.0)) if options[name] != plain]
        if refused:
            raise ValueError(f"DPM-Solver++ does not take {', '.join(refused)}; DDIM does")
        alphas_cumprod = self.model.alphas_cumprod

        def step(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, Tensor]:
            eps = predict_eps(
                self.model, x, t, cond, scale=options["unconditional_guidance_scale"], unconditional=options["unconditional_conditioning"],
                **{name: options[name] for name in GUIDANCE_OPTIONS},
            )  # fmt: skip
            a = alphas_cumprod[t[0]].to(x)
            x0_hat = (x - (1.0 - a).sqrt() * eps) / a.sqrt()
            return self.solver.step(eps.to(x), torch.as_tensor(int(t[0])), x).prev_sample, x0_hat

        return self._walk(step, shape, self.ddim_timesteps, **{name: options[name] for name in WALK_OPTIONS})
