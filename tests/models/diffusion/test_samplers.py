"""DDIM and PLMS: the recorded runs, and what must hold for every number of steps and every kind of model."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ldm.models.diffusion import noise_schedule, sampling
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler, extrapolate
from ldm.modules.diffusionmodules.util import make_beta_schedule
from tests.golden.case import assert_close_to_golden, load_case, oracle_file
from tests.models.diffusion.tiny import CODEBOOK, latent_diffusion, randomise, recorded_model

SAMPLERS = {"ddim": DDIMSampler, "plms": PLMSSampler}
ARRAYS = ["ddim_timesteps", "ddim_sigmas", "ddim_alphas", "ddim_alphas_prev", "ddim_sqrt_one_minus_alphas", "ddim_sigmas_for_original_num_steps"]
RUNS = ["ddim_eta0", "ddim_eta1", "ddim_eta0_noguid", "plms", "plms_noguid"]


class ToyModel:
    """What a sampler asks of a model: tables, `q_sample`, and an `apply_model` that is given."""

    def __init__(self, apply_model, timesteps: int = 1000, parameterization: str = "eps"):
        tables = noise_schedule.make_tables(make_beta_schedule("linear", timesteps, 0.00085, 0.012))
        self.__dict__.update(tables._asdict())
        self.tables, self.num_timesteps, self.parameterization, self.apply_model = tables, timesteps, parameterization, apply_model

    def q_sample(self, x0, t):
        return noise_schedule.q_sample(self.tables, x0, t, torch.randn_like(x0))

    def _predict_eps_from_xstart(self, x_t, t, x0):
        return noise_schedule.eps_from_x_0(self.tables, x_t, t, x0)


def perfect(x0: torch.Tensor, **settings) -> ToyModel:
    """A model that knows the only picture there is."""
    model = ToyModel(None, **settings)
    if model.parameterization == "x0":
        model.apply_model = lambda x, t, c: x0.expand_as(x)
    else:
        model.apply_model = lambda x, t, c: model._predict_eps_from_xstart(x, t, x0.expand_as(x))
    return model


def counting(timesteps: int = 1000) -> tuple[ToyModel, list[int]]:
    """A model that writes down at which steps it was asked."""
    visited: list[int] = []

    def apply_model(x, t, c):
        visited.append(int(t[0]))
        return 0.1 * x

    return ToyModel(apply_model, timesteps), visited


# -- recorded --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["ddim_S50_uniform_eta0.0", "plms_S50_uniform_eta0.0", "ddim_S50_uniform_eta1.0", "ddim_S10_uniform_eta0.0",
                                 "plms_S10_uniform_eta0.0", "ddim_S10_uniform_eta1.0", "ddim_S50_quad_eta0.0", "plms_S50_quad_eta0.0"])  # fmt: skip
def test_arrays_are_the_recorded_ones(run):
    case = load_case("ddim_arrays")
    kind, steps, method, eta = run.split("_")
    sampler = SAMPLERS[kind](ToyModel(None))
    sampler.make_schedule(int(steps[1:]), ddim_discretize=method, ddim_eta=float(eta[3:]), verbose=False)
    for name in ARRAYS:
        torch.testing.assert_close(torch.as_tensor(getattr(sampler, name)).double(), case[f"out/{run}/{name}"].double(), atol=1e-6, rtol=1e-5)


def test_every_recorded_array_is_compared():
    recorded = {key.split("/")[0] for key in load_case("ddim_arrays").under("out")}
    assert recorded == set(test_arrays_are_the_recorded_ones.pytestmark[0].args[1])


@pytest.fixture(scope="module", params=["ld_a", "ld_b"])
def recorded(request):
    return load_case(f"{request.param}_samplers"), recorded_model(request.param)


def close_for_its_size(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Guided states of these random models reach 40 and carry ten steps' rounding: the recorded samples lie 6e-5 from the same run in float64."""
    assert_close_to_golden(actual, expected, atol=max(5e-5, 5e-6 * expected.abs().max().item()))


