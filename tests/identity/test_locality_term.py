"""What must hold of R by its definition, on a real model: it vanishes where nothing has moved, and only there.

`mean f²` and `mean f0²` are taken at the same probes as R. Bounds: 1e-10 and 1e-4 for what only the size of a batch rounds
differently, 1e-3 for half precision.
"""
from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.diffusion.regularized import RegularizedLatentDiffusion
from ldm.regularization import TrainingBatch, hash_tensors
from tests.golden.case import load_case
from tests.models.diffusion.tiny import recorded_model
from tests.regularization.steps import move
from tests.regularization.tiny_runs import batch_of, ready, regularized_model, write_base

ISLAND = "ldm.regularization.conditioning"
CONDITIONINGS = {
    "empty": "EmptyPrompt",
    "class": "ClassPrompts",
    "mixture": ("Mixture", {"parts": [{"target": f"{ISLAND}.EmptyPrompt"}, {"target": f"{ISLAND}.ClassPrompts"}], "weights": [1, 3]}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return write_base(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def model_of(base, tmp_path_factory):
    """Models by their term, each made once and given away as copies."""
    made: dict[str, RegularizedLatentDiffusion] = {}
    cache = tmp_path_factory.mktemp("banks")

    def model_of(**term) -> RegularizedLatentDiffusion:
        if repr(term) not in made:
            made[repr(term)] = ready(regularized_model(base, cache, **term))
        return copy.deepcopy(made[repr(term)])

    return model_of


class Evaluation(NamedTuple):
    R: torch.Tensor
    f: torch.Tensor
    f0: torch.Tensor


def evaluate(model: RegularizedLatentDiffusion, size: int = 2) -> Evaluation:
    """R at the next probes, and the two outputs that it compares."""
    outputs, distance = [], model.regularizer.loss

    def loss(f, f0, probes, model):
        outputs.extend((f, f0))
        return distance(f, f0, probes, model)

    captions = tuple(batch_of(size)["caption"])
    batch = TrainingBatch(torch.randn(size, 4, 8, 8), torch.randint(0, model.num_timesteps, (size,)), captions)
    model.regularizer.loss = loss
    term = model.regularizer(model, batch, step=0)
    model.regularizer.loss = distance
    return Evaluation(term.loss / model.regularizer.weight.weight, *outputs)


def tuned(model) -> list[torch.nn.Parameter]:
    return [p for module in model.tuned_modules().values() for p in module.parameters()]


def gradient(scalar: torch.Tensor, model) -> torch.Tensor:
    """The gradient with respect to θ, as one vector."""
    parts = torch.autograd.grad(scalar, tuned(model), retain_graph=True, allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def optimiser_step(model, seed: int = 0) -> None:
    torch.manual_seed(seed)
    optimizer = model.configure_optimizers()
    loss, _ = model.shared_step(batch_of(2))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("conditioning", "latents"),
    [("empty", "NoiseLatents"), ("class", "TrainingLatents"), ("class", "PriorSamples"), ("mixture", "PriorSamples"), ("mixture", "TrainingLatents")],
)
def test_at_step_zero_r_and_its_gradient_are_exactly_zero_for_a_copy(model_of, conditioning, latents):
    model = model_of(conditioning=CONDITIONINGS[conditioning], latents=latents, teacher="FrozenCopy")
    R, f, f0 = evaluate(model)
    assert R.item() == 0.0 and f0.abs().max() > 0.01
    assert not gradient(R, model).any() and gradient(f.pow(2).mean(), model).any()


def test_so_they_are_on_the_recorded_model(tmp_path):
    recorded = recorded_model("ld_a")
    base = tmp_path / "base.ckpt"
    torch.save({"state_dict": recorded.state_dict()}, base)
    params = {"timesteps": 1000, "unet_config": recorded_config("unet_config"), "first_stage_config": recorded_config("first_stage_config")}
    model = ready(regularized_model(str(base), tmp_path, {**params, "cond_stage_config": recorded_config("cond_stage_config")}, teacher="FrozenCopy"))
    assert set(dict(model.named_parameters())) == set(dict(recorded.named_parameters()))
    R, f, _ = evaluate(model)
    assert R.item() == 0.0 and not gradient(R, model).any() and f.abs().max() > 0


@pytest.mark.parametrize("latents", ["NoiseLatents", "PriorSamples"])
def test_at_step_zero_a_cache_in_fp32_leaves_only_rounding(model_of, latents):
    model = model_of(latents=latents, teacher="CachedTeacher", batch_size=5)
    R, f, f0 = evaluate(model)
    assert R <= 1e-10 * f0.pow(2).mean()
    assert gradient(R, model).norm() <= 1e-4 * gradient(f.pow(2).mean(), model).norm()
    assert model.regularizer.floor <= 1e-10


@pytest.mark.parametrize(
    ("teacher", "latents"), [("FrozenCopy", "TrainingLatents"), ("FrozenCopy", "PriorSamples"), ("CachedTeacher", "PriorSamples")], ids=str
)
def test_so_does_a_pass_together_with_the_batch(model_of, teacher, latents):
    model = model_of(teacher=teacher, latents=latents, batch_size=5, share_forward=True)
    met, distance = [], model.regularizer.loss

    def loss(f, f0, probes, model):
        met.append((distance(f, f0, probes, model), f, f0))
        return met[-1][0]

    model.regularizer.loss = loss
    model.shared_step(batch_of(2))
    ((R, f, f0),) = met
    assert R <= 1e-10 * f0.pow(2).mean()
    assert gradient(R, model).norm() <= 1e-4 * gradient(f.pow(2).mean(), model).norm()


@pytest.mark.parametrize(
    ("teacher", "bound"),
    [
        (("FrozenCopy", {"dtype": "bfloat16"}), 1e-3),
        (("FrozenCopy", {"dtype": "float16"}), 1e-3),
        (("CachedTeacher", {"dtype": "bfloat16"}), 1e-5),
        (("CachedTeacher", {"dtype": "float16"}), 1e-6),
    ],
    ids=str,
)
def test_at_step_zero_a_teacher_in_half_precision_leaves_the_rounding_of_its_format(model_of, teacher, bound):
    model = model_of(teacher=teacher, batch_size=5)
    R, _, f0 = evaluate(model)
    assert 0 < R <= bound * f0.float().pow(2).mean() and 0 < model.regularizer.floor <= bound


@pytest.mark.parametrize("teacher", ["FrozenCopy", "CachedTeacher"])
def test_after_one_step_r_is_not_zero_and_theta_0_has_not_moved(model_of, teacher):
    model = model_of(teacher=teacher)
    before = frozen_state(model)
    optimiser_step(model)
    R, f, f0 = evaluate(model)
    assert R > 1e-6 * f0.pow(2).mean() and gradient(R, model).any()
    assert frozen_state(model) == before


def test_the_text_encoders_drift_is_held_too(model_of):
    model = model_of(teacher="FrozenCopy")
    move(model.cond_stage_model)
    R, _, _ = evaluate(model)
    assert R > 0
    encoder = torch.autograd.grad(R, list(model.cond_stage_model.parameters()), allow_unused=True)
    assert any(part is not None and part.any() for part in encoder), "the student's encoding keeps its graph"


def test_r_on_fresh_probes_equals_r_on_the_bank_within_its_error(model_of):
    """Training against stored outputs is not training against noise that only the bank has."""
    model = model_of(teacher=("CachedTeacher", {"noisings": 8}), batch_size=8)
    for seed in range(6):
        optimiser_step(model, seed)
    fresh = model_of(teacher="FrozenCopy", batch_size=8)
    fresh.model, fresh.cond_stage_model = model.model, model.cond_stage_model
    values = {}
    for name, drawn in (("bank", model), ("fresh", fresh)):
        with torch.no_grad():
            per_probe = torch.cat([(f - f0).pow(2).mean(dim=(1, 2, 3)) for _, f, f0 in (evaluate(drawn) for _ in range(14))])
        values[name] = per_probe.mean(), per_probe.std() / len(per_probe) ** 0.5
    difference, error = values["bank"][0] - values["fresh"][0], (values["bank"][1] ** 2 + values["fresh"][1] ** 2) ** 0.5
    assert abs(difference) < 3 * error and error < 0.15 * values["fresh"][0]


@pytest.mark.parametrize("term", [{"latents": "TrainingLatents", "teacher": "FrozenCopy"}, {"batch_size": 5}, {"batch_size": 1}], ids=str)
def test_r_is_the_mean_over_its_probes(model_of, term):
    model = model_of(**term)
    optimiser_step(model)
    size = 3
    R, f, f0 = evaluate(model, size)
    assert len(f) == (term.get("batch_size") or size)
    torch.testing.assert_close(R, torch.stack([(f[i] - f0[i]).pow(2).mean() for i in range(len(f))]).mean())


def test_the_sum_is_what_is_differentiated(model_of):
    """Gradient of the step = gradient of the original loss + λ · gradient of R; the concept's vectors feel only the first."""
    model, alone = model_of(teacher="FrozenCopy", latents="TrainingLatents"), model_of(teacher="FrozenCopy", latents="TrainingLatents")
    for either in (model, alone):
        optimiser_step(either)
    alone.regularizer.weight.weight = 0.0
    batch, results = batch_of(2), []
    for either in (model, alone):
        torch.manual_seed(4)
        loss, logs = either.shared_step(batch)
        vector, *theta = torch.autograd.grad(loss, [*either.embedding_manager.embedding_parameters(), *tuned(either)], allow_unused=True)
        results.append((logs, vector, torch.cat([part.flatten() for part in theta if part is not None])))
    (logs, vector, total), (logs_alone, vector_alone, original) = results
    torch.testing.assert_close(logs["train/loss_original"], logs_alone["train/loss"].detach(), rtol=0, atol=0)
    torch.testing.assert_close(logs["train/loss"], logs["train/loss_original"] + 10.0 * logs["train/loss_locality"])
    assert torch.equal(vector, vector_alone)
    assert not torch.allclose(total, original, rtol=1e-3)


def frozen_state(model) -> str:
    teacher = model.regularizer.teacher
    if hasattr(teacher, "_theta"):
        return hash_tensors({f"{name}.{key}": value for name, module in teacher._theta.items() for key, value in module.state_dict().items()})
    entries = model.regularizer._source._entries
    return hash_tensors({"f0": entries.frozen, "z_t": entries.z_t})


def recorded_config(name: str) -> dict:
    config = OmegaConf.to_container(load_case("ld_a_weights").config)
    part = config["model"]["params"][name]
    if name == "cond_stage_config":
        part["params"]["text_config"] = config["clip_text_config"]
    return part

