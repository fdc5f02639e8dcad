"""ImageSpace: pictures of both networks' x̂₀, compared as PTI compares its generator's."""
import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.regularization import (
    CachedTeacher,
    FrozenCopy,
    ImageSpace,
    MinSNRWeights,
    MixedLatents,
    NoiseLatents,
    NoiseMSE,
    NoisyLatents,
    PriorSamples,
    TrainingLatents,
    TrainingPictures,
)
from ldm.regularization.choices import Prompts
from ldm.regularization.losses import LPIPS_NETWORKS, x0_gain
from tests.models.diffusion import tiny
from tests.regularization.doubles import ToyModel, batch_of, regularizer_of, start_of
from tests.regularization.steps import move
from tests.regularization.tiny_runs import batch_of as pictures_of
from tests.regularization.tiny_runs import ready, regularized_model, term_config

ANY_T = 1000.0  # a max_gain that lets all timesteps count


class Painter(ToyModel):
    """A ToyModel with a linear decoder: (B, 2, 4, 4) -> (B, 3, 32, 32); with `scale`, latents times that number instead."""

    def __init__(self, seed: int = 0, scale=None):
        super().__init__(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            colours = nn.Conv2d(2, 3, 1).requires_grad_(False)
        self.first_stage_model = nn.Sequential(colours, nn.Upsample(scale_factor=8))
        self.scale, self.decoded = scale, []

    def differentiable_decode_first_stage(self, z):
        self.decoded.append(len(z))
        return self.first_stage_model(z) if self.scale is None else self.scale * z


def probes_at(t) -> NoisyLatents:
    return NoisyLatents(torch.randn(len(t), 2, 4, 4), torch.tensor(t), Prompts([""] * len(t)))


def outputs(n: int, size: float = 1.0):
    f0 = torch.randn(n, 2, 4, 4)
    return f0 + size * torch.randn_like(f0), f0


def parameters_of(model):
    return [*model.model.parameters(), *model.cond_stage_model.parameters()]


# -- L2 of pictures --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_decoded_by_a_number_l2_is_the_squared_difference_in_eps_times_the_square_of_number_and_gain(scale):
    model, t = Painter(scale=scale), [0, 4, 9, 19]
    f, f0 = outputs(4)
    abar = model.alphas_cumprod[torch.tensor(t)]
    expected = ((1 - abar) / abar * scale**2 * (f - f0).pow(2).flatten(1).mean(1)).mean()
    loss = ImageSpace(l2_weight=0.5, lpips_weight=0, max_gain=ANY_T)(f, f0, probes_at(t), model)
    torch.testing.assert_close(loss, 0.5 * expected, rtol=1e-4, atol=1e-5)


def test_the_decoder_sees_the_latents_from_which_the_probes_were_noised():
    model = Painter(scale=1.0)
    z_0, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 9, 18])
    probes = NoisyLatents(model.q_sample(z_0, t, eps), t, Prompts([""] * 3))
    pictures, frozen = ImageSpace(lpips_weight=0).compared(eps, torch.zeros_like(eps), probes, model)
    torch.testing.assert_close(pictures, z_0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frozen, probes.z_t / model.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1))


def test_a_model_that_predicts_x0_is_decoded_as_it_is_at_every_timestep():
    model, (f, f0) = Painter(scale=2.0), outputs(2)
    model.parameterization = "x0"
    loss = ImageSpace(lpips_weight=0)(f, f0, probes_at([0, 19]), model)
    torch.testing.assert_close(loss, 4 * NoiseMSE()(f, f0, probes_at([0, 19]), model))


def test_where_x0_magnifies_too_much_probes_weigh_nothing_and_are_not_decoded():
    model, t = Painter(), [1, 19, 5, 18]
    f, f0 = outputs(4)
    probes = probes_at(t)
    gains = [math.sqrt((1 - a) / a) for a in model.alphas_cumprod[torch.tensor(t)].tolist()]
    assert gains[0] < gains[2] < 2.0 < gains[3] < gains[1]
    loss = ImageSpace(lpips_weight=0)(f, f0, probes, model)
    assert model.decoded == [2, 2]
    near = NoisyLatents(probes.z_t[[0, 2]], probes.t[[0, 2]], Prompts(["", ""]))
    torch.testing.assert_close(loss, ImageSpace(lpips_weight=0, max_gain=ANY_T)(f[[0, 2]], f0[[0, 2]], near, model) / 2)

    f = f.requires_grad_()
    nothing = ImageSpace(lpips_weight=0, max_gain=0.01)(f, f0, probes, model)
    assert nothing == 0 and not torch.autograd.grad(nothing, f)[0].any()


