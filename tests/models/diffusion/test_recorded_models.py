"""LatentDiffusion against the recorded cases: every hook's values, losses with their gradients, and one optimiser step."""
from __future__ import annotations

import json

import pytest
import torch

from tests.golden.case import assert_close_to_golden, assert_gradient_close, golden_path, load_case
from tests.models.diffusion.tiny import recorded_model

CASES = ["ld_a", "ld_b"]
SETTINGS = ["l2", "l1", "elbo", "reg", "x0", "logvar", "train"]
WEIGHT = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


@pytest.fixture(scope="module", params=CASES)
def recorded(request):
    """(case, model), the model built once for all tests that do not change it."""
    return load_case(f"{request.param}_core"), recorded_model(request.param)


def optional(key: str) -> bool:
    return key.endswith("position_ids") or key.startswith("first_stage_model.loss.")


@pytest.mark.parametrize("name", CASES)
def test_state_keys_are_the_recorded_ones(name):
    keys = json.loads(golden_path(f"{name}_state_keys.json").read_text())
    assert sorted(key for key in recorded_model(name).state_dict() if not optional(key)) == sorted(key for key in keys if not optional(key))


def test_noising_and_its_inverse(recorded):
    case, model = recorded
    x0, noise, t = case["in/x0"], case["in/noise"], case["in/t"]
    x_t = model.q_sample(x0, t, noise)
    assert_close_to_golden(x_t, case["out/q_sample"])
    mean, variance, log_variance = model.q_mean_variance(x0, t)
    assert_close_to_golden(mean, case["out/q_mean"])
    assert_close_to_golden(variance, case["out/q_var"])
    assert_close_to_golden(log_variance, case["out/q_logvar"])
    assert_close_to_golden(model.predict_start_from_noise(x_t, t, noise), case["out/predict_start_from_noise"])
    assert_close_to_golden(model._predict_eps_from_xstart(x_t, t, x0)[1], noise[1])
    assert_close_to_golden(model._prior_bpd(x0), case["out/prior_bpd"])


def test_posterior(recorded):
    case, model = recorded
    mean, variance, log_variance = model.q_posterior(case["in/x0"], case["out/q_sample"], case["in/t"])
    assert_close_to_golden(mean, case["out/qpost_mean"])
    assert_close_to_golden(variance, case["out/qpost_var"])
    assert_close_to_golden(log_variance, case["out/qpost_logvar"])


@torch.no_grad()
def test_network_and_its_gaussian(recorded):
    case, model = recorded
    x_t, t, cond = case["out/q_sample"], case["in/t"], case["in/cond"]
    assert_close_to_golden(model.apply_model(x_t, t, cond), case["out/apply_model"])
    for given in ([cond], {"c_crossattn": [cond]}, {"c_crossattn": cond}):
        assert_close_to_golden(model.apply_model(x_t, t, given), case["out/apply_model"])
    mean, _, _, x0_hat = model.p_mean_variance(x_t, cond, t, clip_denoised=False, return_x0=True)
    assert_close_to_golden(mean, case["out/p_mean"])
    assert_close_to_golden(x0_hat, case["out/p_x0"])


def test_first_stage(recorded):
    case, model = recorded
    posterior = model.encode_first_stage(case["in/image_bchw"])
    assert_close_to_golden(posterior.parameters, case["out/first_stage_moments"])
    assert_close_to_golden(model.decode_first_stage(case["in/x0"]), case["out/decode_first_stage_x0"], atol=1e-4)
    assert not model.encode_first_stage(case["in/image_bchw"]).mean.requires_grad
    z = case["in/x0"].clone().requires_grad_()
    assert not model.decode_first_stage(z).requires_grad
    assert model.differentiable_decode_first_stage(z).requires_grad


def test_latents_are_a_scaled_draw_of_the_posterior(recorded):
    case, model = recorded
    posterior = model.encode_first_stage(case["in/image_bchw"])
    torch.manual_seed(case.notes["seed"])
    assert_close_to_golden(model.get_first_stage_encoding(posterior), case["out/get_first_stage_encoding_manual_seed"])


@torch.no_grad()
def test_prompts_are_encoded_with_their_words(recorded):
    case, model = recorded
    prompts = case.notes["PROMPTS"]
    assert_close_to_golden(model.get_learned_conditioning(prompts), case["out/learned_conditioning_PROMPTS"])
    assert_close_to_golden(model.cond_stage_model.encode(prompts), case["out/conditioning_no_manager"])


