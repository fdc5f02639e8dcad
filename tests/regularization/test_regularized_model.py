"""RegularizedLatentDiffusion around the term: configuration, captions, encoders, phases, and what it refuses."""
from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.diffusion.regularized import RegularizedLatentDiffusion, trainer_part
from ldm.prompts import imagenet_templates_small
from ldm.regularization import FrozenCopy, Mixture, NoiseMSE, TrainingBatch
from ldm.regularization.choices import Prompts
from ldm.regularization.configuration import build, plain
from ldm.regularization.types import NoisyLatents
from ldm.util import instantiate_from_config
from tests.models.diffusion.tiny import UNET, WORDS, with_params
from tests.regularization.steps import move, step_of
from tests.regularization.tiny_runs import PARAMS, batch_of, equal, ready, regularized_model, tensors_of, term_config

COPY = {"teacher": "FrozenCopy", "latents": "TrainingLatents"}
SEVERAL_VECTORS = {"personalization_config": with_params(WORDS, num_vectors_per_token=3, progressive_words=True)}


# -- configuration ---------------------------------------------------------------------------------------------------------------------


def test_parts_are_built_from_omegaconf_the_innermost_first_and_inside_lists(base, tmp_path):
    inner = {"target": "ldm.regularization.conditioning.ClassPrompts", "params": {"prompts": ["a house"]}}
    nested = {"target": "ldm.regularization.conditioning.Mixture", "params": {"parts": [inner, {"target": "ldm.regularization.conditioning.EmptyPrompt"}]}}
    config = OmegaConf.create(term_config(tmp_path, conditioning=("Mixture", {"parts": [nested, inner], "weights": [1, 3]}), **COPY))
    model = RegularizedLatentDiffusion(**OmegaConf.create(copy.deepcopy(PARAMS)), ckpt_path=base, regularization_config=config)
    outer = model.regularizer.conditioning
    assert isinstance(outer, Mixture) and isinstance(outer.parts[0], Mixture) and outer.weights == [1.0, 3.0]
    assert [type(part).__name__ for part in outer.parts[0].parts] == ["ClassPrompts", "EmptyPrompt"]
    assert isinstance(model.regularizer.teacher, FrozenCopy) and isinstance(model.regularizer.loss, NoiseMSE)


def test_x_config_becomes_the_argument_x_and_what_has_no_target_stays():
    params = {"a_config": {"target": "u"}, "b": {"c": 1}, "d": [1, "x"], "e_config": None}
    built = build({"target": "t", "params": params}, lambda config, **arguments: (config["target"], arguments))
    assert built == ("t", {"a": ("u", {}), "b": {"c": 1}, "d": [1, "x"], "e": None})
    with pytest.raises(ValueError, match="weight_config has no target"):
        build({"target": "t", "params": {"weight_config": {"params": {"weight": 1.0}}}}, lambda config, **kw: None)


def test_plain_values_of_any_config_can_be_written_by_json():
    assert plain(OmegaConf.create({"a": [1, {"b": None}], "c": 1.5})) == {"a": [1, {"b": None}], "c": 1.5}


@pytest.mark.parametrize("empty", [None, {}, OmegaConf.create({})], ids=["missing", "empty", "empty node"])
def test_an_empty_regularization_config_is_refused(base, empty):
    with pytest.raises(ValueError, match="regularization_config is empty.*weight: 0"):
        RegularizedLatentDiffusion(**copy.deepcopy(PARAMS), ckpt_path=base, regularization_config=empty)


def test_another_target_than_the_regularizer_is_refused(base):
    with pytest.raises(ValueError, match="NoiseMSE.*LocalityRegularizer"):
        RegularizedLatentDiffusion(**copy.deepcopy(PARAMS), ckpt_path=base, regularization_config={"target": "ldm.regularization.losses.NoiseMSE"})


def test_a_misspelt_parameter_is_named_with_the_nearest(base, tmp_path):
    config = term_config(tmp_path)
    config["params"]["weight_config"]["params"]["evry"] = 8
    with pytest.raises(ValueError, match="evry.*every"):
        RegularizedLatentDiffusion(**copy.deepcopy(PARAMS), ckpt_path=base, regularization_config=config)