def test_weights_over_t_apply_to_the_probes_that_count():
    model, (f, f0) = Painter(), outputs(3)
    probes, weights = probes_at([2, 19, 8]), MinSNRWeights(gamma=1.0)
    w = weights(probes.t, model)

    def alone(i: int) -> torch.Tensor:
        part = slice(i, i + 1)
        return ImageSpace(lpips_weight=0)(f[part], f0[part], NoisyLatents(probes.z_t[part], probes.t[part], Prompts([""])), model)

    torch.testing.assert_close(ImageSpace(lpips_weight=0, t_weights=weights)(f, f0, probes, model), (w[0] * alone(0) + w[2] * alone(2)) / 3)


def test_gain_of_the_published_schedule_is_what_the_text_says():
    model = Painter()
    model.alphas_cumprod = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    gain = x0_gain(model)
    assert float(gain[-1]) == pytest.approx(14.6, abs=0.05) and gain[562] <= 2.0 < gain[563]


# -- in the term -----------------------------------------------------------------------------------------------------------------------


def test_at_theta_0_the_term_and_its_gradient_are_zero():
    model = Painter()
    term = regularizer_of(model, loss=ImageSpace(lpips_weight=0))(model, batch_of(4), 3)
    gradients = torch.autograd.grad(term.loss, parameters_of(model))
    assert term.loss == 0 and not any(part.any() for part in gradients)


def test_the_gradient_reaches_the_tuned_network_alone():
    model, teacher = Painter(), FrozenCopy()
    regularizer = regularizer_of(model, loss=ImageSpace(lpips_weight=0), teacher=teacher)
    frozen = copy.deepcopy(teacher._theta["model"].state_dict())
    model.take_a_step()
    regularizer(model, batch_of(4), 3).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.model.parameters())
    still = [*model.first_stage_model.parameters(), *(p for module in teacher._theta.values() for p in module.parameters())]
    assert still and all(parameter.grad is None for parameter in still)
    assert all(torch.equal(value, frozen[name]) for name, value in teacher._theta["model"].state_dict().items())


@pytest.mark.parametrize("frozen", [False, True])
def test_only_the_tuned_networks_pictures_have_a_graph(frozen):
    f, f0 = (part.requires_grad_() for part in outputs(2))
    pictures = ImageSpace(lpips_weight=0).compared(f, f0, probes_at([3, 4]), Painter())
    assert pictures[frozen].requires_grad is not frozen


def test_stored_outputs_are_decoded_like_the_copys(tmp_path):
    model, losses = Painter(), []
    cache = {"cache_dir": str(tmp_path)}
    cached, copied = (
        regularizer_of(model, loss=ImageSpace(lpips_weight=0), latents=PriorSamples(samples=4, ddim_steps=2, **cache), teacher=teacher, batch_size=4)
        for teacher in (CachedTeacher(noisings=3, **cache), FrozenCopy())
    )
    model.take_a_step()
    probes = cached.draw(model, batch_of(4))
    f = model.denoise(probes)
    for term in (cached, copied):
        losses.append(term.loss(f, term.teacher(model, probes), probes, model))
    torch.testing.assert_close(*losses)
    assert losses[0] > 0