@pytest.mark.parametrize("run", RUNS)
def test_samples_and_states_are_the_recorded_ones(recorded, run):
    case, model = recorded
    note = case.notes["runs"][run]
    draws = iter(case["in/noise_seq"])
    samples, seen = SAMPLERS[run.split("_")[0]](model).sample(
        S=note["S"], batch_size=2, shape=(4, 8, 8), conditioning=case["in/c"], normals_sequence=draws, eta=1.0 if "eta1" in run else 0.0, verbose=False,
        x_T=case["in/x_T"], log_every_t=note["log_every_t"], unconditional_guidance_scale=note["scale"], unconditional_conditioning=case["in/uc"],
    )  # fmt: skip
    close_for_its_size(samples, case[f"out/{run}/samples"])
    assert len(seen["x_inter"]) == len(seen["pred_x0"]) == note["n_x_inter"]
    for i in range(note["n_x_inter"]):
        close_for_its_size(seen["x_inter"][i], case[f"out/{run}/x_inter_{i}"])
        close_for_its_size(seen["pred_x0"][i], case[f"out/{run}/pred_x0_{i}"])
    assert len(case["in/noise_seq"]) - len(list(draws)) == note["noise_like_calls"]


def test_encoding_and_decoding_are_the_recorded_ones(recorded):
    case, model = recorded
    sampler = DDIMSampler(model)
    sampler.make_schedule(10, verbose=False)
    z = sampler.stochastic_encode(case["in/x0"], torch.tensor([4, 4]), noise=case["in/noise"])
    assert_close_to_golden(z, case["out/stochastic_encode_t4"])
    decoded = sampler.decode(z, case["in/c"], 5, unconditional_guidance_scale=3.0, unconditional_conditioning=case["in/uc"], verbose=False)
    assert_close_to_golden(decoded, case["out/ddim_decode_from_t5"])


def test_inpainting_is_the_recorded_one(recorded):
    case, model = recorded
    torch.manual_seed(load_case(f"{case.name[:4]}_core").notes["seed"])
    samples, _ = DDIMSampler(model).sample(10, 2, (4, 8, 8), case["in/c"], mask=case["in/mask"], x0=case["in/x0"], x_T=case["in/x_T"], verbose=False)
    assert_close_to_golden(samples, case["out/ddim_inpaint_manual_seed"])


# -- steps -----------------------------------------------------------------------------------------------------------------------------