def test_the_plain_class_refuses_a_regularization_config(base, tmp_path):
    with pytest.raises(ValueError, match="regularization_config"):
        instantiate_from_config({"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {**PARAMS, "regularization_config": term_config(tmp_path)}})


def test_the_class_word_is_the_init_word_unless_given(base, tmp_path):
    prompts = regularized_model(base, tmp_path, **COPY).regularizer.conditioning._prompts
    assert prompts == [template.format("sculpture") for template in imagenet_templates_small]
    given = regularized_model(base, tmp_path, conditioning=("ClassPrompts", {"class_word": "cat"}), **COPY)
    assert given.regularizer.conditioning._prompts[0] == "a photo of a cat"


# -- what contradicts itself -----------------------------------------------------------------------------------------------------------


def test_a_frozen_network_with_a_weight_is_a_contradiction_that_names_both_keys(base, tmp_path):
    with pytest.raises(ValueError, match="weight is 10.0.*unfreeze_model is false"):
        regularized_model(base, tmp_path, {"unfreeze_model": False}, **COPY)
    assert not regularized_model(base, tmp_path, {"unfreeze_model": False}, weight=0.0, **COPY).regularizer.on


def test_a_weight_without_a_base_checkpoint_is_refused_when_training_begins(tmp_path):
    model = regularized_model(None, tmp_path, **COPY)
    with pytest.raises(ValueError, match="base checkpoint.*--actual_resume"):
        model.setup("fit")
    model.setup("test")
    regularized_model(None, tmp_path, weight=0.0, **COPY).setup("fit")


def test_no_class_word_is_refused(base, tmp_path):
    words = with_params(WORDS)
    del words["params"]["initializer_words"]
    with pytest.raises(ValueError, match="no class word.*conditioning_config.params.class_word"):
        regularized_model(base, tmp_path, {"personalization_config": words}, **COPY)


@pytest.mark.parametrize(
    "params",
    [
        {"cond_stage_config": "__is_unconditional__", "cond_stage_trainable": False},
        {"cond_stage_config": "__is_first_stage__", "cond_stage_trainable": False, "cond_stage_key": "image", "conditioning_key": "concat"},
    ],
    ids=["unconditional", "picture"],
)
def test_a_model_without_a_way_for_text_is_refused(tmp_path, params):
    unet = with_params(UNET, in_channels=8 if "concat" in params.values() else 4, use_spatial_transformer=False, context_dim=None)
    with pytest.raises(ValueError, match="needs a text condition"):
        regularized_model(None, tmp_path, {**params, "unet_config": unet, "personalization_config": None}, conditioning="EmptyPrompt", **COPY)


def test_a_condition_that_is_no_text_is_refused_when_training_begins(base, tmp_path):
    classes = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 32, "n_classes": 5, "key": "class_label"}}
    params = {"cond_stage_config": classes, "cond_stage_key": "class_label", "personalization_config": None}
    model = regularized_model(None, tmp_path, params, conditioning="EmptyPrompt", **COPY)
    model._base = base
    with pytest.raises(ValueError, match="text condition.*class_label"):
        model.setup("fit")


def test_a_cached_teacher_on_training_latents_is_refused_before_the_model_is_built(tmp_path):
    with pytest.raises(ValueError, match="TrainingLatents.*PriorSamples or NoiseLatents"):
        regularized_model(str(tmp_path / "no-such.ckpt"), tmp_path, latents="TrainingLatents", teacher="CachedTeacher")


def test_training_before_theta_0_was_taken_is_refused_and_a_mere_evaluation_is_plain(base, tmp_path):
    model = regularized_model(base, tmp_path, **COPY)
    with pytest.raises(RuntimeError, match="setup"):
        step_of(model.train())
    _, logs = step_of(model.eval())
    assert "val/loss_locality" not in logs and "val/loss" in logs


# -- the concept, its manager and the encoders -----------------------------------------------------------------------------------------


