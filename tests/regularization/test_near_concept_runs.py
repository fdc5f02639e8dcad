"""Ideas 3 to 5, trajectories and the drift budget in real models: exact at the start, away from the concept's vectors, cached only where they stand still."""
from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.regularized import build_regularizer, words_of
from ldm.regularization import TrainingBatch
from tests.models.diffusion.tiny import WORDS, with_params
from tests.regularization.steps import move
from tests.regularization.tiny_runs import fit, ready, regularized_model, term_config

COPY = {"teacher": "FrozenCopy", "latents": "TrainingLatents"}
LIST = {"prompts": ["a house", "two dogs"]}
AROUND_THE_MIDDLE = {"centre": "midpoint", "per_token": True}
KINDS = {
    "empty": "EmptyPrompt",
    "class": "ClassPrompts",
    "tokens": ("EmbeddingInterpolation", {"alpha": [0.2, 0.8]}),
    "lerp": ("EncodingInterpolation", {"kind": "lerp"}),
    "slerp": ("EncodingInterpolation", {"kind": "slerp"}),
    "towards": ("Hypersphere", LIST),
    "towards, of the middle": ("Hypersphere", {**AROUND_THE_MIDDLE, **LIST}),
    "span": ("Hypersphere", {"directions": "span", **LIST}),
    "span, of the middle": ("Hypersphere", {"directions": "span", **AROUND_THE_MIDDLE, **LIST}),
    "isotropic": ("Hypersphere", {"directions": "isotropic"}),
    "isotropic, of the middle": ("Hypersphere", {"directions": "isotropic", **AROUND_THE_MIDDLE}),
    "morphing": ("PTIMorphing", LIST),
    "morphing by a length": ("PTIMorphing", {"alpha": 1.5, **LIST}),
    "mixture": ("Mixture", {"parts": [{"target": "ldm.regularization.conditioning." + name} for name in ("ClassPrompts", "EncodingInterpolation")]}),
}
FIXED_WORD = {"train_embeddings": False}
SEVERAL_VECTORS = {"personalization_config": with_params(WORDS, num_vectors_per_token=3, progressive_words=True)}


def term_of(model):
    z_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    batch = TrainingBatch(z_t, torch.tensor([3, 9]), ("a photo of a *", "a rendering of a *"))
    return model.regularizer(model, batch, 0)


@pytest.mark.parametrize("name", KINDS)
def test_exact_at_the_start_then_held_without_reaching_the_concept(base, tmp_path, name):
    torch.manual_seed(0)
    model = ready(regularized_model(base, tmp_path, conditioning=KINDS[name], **COPY))
    move(model.embedding_manager, by=0.1)  # so that concept and class differ more than by a position
    vectors, encoder = list(model.embedding_manager.embedding_parameters()), list(model.cond_stage_model.parameters())
    tuned = [*encoder, *model.model.parameters()]
    at_start = term_of(model)
    assert model.regularizer.floor == 0.0 and at_start.loss == 0.0
    gradients = torch.autograd.grad(at_start.loss, tuned, allow_unused=True)
    assert sum(gradient is not None for gradient in gradients) > len(tuned) / 2
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients if gradient is not None), "0, and no NaN"
    move(model.cond_stage_model, by=0.02)
    term = term_of(model)
    assert term.loss > 0
    assert all(vector.requires_grad for vector in vectors)
    assert torch.autograd.grad(term.loss, vectors, allow_unused=True, retain_graph=True) == (None,) * len(vectors)
    gradients = torch.autograd.grad(term.loss, tuned, allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients[: len(encoder)]) > len(encoder) / 2
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("latents", ["PriorSamples", "NoiseLatents", ("Trajectories", {"samples": 4, "ddim_steps": 2})], ids=str)
@pytest.mark.parametrize("name", ["tokens", "span"])
def test_with_a_fixed_word_outputs_are_stored_and_found_again(base, tmp_path, name, latents):
    if isinstance(latents, tuple):
        latents = (latents[0], {**latents[1], "cache_dir": str(tmp_path)})
    model = ready(regularized_model(base, tmp_path, FIXED_WORD, conditioning=KINDS[name], latents=latents))
    assert 0 <= model.regularizer.floor < 1e-10
    assert term_of(model).logs["loss_locality"] < 1e-10
    files = set(tmp_path.iterdir())
    again = ready(regularized_model(base, tmp_path, FIXED_WORD, conditioning=KINDS[name], latents=latents))
    assert set(tmp_path.iterdir()) == files and again.regularizer.floor < 1e-10
    other = regularized_model(base, tmp_path, FIXED_WORD, conditioning=KINDS[name], latents=latents)
    move(other.embedding_manager, by=0.1)
    assert ready(other).regularizer.floor < 1e-10 and len(set(tmp_path.iterdir()) - files) == 1, "another word, other outputs; the samples are the same"