def test_every_number_of_steps_gives_that_many():
    facts = json.loads(oracle_file("facts_optimizers_ddim.json").read_text())
    differing = {int(steps) for steps in facts["ddim_uniform_count_differs"]} | set(facts["ddim_uniform_S_IndexError_for_1000"])
    sampler = DDIMSampler(ToyModel(None))
    for S in range(1, 1001):
        sampler.make_schedule(S, ddim_eta=1.0, verbose=False)
        steps = sampler.ddim_timesteps
        assert steps.tolist() == [i * 1000 // S + (S < 1000) for i in range(S)]
        if S not in differing:  # where the original works, its own steps
            assert steps.tolist() == list(range(1, 1001, 1000 // S))
        sizes = sampler.step_sizes()
        assert all(len(column) == S and bool(column.isfinite().all()) for column in sizes)
        assert (np.diff(steps) > 0).all() and 0 <= steps[0] and steps[-1] < 1000


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("T", [2, 10, 37])
def test_every_number_of_steps_can_be_sampled(kind, T):
    for S in range(1, T + 1):
        model, visited = counting(T)
        x, seen = SAMPLERS[kind](model).sample(S, 1, (1, 2, 2), verbose=False, log_every_t=1)
        assert x.isfinite().all()
        assert len(seen["x_inter"]) == S + 1
        extra = 1 if kind == "plms" else 0  # its first step looks ahead
        assert len(visited) == S + extra
        assert sorted(set(visited)) == [i * T // S + (S < T) for i in range(S)]


@pytest.mark.parametrize("S", [36, 30, 334, 999])
def test_counts_that_failed_elsewhere(S):
    model, visited = counting()
    DDIMSampler(model).sample(S, 1, (1, 1, 1), verbose=False)
    assert len(visited) == S


@pytest.mark.parametrize("S", [0, 1001])
def test_more_steps_than_trained_are_refused(S):
    with pytest.raises(ValueError, match=f"{S} sampling steps.*1 to 1000"):
        DDIMSampler(ToyModel(None)).sample(S, 1, (1, 1, 1), verbose=False)


def test_quad_steps_crowd_near_the_data():
    sampler = DDIMSampler(ToyModel(None))
    sampler.make_schedule(20, ddim_discretize="quad", verbose=False)
    assert (np.diff(np.diff(sampler.ddim_timesteps)) >= 0).all()


# -- closed forms ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("parameterization", ["eps", "x0"])
@pytest.mark.parametrize("S", [2, 7, 30, 100])
def test_a_perfect_denoiser_leaves_the_noise_of_step_0(kind, parameterization, S):
    """With x0_hat = x0 and eta = 0 the noise stays the same all the way, and the walk ends at alpha_bar_0."""
    x0 = torch.randn(1, 3, 4, 4)
    model = perfect(x0, parameterization=parameterization, timesteps=100)
    sampler = SAMPLERS[kind](model)
    x_T = torch.randn(2, 3, 4, 4)
    x, _ = sampler.sample(S, 2, (3, 4, 4), x_T=x_T, verbose=False)
    first = torch.full((2,), int(sampler.ddim_timesteps[-1]))
    noise = noise_schedule.eps_from_x_0(model.tables, x_T, first, x0.expand_as(x_T))
    expected = noise_schedule.q_sample(model.tables, x0.expand_as(x_T), torch.zeros(2, dtype=torch.long), noise)
    torch.testing.assert_close(x, expected, atol=2e-4, rtol=1e-4)


def test_eta_1_on_all_steps_is_ancestral_sampling():
    """sigma of eta = 1 is the posterior's standard deviation, and the mean of the update is the posterior's mean."""
    model = ToyModel(None)
    sampler = DDIMSampler(model)
    sampler.make_schedule(1000, ddim_eta=1.0, verbose=False)
    x, eps = torch.randn(2, 3, 2, 4, 4)
    for index in (1, 500, 999):
        t = torch.full((3,), index)
        mean, _ = sampling.update(x, eps, sampler.step_sizes(use_original_steps=True).at(index), torch.zeros_like(x))
        posterior = noise_schedule.q_posterior(model.tables, noise_schedule.x_0_from_eps(model.tables, x, t, eps), x, t)
        torch.testing.assert_close(mean, posterior.mean, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sampler.ddim_sigmas_for_original_num_steps[1:].square(), model.posterior_variance[1:], rtol=1e-3, atol=0.0)


def test_samples_of_a_gaussian_have_its_moments():
    """The optimal denoiser of N(m, s^2) is linear; DDIM's ODE then carries noise to that Gaussian."""
    m, s = 0.8, 0.5
    model = ToyModel(None)

    def apply_model(x, t, c):
        a = model.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x - a.sqrt() * m) / (a * s**2 + 1 - a)

    model.apply_model = apply_model
    x_T = torch.linspace(-3, 3, 601).view(-1, 1, 1, 1)
    for sampler, S, tolerance in ((DDIMSampler, 200, 2e-2), (PLMSSampler, 50, 2e-2)):
        x, _ = sampler(model).sample(S, 601, (1, 1, 1), x_T=x_T, verbose=False)
        slope, middle = (x[-1] - x[0]).item() / 6, x[300].item()
        assert middle == pytest.approx(m, abs=tolerance + 0.05)  # the last step's abar is not quite 0: x_T is not quite standard
        assert slope == pytest.approx(s, abs=tolerance)
        assert (x.flatten().diff() > 0).all()


def test_extrapolation_is_exact_for_polynomials():
    """Adams-Bashforth of order k integrates polynomials of degree k - 1 exactly over the next step."""
    for order in (2, 3, 4):
        for degree in range(order):
            values = [torch.tensor(float(-back) ** degree) for back in range(order)]  # now, one step ago, …
            got = extrapolate(values[0], list(reversed(values[1:])))
            assert got.item() == pytest.approx(1 / (degree + 1), abs=1e-6)


def test_plms_is_nearer_to_the_curve_than_ddim():
    """On a smooth problem its higher order shows: the error to a run with very many steps is much smaller."""
    model = ToyModel(lambda x, t, c: 0.3 * torch.tanh(x))
    x_T = torch.randn(1, 4, 8, 8)

    fine = DDIMSampler(model)
    fine.make_schedule(1000, verbose=False)
    exact, _ = fine.ddim_sampling(None, x_T.shape, x_T=x_T, timesteps=952, verbose=False)  # from where 20 steps begin
    errors = [(sampler(model).sample(20, 1, (4, 8, 8), x_T=x_T, verbose=False)[0] - exact).norm() for sampler in (PLMSSampler, DDIMSampler)]
    assert errors[0] < 0.5 * errors[1]


# -- guidance --------------------------------------------------------------------------------------------------------------------------


class Watched(ToyModel):
    """A model whose answer shows its condition, and that remembers the batches it was given."""

    def __init__(self):
        super().__init__(self.answer)
        self.calls = []

    def answer(self, x, t, c):
        self.calls.append((x.shape[0], c))
        level = c["c_crossattn"][0] if isinstance(c, dict) else c
        return level.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(x) + 0.0 * x


def test_guidance_is_one_batch_with_the_unconditional_half_first():
    model = Watched()
    c, uc = torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 0.5)
    eps = sampling.predict_eps(model, torch.randn(2, 1, 2, 2), torch.tensor([5, 5]), c, scale=3.0, unconditional=uc)
    assert [size for size, _ in model.calls] == [4]
    torch.testing.assert_close(model.calls[0][1], torch.cat([uc, c]))
    torch.testing.assert_close(eps, torch.full_like(eps, 0.5 + 3.0 * 1.5))


@pytest.mark.parametrize("scale, with_unconditional", [(1.0, True), (3.0, False)])
def test_guidance_is_off_at_scale_1_and_without_unconditional(scale, with_unconditional):
    model = Watched()
    c = torch.ones(2, 3, 4)
    sampling.predict_eps(model, torch.randn(2, 1, 2, 2), torch.tensor([5, 5]), c, scale=scale, unconditional=c if with_unconditional else None)
    assert [size for size, _ in model.calls] == [2]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_guidance_of_dicts_equals_guidance_of_tensors(kind):
    c, uc, x_T = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 1, 2, 2)
    results = []
    for wrap in (lambda t: t, lambda t: {"c_crossattn": [t]}, lambda t: {"c_crossattn": [t], "c_concat": [torch.zeros(2, 1, 2, 2)]}):
        x, _ = SAMPLERS[kind](Watched()).sample(
            5, 2, (1, 2, 2), wrap(c), x_T=x_T, unconditional_guidance_scale=4.0, unconditional_conditioning=wrap(uc), verbose=False
        )
        results.append(x)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_conditions_of_different_build_are_refused_by_name():
    with pytest.raises(ValueError, match=r"c_crossattn: \[tensor \(2, 3, 4\)\].*tensor \(2, 3, 4\)"):
        c = torch.randn(2, 3, 4)
        DDIMSampler(Watched()).sample(5, 2, (1, 2, 2), c, unconditional_guidance_scale=2.0, unconditional_conditioning={"c_crossattn": [c]}, verbose=False)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: {"c_concat": [t]}])