def test_encoding_prompts_leaves_manager_and_vectors_as_they_were(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, SEVERAL_VECTORS, **COPY))
    manager, forward = model.embedding_manager, type(model.embedding_manager).forward
    manager.progressive_counter = 1999
    before = tensors_of(manager)
    c = model.encode_prompts(["a photo of a *", "a photo of a cat"])
    assert manager.progressive_counter == 1999 and equal(tensors_of(manager), before)
    assert all(vector.requires_grad for vector in manager.embedding_parameters()) and manager.forward.__func__ is forward
    gradients = torch.autograd.grad(c.pow(2).sum(), [*manager.embedding_parameters(), *model.cond_stage_model.parameters()], allow_unused=True)
    vectors = len(list(manager.embedding_parameters()))
    assert all(part is None for part in gradients[:vectors]) and any(part is not None and part.any() for part in gradients[vectors:])


def test_the_manager_is_itself_again_after_an_error(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, **COPY))
    with pytest.raises(ZeroDivisionError):
        model.encode_prompts(["a *"], edit_tokens=lambda e: 1 / 0)
    assert all(vector.requires_grad for vector in model.embedding_manager.embedding_parameters()) and "forward" not in vars(model.embedding_manager)


def test_tokens_can_be_edited_after_the_concept_is_in_and_before_the_transformer(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, **COPY)).eval()
    seen = []

    def halve_the_way(e):
        seen.append(e)
        return torch.stack([e.mean(dim=0)] * 2)

    c = model.encode_prompts(["a photo of a *", "a photo of a cat"], edit_tokens=halve_the_way)
    (vector,) = model.embedding_manager.embedding_parameters()
    assert any(torch.equal(token, vector[0]) for token in seen[0][0]), "the concept's vector stands in the first prompt"
    ends = model.encode_prompts(["a photo of a *", "a photo of a cat"])
    assert torch.allclose(c[0], c[1], atol=1e-5) and not torch.allclose(c[0], ends.mean(dim=0), atol=1e-3), "midpoint of tokens, not of encodings"


def test_progressive_words_count_as_in_an_unregularised_run(base, tmp_path):
    counters = []
    for weight in (0.0, 10.0):
        model = ready(regularized_model(base, tmp_path, SEVERAL_VECTORS, weight=weight, latents="NoiseLatents", teacher="FrozenCopy"))
        for _ in range(2):
            loss, _ = step_of(model)
            loss.backward()
        counters.append(model.embedding_manager.progressive_counter)
    assert counters[0] == counters[1] == 2


def test_captions_are_seen_where_the_encoder_is_trained_and_where_it_is_not(base, tmp_path):
    for trainable in (True, False):
        params = {"cond_stage_trainable": trainable, **({} if trainable else {"train_embeddings": False})}
        model = ready(regularized_model(base, tmp_path, params, **COPY))
        seen, choose = [], model.regularizer.conditioning.choose
        model.regularizer.conditioning.choose = lambda prompts, generator, choose=choose, seen=seen: seen.extend(prompts) or choose(prompts, generator)
        step_of(model)
        assert seen == [template.format("sculpture") for template in imagenet_templates_small[:2]], "each z_t keeps its picture's own caption"
        z, c, *rest = model.get_input(batch_of(2), "image")
        assert rest == [] and len(model.get_input(batch_of(2), "image", return_original_cond=True)) == 3


def test_a_text_encoder_that_is_not_tuned_is_not_copied(base, tmp_path):
    tuned = ready(regularized_model(base, tmp_path, **COPY))
    still = ready(regularized_model(base, tmp_path, {"cond_stage_trainable": False, "train_embeddings": False}, **COPY))
    assert sorted(tuned.regularizer.teacher._theta) == ["cond_stage_model", "model"] and list(still.regularizer.teacher._theta) == ["model"]


def test_the_student_is_the_averaged_network_inside_ema_scope(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, {"use_ema": True}, **COPY))
    batch = TrainingBatch(torch.randn(2, 4, 8, 8), torch.tensor([3, 9]), ("a *", "the *"))
    move(model.model)
    with model.ema_scope(), torch.no_grad():
        averaged = model.regularizer(model, batch, 0, training=False).logs["loss_locality"]
    assert averaged == 0.0 < model.regularizer(model, batch, 0, training=False).logs["loss_locality"], "the averages have not moved yet"