def recorded_losses(name: str, setting: str):
    case = load_case(f"{name}_losses")
    settings = dict(case.notes["settings"][setting]["settings"]) if setting != "caption" else {}
    training = settings.pop("_train", False)
    model = recorded_model(name, **settings).train(training)
    vectors = model.embedding_manager.string_to_param_dict["*"]
    with torch.no_grad():
        vectors.copy_(model.embedding_manager.initial_embeddings["*"] + case["in/embedding_delta"])
    return case, model, vectors


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_loss_its_parts_and_its_gradients(name, setting):
    case, model, vectors = recorded_losses(name, setting)
    if setting == "logvar":
        with torch.no_grad():
            model.logvar.copy_(case["in/logvar/logvar"])
    cond = case["in/cond"].clone().requires_grad_()
    loss, logs = model.p_losses(case["in/x0"], cond, case["in/t"], noise=case["in/noise"])
    loss.backward()
    assert_close_to_golden(loss, case[f"out/{setting}/loss"])
    recorded = case.under(f"out/{setting}/dict")
    assert set(logs) == set(recorded) == set(case.notes["settings"][setting]["loss_dict_keys"])
    for key, value in recorded.items():
        assert_close_to_golden(logs[key], value)
    assert_gradient_close(dict(model.named_parameters())[WEIGHT].grad, case[f"grad/{setting}/{WEIGHT}"])
    assert_gradient_close(cond.grad[:, :4], case[f"grad_in/{setting}/cond"])
    if setting == "logvar":
        assert_gradient_close(model.logvar.grad, case["grad/logvar/logvar"])
    if setting == "x0":
        torch.testing.assert_close(model.lvlb_weights, case["out/x0/lvlb_weights"])
    if setting == "reg":
        assert_gradient_close(vectors.grad, case["grad/reg/embedding"])
        assert_close_to_golden(model.embedding_manager.embedding_to_coarse_loss(), case["out/reg/coarse_loss_raw"])
        assert_close_to_golden(model.embedding_manager.get_embedding_norms_squared(), case["out/reg/embedding_norms_squared"])


@pytest.mark.parametrize("name", CASES)
def test_a_caption_trains_word_and_networks(name):
    """With three vectors a token (`ld_b`) the recorded code could do this only for a frozen token table; here nothing is frozen."""
    case, model, vectors = recorded_losses(name, "caption")
    cond = model.get_learned_conditioning(case.notes["captions"])
    loss, _ = model.p_losses(case["in/x0"], cond, case["in/t"], noise=case["in/noise"])
    model.learning_rate = 5e-3
    optimizer = model.configure_optimizers()
    loss.backward()
    assert_close_to_golden(loss, case["out/caption/loss"])
    parameters = dict(model.named_parameters())
    assert_gradient_close(vectors.grad, case["grad/caption/embedding"])
    projection = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert_gradient_close(parameters[projection].grad, case[f"grad/caption/{projection}"])
    optimizer.step()
    assert_close_to_golden(vectors, case["out/caption/embedding_param"])  # recorded after the step as well
    assert_close_to_golden(vectors, case["out/caption/embedding_param_after_adamw_step_lr5e-3"])
    assert_close_to_golden(parameters[WEIGHT], case[f"out/caption/after_step/{WEIGHT}"], atol=1e-7)


def test_noise_is_drawn_first_if_not_given(recorded):
    case, model = recorded
    x0, cond, t = case["in/x0"], case["in/cond"], case["in/t"]
    torch.manual_seed(5)
    drawn, _ = model.p_losses(x0, cond, t)
    torch.manual_seed(5)
    given, _ = model.p_losses(x0, cond, t, noise=torch.randn_like(x0))
    assert drawn.item() == given.item()


def test_order_of_chance_in_a_step(recorded):
    """First-stage noise on the CPU, then t, then the noise of p_losses."""
    case, model = recorded
    batch = {"image": case["in/image_bchw"].permute(0, 2, 3, 1), "caption": case.notes["PROMPTS"][:2]}
    torch.manual_seed(7)
    loss, _ = model.shared_step(batch)
    torch.manual_seed(7)
    posterior = model.encode_first_stage(case["in/image_bchw"])
    z = model.scale_factor * (posterior.mean + posterior.std * torch.randn(posterior.mean.shape))
    t = torch.randint(0, 1000, (2,))
    cond = model.get_learned_conditioning(batch["caption"])
    by_hand, _ = model.p_losses(z, cond, t, noise=torch.randn_like(z))
    assert loss.item() == by_hand.item()