@pytest.mark.parametrize("params", [{}, {**SEVERAL_VECTORS, **FIXED_WORD}], ids=["trained word", "growing word"])
def test_with_a_word_that_moves_storing_is_refused_and_what_fits_is_named(base, tmp_path, params):
    model = regularized_model(base, tmp_path, params, conditioning="Hypersphere")
    with pytest.raises(ValueError, match="Hypersphere.*EmptyPrompt or ClassPrompts.*train_embeddings: false.*progressive_words: false.*FrozenCopy"):
        model.setup("fit")
    assert list(tmp_path.iterdir()) == [], "said before anything is sampled"


def test_a_growing_word_is_aligned_as_far_as_it_has_grown(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, SEVERAL_VECTORS, conditioning="EmbeddingInterpolation", **COPY))
    texts, encode = [], model.get_learned_conditioning
    model.get_learned_conditioning = lambda prompts: texts.append(prompts) or encode(prompts)
    for counter, word in ((0, "sculpture"), (1999, "sculpture sculpture"), (3999, "sculpture sculpture sculpture")):
        model.embedding_manager.progressive_counter = counter
        assert term_of(model).loss == 0.0
        assert texts[-1] == ["a photo of a *", "a rendering of a *", f"a photo of a {word}", f"a rendering of a {word}"]
        assert model.embedding_manager.progressive_counter == counter


def test_a_class_word_that_the_tokenizer_splits_is_refused_between_tokens_only(base, tmp_path, caplog):
    split = {"class_word": "polar bear"}
    with pytest.raises(ValueError, match="'polar bear' is 2 tokens.*1 vector.*conditioning_config.params.class_word, or take EncodingInterpolation"):
        ready(regularized_model(base, tmp_path, conditioning=("EmbeddingInterpolation", split), **COPY))
    model = ready(regularized_model(base, tmp_path, conditioning=("EncodingInterpolation", split), **COPY))
    assert "'polar bear' is 2 tokens" in caplog.text and term_of(model).loss == 0.0


def test_ideas_near_a_concept_need_one(base, tmp_path):
    with pytest.raises(ValueError, match="EncodingInterpolation.*personalization_config"):
        regularized_model(base, tmp_path, {"personalization_config": None}, conditioning=("EncodingInterpolation", {"class_word": "cat"}), **COPY)


def test_trajectories_are_the_states_that_the_sampler_hands_to_the_network(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, **COPY)).eval()
    x_T, met, apply_model = torch.randn(2, 4, 8, 8), [], model.apply_model
    model.apply_model = lambda z_t, t, cond: met.append((z_t.clone(), int(t[0]))) or apply_model(z_t, t, cond)
    with torch.no_grad():
        states, t = model.draw_trajectories(["a house", "a cat"], x_T, 5, 1.0)
        assert [at for _, at in met] == t.tolist() == sorted(t.tolist(), reverse=True) and len(met) == 5
        assert all(torch.equal(z_t, states[:, number]) for number, (z_t, _) in enumerate(met)) and torch.equal(states[:, 0], x_T)
        model.draw_prior(["a house", "a cat"], x_T, 5, 1.0)
    assert all(torch.equal(z_t, states[:, number]) for number, (z_t, _) in enumerate(met[5:])), "the same way as to the prior samples"


def test_a_drift_budget_holds_a_run_and_resumes(base, tmp_path):
    def budgeted():
        config = term_config(tmp_path, **COPY)
        meter = {"target": "ldm.regularization.drift_meter.DriftMeter", "params": {"samples": 2, "ddim_steps": 2, "noisings": 2, "points": 4}}
        params = {"budget": 1.0e-6, "measure_every": 2, "meter_config": {**meter, "params": {**meter["params"], "cache_dir": str(tmp_path)}}}
        config["params"]["weight_config"] = {"target": "ldm.regularization.weight.DriftBudget", "params": params}
        model = regularized_model(base, tmp_path, **COPY)
        model.regularizer = build_regularizer(config)
        model.regularizer.bind(words_of(WORDS))
        return model

    straight = budgeted()
    log = fit(straight, tmp_path / "straight", steps=6, pictures=2)
    drift, weight = log.by_step("train/drift"), log.by_step("train/locality_weight")
    assert list(drift) == [0, 2, 4] and drift[0] < 1e-10 < 1e-6 < drift[2] and weight[0] < 10.0 and weight[5] > weight[1]
    fit(budgeted(), tmp_path / "first", steps=3, pictures=2, save=True)
    resumed = budgeted()
    resumed_log = fit(resumed, tmp_path / "resumed", steps=6, pictures=2, resume=str(tmp_path / "first" / "last.ckpt"))
    assert list(resumed_log.by_step("train/drift")) == [4]
    assert resumed.regularizer.weight.dual == pytest.approx(straight.regularizer.weight.dual)


def test_the_shipped_parts_build_from_a_yaml(base, tmp_path):
    config = term_config(tmp_path, **COPY)
    loss = {"target": "ldm.regularization.losses.NoiseHuber", "params": {"delta": 0.2}}
    loss["params"]["t_weights_config"] = {"target": "ldm.regularization.losses.MinSNRWeights", "params": {"gamma": 3.0}}
    config["params"]["loss_config"] = loss
    assert "NoiseHuber(delta=0.2) weighted by MinSNRWeights(gamma=3.0)" in build_regularizer(config).describe()