def test_a_conditioning_of_another_batch_size_is_refused(wrap):
    with pytest.raises(ValueError, match="3 samples, but batch_size is 2"):
        DDIMSampler(Watched()).sample(5, 2, (1, 2, 2), wrap(torch.randn(3, 3, 4)), verbose=False)


# -- noise, masks, encoding ------------------------------------------------------------------------------------------------------------


def test_no_noise_matters_at_eta_0_and_temperature_scales_it_at_eta_1():
    model = ToyModel(lambda x, t, c: 0.1 * x)
    x_T, noise = torch.randn(1, 2, 3, 3), torch.randn(10, 1, 2, 3, 3)

    def result(**options):
        return DDIMSampler(model).sample(10, 1, (2, 3, 3), x_T=x_T, verbose=False, **options)[0]

    silent = result(eta=0.0)
    torch.testing.assert_close(result(eta=0.0, normals_sequence=noise), silent)
    torch.testing.assert_close(result(eta=1.0, temperature=0.5, normals_sequence=noise), result(eta=1.0, normals_sequence=0.5 * noise))
    assert not torch.allclose(result(eta=1.0, normals_sequence=noise), result(eta=1.0, normals_sequence=-noise))


def test_the_global_generator_gives_the_same_picture_twice():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(DDIMSampler(ToyModel(lambda x, t, c: 0.1 * x)).sample(5, 1, (2, 3, 3), eta=1.0, verbose=False)[0])
    assert torch.equal(*results)