@pytest.mark.parametrize("kind", ["PICTURES", "CODEBOOK"])
def test_pictures_of_a_real_first_stage(kind, base, tmp_path):
    """The model's own decoder, scaled as it scales; for VQ the gradient goes straight through the codebook."""
    params = {"first_stage_config": getattr(tiny, kind), "scale_factor": 0.5}
    model = regularized_model(base if kind == "PICTURES" else None, tmp_path, params, latents="TrainingLatents", teacher="FrozenCopy").eval()
    f, f0 = (torch.randn(2, 4, 8, 8) for _ in range(2))
    f = f.requires_grad_()
    probes = NoisyLatents(torch.randn(2, 4, 8, 8), torch.tensor([0, 3]), Prompts(["", ""]))
    abar = model.alphas_cumprod[probes.t].view(-1, 1, 1, 1)
    by_hand = [model.decode_first_stage((probes.z_t - (1 - abar).sqrt() * out) / abar.sqrt()) for out in (f, f0)]
    loss = ImageSpace(lpips_weight=0, max_gain=ANY_T)(f, f0, probes, model)
    torch.testing.assert_close(loss, nn.functional.mse_loss(*by_hand))
    loss.backward()
    assert f.grad.any() and all(parameter.grad is None for parameter in model.first_stage_model.parameters())


def test_a_run_takes_it_from_its_configuration(base, tmp_path, monkeypatch):
    config, losses = term_config(tmp_path), "ldm.regularization.losses"
    config["params"]["loss_config"] = {
        "target": f"{losses}.ImageSpace", "params": {"lpips_weight": 0, "t_weights_config": {"target": f"{losses}.MinSNRWeights"}}
    }  # fmt: skip
    monkeypatch.setattr("tests.regularization.tiny_runs.term_config", lambda *args, **kwargs: config)
    model = ready(regularized_model(base, tmp_path))
    assert "ImageSpace(l2_weight=1.0, lpips_weight=0.0, net=alex, max_gain=2.0) weighted by MinSNRWeights" in model.describe()
    move(model.model)
    loss, logs = model.shared_step(pictures_of(2))
    assert logs["train/loss_locality"] > 0
    torch.testing.assert_close(loss, logs["train/loss_original"] + 10 * logs["train/loss_locality"])
    loss.backward()
    assert any(parameter.grad.any() for parameter in model.model.parameters())
    assert not any(key.startswith("regularizer") for key in model.state_dict())


# -- LPIPS -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch hub's cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return Path(torch.hub.get_dir()) / "checkpoints"


@pytest.fixture
def squeeze(hub):
    """A random network where torchvision's SqueezeNet is looked for; LPIPS's own layers come with the library."""
    models = pytest.importorskip("torchvision.models")
    hub.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(models.squeezenet1_1().state_dict(), hub / LPIPS_NETWORKS["squeeze"][0])


def test_both_terms_with_their_weights_are_the_librarys(squeeze):
    functional = pytest.importorskip("torchmetrics.functional.image.lpips")
    model, loss, (f, f0) = Painter(), ImageSpace(l2_weight=0.5, lpips_weight=3.0, net="squeeze"), outputs(3, size=0.1)
    loss.prepare(start_of(model), 0)
    probes = probes_at([0, 3, 8])
    f = f.requires_grad_()
    R = loss(f, f0, probes, model)
    pictures, frozen = loss.compared(f, f0, probes, model)
    lpips = [functional._NoTrainLpips(net="squeeze")(pictures[i : i + 1], frozen[i : i + 1]).squeeze() for i in range(3)]
    expected = 0.5 * nn.functional.mse_loss(pictures, frozen) + 3.0 * torch.stack(lpips).mean()
    torch.testing.assert_close(R, expected)
    torch.testing.assert_close(torch.autograd.grad(R, f)[0], torch.autograd.grad(expected, f)[0])
    assert torch.stack(lpips).mean() > 1e-4 and not any(parameter.requires_grad for parameter in loss._lpips.parameters())


def test_at_theta_0_lpips_and_its_gradient_are_zero(squeeze):
    model = Painter()
    term = regularizer_of(model, loss=ImageSpace(net="squeeze"))(model, batch_of(4), 3)
    gradients = torch.autograd.grad(term.loss, parameters_of(model))
    assert term.loss == 0 and not any(part.any() for part in gradients)


