"""DPM-Solver++ behind the samplers' own face: the number of steps asked for, the curve that DDIM approaches, and a clear word without diffusers."""
from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from ldm.models.diffusion import noise_schedule
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.modules.diffusionmodules.util import make_beta_schedule

pytest.importorskip("diffusers")
SPREAD = 0.6


def gaussian_model(T: int = 1000, seen: list | None = None) -> SimpleNamespace:
    """The exact denoiser of data ~ N(0, SPREAD²), whose noise-free path is x_t ∝ sqrt(a SPREAD² + 1 − a)."""
    tables = noise_schedule.make_tables(make_beta_schedule("linear", T, 0.00085 * 1000 / T, min(0.012 * 1000 / T, 0.5)), 0.0)

    def apply_model(x, t, c):
        if seen is not None:
            seen.append((len(x), int(t[0])))
        a = tables.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (a * SPREAD**2 + 1 - a) + (0.0 if c is None else c.view(-1, 1, 1, 1))

    return SimpleNamespace(num_timesteps=T, apply_model=apply_model, **tables._asdict())


def sampled(kind, model, steps, **options):
    x_T = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return x_T, kind(model).sample(steps, 2, (1, 2, 2), x_T=x_T, verbose=False, **options)[0]


@pytest.mark.parametrize("T", [20, 1000])
def test_every_number_of_steps_is_made_and_leads_down(T):
    for steps in range(1, T + 1) if T < 100 else (1, 2, 15, 36, 99, 334, 999, 1000):
        seen = []
        _, x = sampled(DPMSolverSampler, gaussian_model(T, seen), steps)
        times = [t for _, t in seen]
        assert len(times) == steps and times == sorted(times, reverse=True) and times[0] == T - 1 and x.isfinite().all()


def test_with_twenty_steps_it_is_nearer_to_the_exact_path_than_ddim():
    model = gaussian_model()
    a = model.alphas_cumprod[-1]
    errors = {}
    for kind in (DPMSolverSampler, DDIMSampler):
        x_T, x = sampled(kind, model, 20)
        exact = x_T * SPREAD / (a * SPREAD**2 + 1 - a).sqrt()
        errors[kind] = (x - exact).norm() / exact.norm()
    assert errors[DPMSolverSampler] < 0.02 and errors[DPMSolverSampler] < errors[DDIMSampler] / 5


def test_guidance_is_one_batch():
    seen = []
    c = torch.full((2, 1), 0.1)
    sampled(DPMSolverSampler, gaussian_model(seen=seen), 3, conditioning=c, unconditional_conditioning=-c, unconditional_guidance_scale=2.0)
    assert [size for size, _ in seen] == [4, 4, 4]


def test_what_it_cannot_do_is_refused():
    for options, words in (({"eta": 0.5}, "adds no noise"), ({"temperature": 0.5}, "temperature"), ({"quantize_x0": True}, "quantize_denoised")):
        with pytest.raises(ValueError, match=words):
            sampled(DPMSolverSampler, gaussian_model(), 3, **options)
    for steps in (0, 21):
        with pytest.raises(ValueError, match="1 to 20"):
            sampled(DPMSolverSampler, gaussian_model(20), steps)


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="needs the package diffusers: pip install diffusers"):
        sampled(DPMSolverSampler, gaussian_model(), 3)