def test_noise_options():
    x = torch.zeros(4, 2, 8, 8, dtype=torch.float64)
    repeated = sampling.NoiseOptions(repeat=True).draw(x)
    assert repeated.dtype == torch.float64 and all(torch.equal(repeated[0], sample) for sample in repeated)
    dropped = sampling.NoiseOptions(dropout=0.5).draw(x)
    assert 0.3 < (dropped == 0).double().mean() < 0.7


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_mask_keeps_what_it_covers(kind):
    x0 = torch.ones(2, 1, 4, 4) * 0.5
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1.0
    x, _ = SAMPLERS[kind](perfect(-x0[:1])).sample(50, 2, (1, 4, 4), mask=mask, x0=x0, verbose=False)
    assert (x[..., 2:] + 0.5).abs().max() < 0.2
    with pytest.raises(ValueError, match="without x0"):
        SAMPLERS[kind](perfect(x0[:1])).sample(5, 2, (1, 4, 4), mask=mask, verbose=False)


@pytest.mark.parametrize("use_original_steps", [False, True])
def test_decoding_leads_an_encoded_picture_back(use_original_steps):
    x0 = torch.randn(1, 3, 4, 4)
    sampler = DDIMSampler(perfect(x0))
    sampler.make_schedule(50, verbose=False)
    start = 30 if not use_original_steps else 400
    noise = torch.randn(1, 3, 4, 4)
    z = sampler.stochastic_encode(x0, torch.tensor([start]), use_original_steps=use_original_steps, noise=noise)
    back = sampler.decode(z, None, start + 1, use_original_steps=use_original_steps, verbose=False)
    # the diffusion's own last step ends at the data itself, the sampler's at alpha_bar_0
    abar = 1.0 if use_original_steps else sampler.model.alphas_cumprod[0]
    torch.testing.assert_close(back, abar**0.5 * x0 + (1 - abar) ** 0.5 * noise, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="steps were asked for"):
        sampler.decode(z, None, 1001, use_original_steps=use_original_steps, verbose=False)


def test_fewer_steps_begin_nearer_to_the_data():
    model, visited = counting()
    sampler = DDIMSampler(model)
    sampler.make_schedule(10, verbose=False)
    sampler.ddim_sampling(None, (1, 1, 2, 2), timesteps=3, verbose=False)
    assert visited == [201, 101, 1]
    visited.clear()
    sampler.ddim_sampling(None, (1, 1, 2, 2), timesteps=3, ddim_use_original_steps=True, verbose=False)
    assert visited == [2, 1, 0]