def test_an_override_of_apply_model_holds_for_both_networks(base, tmp_path):
    class Scaled(RegularizedLatentDiffusion):
        calls = 0

        def apply_model(self, *args, **kwargs):
            type(self).calls += 1
            return 3.0 * super().apply_model(*args, **kwargs)

    model = ready(Scaled(**copy.deepcopy(PARAMS), ckpt_path=base, regularization_config=term_config(tmp_path, **COPY)))
    before = Scaled.calls
    _, logs = step_of(model)
    assert Scaled.calls == before + 3 and logs["train/loss_locality"] == 0.0


@pytest.mark.parametrize("given", [False, True], ids=["noise drawn", "noise given"])
def test_training_latents_are_the_noisy_latents_that_the_loss_itself_meets(base, tmp_path, given):
    model = ready(regularized_model(base, tmp_path, **COPY))
    met, apply_model = [], model.apply_model
    model.apply_model = lambda z_t, t, cond: met.append((z_t, t)) or apply_model(z_t, t, cond)
    z, c, t = torch.randn(2, 4, 8, 8), model.encode_prompts(["a *"] * 2), torch.tensor([3, 9])
    model.p_losses(z, c, t, noise=torch.randn_like(z) if given else None)
    assert len(met) == 3 and all(torch.equal(z_t, met[0][0]) and torch.equal(at, t) for z_t, at in met)
    assert not torch.equal(met[0][0], z)


def test_a_hybrid_network_reuses_the_batchs_other_condition(base, tmp_path):
    params = {"conditioning_key": "hybrid", "unet_config": with_params(UNET, in_channels=5), "personalization_config": None, "cond_stage_trainable": True}
    model = regularized_model(None, tmp_path, params, conditioning=("ClassPrompts", {"prompts": ["a cat"]}), **COPY)
    model._base = base
    ready(model)
    z, t, mask = torch.randn(2, 4, 8, 8), torch.tensor([3, 9]), torch.ones(2, 1, 8, 8)
    cond = {"c_crossattn": [model.get_learned_conditioning(["a photo"] * 2)], "c_concat": [mask]}
    _, logs = model.p_losses(z, cond, t)
    assert logs["train/loss_locality"] == 0.0
    move(model.model)
    with torch.no_grad():
        c = model.encode_prompts(["a cat"] * 2)
        probes = NoisyLatents(z, t, Prompts(["a cat"] * 2), [mask])
        expected = model.apply_model(z, t, {"c_crossattn": [c], "c_concat": [mask]})
        assert torch.equal(model.denoise(probes), expected)
        empty = model.apply_model(z, t, {"c_crossattn": [model.encode_prompts([""] * 2)], "c_concat": [mask]})
        torch.testing.assert_close(model.denoise(probes._replace(unconditional=True)), torch.stack([expected, empty], dim=1))
        assert model.p_losses(z, cond, t)[1]["train/loss_locality"] > 0


@pytest.mark.parametrize("parts", [COPY, {}])
def test_a_loss_of_guided_outputs_begins_at_nothing_and_holds_both_outputs(base, tmp_path, parts):
    model = ready(regularized_model(base, tmp_path, loss=("GuidedMSE", {"guidance_scale": 3.0, "guided_weight": 2.0}), **parts))
    z, t, c = torch.randn(2, 4, 8, 8), torch.tensor([3, 9]), model.encode_prompts(["a *"] * 2)
    reference = copy.deepcopy(model.model), copy.deepcopy(model.cond_stage_model)
    assert model.p_losses(z, c, t)[1]["train/loss_locality"] <= 1e-10
    move(model.model)
    drawn = []
    source, model.regularizer._source = model.regularizer._source, SimpleNamespace(draw=lambda *args: drawn.append(source.draw(*args)) or drawn[-1])
    measured = model.p_losses(z, c, t)[1]["train/loss_locality"]
    probes = drawn[0]

    def outputs(theta):
        with torch.no_grad():
            c, u = (choice.encode(model.encode_prompts) for choice in (probes.choice, Prompts([""] * len(probes.t))))
            return theta(probes.z_t, probes.t, c_crossattn=[c]), theta(probes.z_t, probes.t, c_crossattn=[u])

    (f_c, f_u), (f0_c, f0_u) = outputs(model.model), outputs(reference[0])
    guided = 3 * (f_c - f0_c) - 2 * (f_u - f0_u)
    torch.testing.assert_close(measured, (f_c - f0_c).square().mean() + 2 / 13 * guided.square().mean(), rtol=1e-3, atol=0.0)
    assert measured > 0