def test_lpips_of_the_published_weights_is_the_librarys_documented_value():
    name = LPIPS_NETWORKS["squeeze"][0]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
        pytest.skip(f"torchvision's weights {name} are not in torch hub's cache, and nothing is downloaded")
    loss, generator = ImageSpace(l2_weight=0, net="squeeze"), torch.Generator().manual_seed(42)
    loss.prepare(start_of(Painter()), 0)
    first, second = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    torch.testing.assert_close(loss.distances(first, second), torch.tensor([0.1024, 0.0938]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("net", sorted(LPIPS_NETWORKS))
def test_without_its_weights_lpips_is_refused_before_training_and_nothing_is_downloaded(net, hub, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args, **kwargs: pytest.fail("a download"))
    with pytest.raises(FileNotFoundError, match="lpips_weight: 0") as refusal:
        regularizer_of(Painter(), loss=ImageSpace(net=net))
    assert str(hub / LPIPS_NETWORKS[net][0]) in str(refusal.value) and "curl" in str(refusal.value)
    regularizer_of(Painter(), loss=ImageSpace(net=net, lpips_weight=0))


def test_the_files_looked_for_are_torchvisions():
    models = pytest.importorskip("torchvision.models")
    weights = {"alex": models.AlexNet_Weights, "vgg": models.VGG16_Weights, "squeeze": models.SqueezeNet1_1_Weights}
    assert {net: name for net, (name, _) in LPIPS_NETWORKS.items()} == {net: Path(of.DEFAULT.url).name for net, of in weights.items()}


@pytest.mark.parametrize("net", sorted(LPIPS_NETWORKS))
def test_the_least_side_is_the_least_that_the_library_takes(net):
    functional = pytest.importorskip("torchmetrics.functional.image.lpips")
    lpips, least = functional._LPIPS(net=net, pnet_rand=True), LPIPS_NETWORKS[net][1]
    assert lpips(torch.zeros(1, 3, least, least), torch.ones(1, 3, least, least)).isfinite().all()
    with pytest.raises(RuntimeError):
        lpips(torch.zeros(1, 3, least - 1, least - 1), torch.ones(1, 3, least - 1, least - 1))


@pytest.mark.parametrize(("decode", "found"), [(lambda z: z, "2 of 4 × 4"), (lambda z: z.new_zeros(len(z), 3, 16, 16), "3 of 16 × 16")])
def test_pictures_that_lpips_cannot_see_are_refused(squeeze, decode, found):
    model = Painter()
    model.differentiable_decode_first_stage = decode
    with pytest.raises(ValueError, match=f"{found}.*lpips_weight: 0"):
        regularizer_of(model, loss=ImageSpace(net="squeeze"))


# -- what is refused -------------------------------------------------------------------------------------------------------------------


def test_latents_at_which_no_probe_could_count_are_refused():
    with pytest.raises(ValueError, match="least timestep of the latents is 19.*any_t: true"):
        regularizer_of(Painter(), latents=NoiseLatents(), loss=ImageSpace(lpips_weight=0))
    late = MixedLatents([PriorSamples(), TrainingPictures(t_min=18)])
    with pytest.raises(ValueError, match="least timestep of the latents is 18.*smaller t_min"):
        regularizer_of(Painter(), latents=late, loss=ImageSpace(lpips_weight=0))
    with pytest.raises(ValueError, match="t_min is 20.*20 timesteps"):
        regularizer_of(Painter(), latents=TrainingPictures(t_min=20), loss=ImageSpace(lpips_weight=0))
    for latents, loss in [(NoiseLatents(any_t=True), ImageSpace(lpips_weight=0)), (NoiseLatents(), ImageSpace(lpips_weight=0, max_gain=ANY_T)),
                          (TrainingLatents(), ImageSpace(lpips_weight=0))]:  # fmt: skip
        regularizer_of(Painter(), latents=latents, loss=loss)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"l2_weight": -1.0}, "l2_weight is -1.0; expected a number of at least 0"),
        ({"lpips_weight": -0.5}, "lpips_weight is -0.5; expected a number of at least 0"),
        ({"lpips_weight": float("nan")}, "lpips_weight is nan"),
        ({"l2_weight": 0, "lpips_weight": 0}, "both 0"),
        ({"net": "alexnet"}, "net is 'alexnet'; expected one of alex, vgg, squeeze"),
        ({"max_gain": 0}, "max_gain is 0"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_impossible_settings_are_refused_by_name(params, message):
    with pytest.raises(ValueError, match=message):
        ImageSpace(**params)