# -- what callers see ------------------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_after_each_step():
    steps, shown = [], []
    model = perfect(torch.ones(1, 1, 2, 2))
    DDIMSampler(model).sample(4, 1, (1, 2, 2), callback=steps.append, img_callback=lambda x0_hat, i: shown.append((i, x0_hat)), verbose=False)
    assert steps == [0, 1, 2, 3] == [i for i, _ in shown]
    assert all(torch.allclose(x0_hat, torch.ones(1, 1, 2, 2), atol=1e-3) for _, x0_hat in shown)


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_progress_bar_unless_silenced(kind, verbose, capsys):
    SAMPLERS[kind](ToyModel(lambda x, t, c: x)).sample(3, 1, (1, 2, 2), verbose=verbose)
    assert (f"{kind.upper()}: 100%" in capsys.readouterr().err) == verbose


def test_an_unknown_option_is_said_to_be_ignored(caplog):
    DDIMSampler(ToyModel(lambda x, t, c: x)).sample(3, 1, (1, 2, 2), verbose=False, guidance=7.5)
    assert "DDIMSampler.sample ignores guidance" in caplog.text


def test_plms_refuses_added_noise():
    with pytest.raises(ValueError, match="ddim_eta is 0.5.*must be 0"):
        PLMSSampler(ToyModel(None)).sample(5, 1, (1, 2, 2), eta=0.5, verbose=False)
    with pytest.raises(ValueError, match="t_next"):
        sampler = PLMSSampler(ToyModel(lambda x, t, c: x))
        sampler.make_schedule(5, verbose=False)
        sampler.p_sample_plms(torch.zeros(1, 1, 2, 2), None, torch.tensor([1]), 0)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_dtype_follows_the_model(kind):
    model = ToyModel(lambda x, t, c: 0.1 * x)
    for name, table in model.tables._asdict().items():
        setattr(model, name, table.double())
    x, _ = SAMPLERS[kind](model).sample(3, 1, (1, 2, 2), verbose=False)
    assert x.dtype == torch.float64


def test_buffers_of_a_sampler():
    sampler = DDIMSampler(ToyModel(None), schedule="cosine")
    sampler.register_buffer("anything", torch.ones(2))
    sampler.make_schedule(5, verbose=False)
    names = ["betas", "alphas_cumprod", *sampling.MODEL_TABLES, *ARRAYS, "anything"]
    assert all(hasattr(sampler, name) for name in names)
    assert sampler.schedule == "cosine" and sampler.ddpm_num_timesteps == 1000


class Doubler:
    """A score corrector."""

    def modify_score(self, model, eps, x, t, c, factor=2.0):
        return factor * eps


def test_a_score_corrector_changes_the_prediction():
    x, t = torch.ones(1, 1, 2, 2), torch.tensor([10])
    model = ToyModel(lambda x, t, c: 0.1 * x)
    got = sampling.predict_eps(model, x, t, None, score_corrector=Doubler(), corrector_kwargs={"factor": 3.0})
    torch.testing.assert_close(got, 0.3 * x)
    model.parameterization = "x0"
    with pytest.raises(ValueError, match="parameterization is x0"):
        sampling.predict_eps(model, x, t, None, score_corrector=Doubler())


@pytest.mark.parametrize("kind", SAMPLERS)
def test_quantised_predictions_are_codebook_entries(kind):
    model = randomise(latent_diffusion(first_stage_config=CODEBOOK)).eval()
    c = torch.randn(1, 77, 32)
    _, seen = SAMPLERS[kind](model).sample(3, 1, (4, 8, 8), c, quantize_x0=True, log_every_t=1, verbose=False)
    codes = model.first_stage_model.quantize.embedding.weight
    nearest = torch.cdist(seen["pred_x0"][-1].permute(0, 2, 3, 1).reshape(-1, 4), codes).amin(dim=1)
    assert nearest.max() < 1e-3