# -- phases, parameterisations, and what is freed --------------------------------------------------------------------------------------


def test_while_nothing_of_theta_is_tuned_the_term_is_not_computed(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, **COPY))
    model.configure_opt_embedding()
    _, logs = step_of(model)
    assert "train/loss_locality" not in logs and model.regularizer.acted == 0
    model.configure_opt_model()
    _, logs = step_of(model)
    assert "train/loss_locality" in logs


def test_a_cached_teacher_leaves_no_second_network(base, tmp_path):
    model = ready(regularized_model(base, tmp_path))
    found, queue = [], [vars(model.regularizer)]
    while queue:
        for value in queue.pop().values():
            if isinstance(value, torch.nn.Module):
                found.append(value)
            elif isinstance(value, dict):
                queue.append(value)
            elif type(value).__module__.startswith("ldm.regularization"):
                queue.append(getattr(value, "__dict__", {}))
    assert found == []
    calls, apply_model = [], model.apply_model
    model.apply_model = lambda *args, **kwargs: calls.append(1) or apply_model(*args, **kwargs)
    step_of(model)
    assert len(calls) == 2, "the original's pass and the student's"


def test_a_model_that_predicts_x0_is_held_at_its_own_output(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, {"parameterization": "x0"}, **COPY))
    assert step_of(model)[1]["train/loss_locality"] == 0.0
    move(model.model)
    loss, logs = step_of(model)
    assert loss == logs["train/loss"] and logs["train/loss_locality"] > 0


def test_theta_0_is_hashed_without_averages_words_and_position_ids(base, tmp_path):
    first = ready(regularized_model(base, tmp_path, {"use_ema": True}, **COPY)).regularizer.theta_hash
    second = regularized_model(base, tmp_path, **COPY)
    move(second.embedding_manager)
    assert ready(second).regularizer.theta_hash == first
    stored_by_older_libraries = regularized_model(base, tmp_path, **COPY)
    stored_by_older_libraries.cond_stage_model.transformer.register_buffer("position_ids", torch.arange(77))
    assert ready(stored_by_older_libraries).regularizer.theta_hash == first
    third = regularized_model(base, tmp_path, **COPY)
    move(third.cond_stage_model, by=1e-4)
    assert ready(third).regularizer.theta_hash != first


def test_taking_theta_0_disturbs_neither_modes_nor_global_randomness(base, tmp_path):
    model = regularized_model(base, tmp_path).train()
    modes = [part.training for part in model.modules()]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model.setup("fit")
    assert torch.equal(torch.get_rng_state(), state) and [part.training for part in model.modules()] == modes



@pytest.mark.parametrize("name", ["strategy", "training_type_plugin"], ids=["Lightning 2", "Lightning 1.5"])
def test_the_trainers_device_is_found_under_either_name(name):
    module = torch.nn.Module()
    assert trainer_part(module, "strategy", "training_type_plugin") is None
    part = SimpleNamespace(root_device=torch.device("cpu"))
    object.__setattr__(module, "_trainer" if name == "strategy" else "trainer", SimpleNamespace(**{name: part}))
    assert trainer_part(module, "strategy", "training_type_plugin") is part


def test_banks_are_sampled_where_the_model_will_train_and_in_eval_mode(base, tmp_path, monkeypatch):
    model = regularized_model(base, tmp_path).train()
    order = []
    for name in ("to", "draw_prior"):
        original = getattr(model, name)

        def recorded(*args, name=name, original=original, **kwargs):
            order.append((name, args[0], model.model.training))
            return original(*args, **kwargs)

        monkeypatch.setattr(model, name, recorded)
    device = torch.device("cpu", 0)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device, barrier=lambda: None), global_rank=0)
    object.__setattr__(model, "_trainer", trainer)
    model.setup("fit")
    assert order[0] == ("to", device, True) and order[1][0] == "draw_prior" and order[1][2] is False
