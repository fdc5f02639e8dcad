"""The stand-ins are worth what they match: the published repository's recorded numbers, on the published repository's own stack."""
import copy
import json

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import instantiate_from_config
from tests.old.recorded import Case, close, folder_with, gradient_close

SETTINGS = ["l2", "l1", "elbo", "reg", "x0", "logvar", "train"]
WEIGHT = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
PROJECTION = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def core():
    return Case("ld_a_core")


@pytest.fixture(scope="module")
def losses():
    return Case("ld_a_losses")


@pytest.fixture(scope="module")
def weights():
    return Case("ld_a_weights")


@pytest.fixture
def model(weights, tmp_path):
    return recorded_model(weights, tmp_path)


def text_of(case, folder):
    (folder / "config.json").write_text(json.dumps(case.config["clip_text_config"]))
    return str(folder)


def recorded_model(weights, folder, **params):
    config = copy.deepcopy(weights.config["model"])
    config["params"].update(params)
    config["params"]["cond_stage_config"]["params"]["version"] = text_of(weights, folder)
    model = instantiate_from_config(config)
    missing, unexpected = model.load_state_dict(weights.state_dict(), strict=False)
    assert set(missing) <= {"cond_stage_model.transformer.text_model.embeddings.position_ids", "logvar"} and not unexpected
    return model.eval()


def test_the_network_the_noise_and_their_gaussians(core, model):
    x0, noise, t, cond = core["in/x0"], core["in/noise"], core["in/t"], core["in/cond"]
    x_t = model.q_sample(x0, t, noise)
    close(x_t, core["out/q_sample"])
    for name, value in zip(("q_mean", "q_var", "q_logvar"), model.q_mean_variance(x0, t)):
        close(value, core[f"out/{name}"])
    for name, value in zip(("qpost_mean", "qpost_var", "qpost_logvar"), model.q_posterior(x0, x_t, t)):
        close(value, core[f"out/{name}"])
    close(model.predict_start_from_noise(x_t, t, noise), core["out/predict_start_from_noise"])
    close(model._prior_bpd(x0), core["out/prior_bpd"])
    with torch.no_grad():
        close(model.apply_model(x_t, t, cond), core["out/apply_model"])
        mean, _, _, x0_hat = model.p_mean_variance(x_t, cond, t, clip_denoised=False, return_x0=True)
    close(mean, core["out/p_mean"])
    close(x0_hat, core["out/p_x0"])


def test_the_first_stage(core, model):
    posterior = model.encode_first_stage(core["in/image_bchw"])
    close(posterior.parameters, core["out/first_stage_moments"])
    close(model.decode_first_stage(core["in/x0"]), core["out/decode_first_stage_x0"], atol=1e-4)
    torch.manual_seed(core.notes["seed"])
    close(model.get_first_stage_encoding(posterior), core["out/get_first_stage_encoding_manual_seed"])


def test_prompts_and_the_word_in_them(core, model):
    prompts, encoder = core.notes["PROMPTS"], model.cond_stage_model
    ids = encoder.tokenizer(prompts)["input_ids"]
    assert torch.equal(ids, core["out/token_ids_PROMPTS"])
    with torch.no_grad():
        close(model.get_learned_conditioning(prompts), core["out/learned_conditioning_PROMPTS"])
        close(encoder.encode(prompts), core["out/conditioning_no_manager"])
        close(encoder.transformer.text_model.embeddings(ids, model.embedding_manager), core["out/embeddings_layer_PROMPTS"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_and_their_gradients(losses, weights, tmp_path, setting):
    settings = dict(losses.notes["settings"][setting]["settings"])
    training = settings.pop("_train", False)
    model = recorded_model(weights, tmp_path, **settings).train(training)
    moved(model, losses)
    if setting == "logvar":
        model.logvar.data.copy_(losses["in/logvar/logvar"])
    cond = losses["in/cond"].clone().requires_grad_()
    loss, logs = model.p_losses(losses["in/x0"], cond, losses["in/t"], noise=losses["in/noise"])
    loss.backward()
    close(loss, losses[f"out/{setting}/loss"])
    assert set(logs) == set(losses.notes["settings"][setting]["loss_dict_keys"])
    for key, value in losses.under(f"out/{setting}/dict").items():
        close(logs[key], value)
    gradient_close(dict(model.named_parameters())[WEIGHT].grad, losses[f"grad/{setting}/{WEIGHT}"])
    gradient_close(cond.grad[:, :4], losses[f"grad_in/{setting}/cond"])
    if setting == "logvar":
        gradient_close(model.logvar.grad, losses["grad/logvar/logvar"])
    if setting == "x0":
        close(model.lvlb_weights, losses["out/x0/lvlb_weights"])
    if setting == "reg":
        gradient_close(model.embedding_manager.string_to_param_dict["*"].grad, losses["grad/reg/embedding"])
        close(model.embedding_manager.embedding_to_coarse_loss(), losses["out/reg/coarse_loss_raw"])
        close(model.embedding_manager.get_embedding_norms_squared(), losses["out/reg/embedding_norms_squared"])


def moved(model, losses):
    manager = model.embedding_manager
    manager.string_to_param_dict["*"].data.copy_(manager.initial_embeddings["*"] + losses["in/embedding_delta"])
    return manager.string_to_param_dict["*"]


def test_a_caption_trains_word_and_networks(losses, model):
    vectors = moved(model, losses)
    cond = model.get_learned_conditioning(losses.notes["captions"])
    loss, _ = model.p_losses(losses["in/x0"], cond, losses["in/t"], noise=losses["in/noise"])
    model.learning_rate = 5e-3
    optimizer = model.configure_optimizers()
    loss.backward()
    close(loss, losses["out/caption/loss"])
    parameters = dict(model.named_parameters())
    gradient_close(vectors.grad, losses["grad/caption/embedding"])
    gradient_close(parameters[PROJECTION].grad, losses[f"grad/caption/{PROJECTION}"])
    optimizer.step()
    close(vectors, losses["out/caption/embedding_param_after_adamw_step_lr5e-3"])
    close(parameters[WEIGHT], losses[f"out/caption/after_step/{WEIGHT}"], atol=1e-7)


def test_three_vectors_and_what_they_write_into(tmp_path):
    case = Case("em_3vec")
    encoder = FrozenCLIPEmbedder(version=text_of(case, tmp_path), device="cpu")
    manager = EmbeddingManager(encoder, **case.config["personalization_config"]["params"])
    state = {f"string_to_param_dict.{key}": value for key, value in case.under("param").items()}
    state.update({f"initial_embeddings.{key}": value for key, value in case.under("initial_embeddings").items()})
    assert sorted(manager.state_dict()) == sorted(case.notes["state_dict_keys"])
    manager.load_state_dict(state)
    ids, embedded = case["in/ids"].clone(), case["in/emb"].clone()
    assert torch.equal(encoder.tokenizer(case.notes["prompts"])["input_ids"], case["in/ids"])
    with torch.no_grad():
        out = manager(ids, embedded)
    close(out, case["out/emb"])
    assert out is embedded and torch.equal(ids, case["out/ids_after"])
    close(embedded, case["out/emb_arg_after"])
    close(manager.get_embedding_norms_squared(), case["out/norms_sq"])
    close(manager.embedding_to_coarse_loss(), case["out/coarse_loss"])
    assert manager.progressive_counter == case.notes["progressive_counter_after"]
    manager.load(str(folder_with("em_3vec_embeddings.pt") / "em_3vec_embeddings.pt"))
    close(manager.string_to_param_dict["*"], case["param/*"])


def test_several_vectors_cannot_be_trained_with_the_encoder_there(weights, tmp_path):
    """The fault that the published repository is known for: the ids are changed after the token table has read them."""
    words = copy.deepcopy(weights.config["model"]["params"]["personalization_config"])
    words["params"]["num_vectors_per_token"] = 3
    config = copy.deepcopy(weights.config["model"])
    config["params"].update(personalization_config=words)
    config["params"]["cond_stage_config"]["params"]["version"] = text_of(weights, tmp_path)
    model = instantiate_from_config(config)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model.get_learned_conditioning(["a photo of a *"]).sum().backward()


def test_the_sampler_has_the_recorded_steps_and_sizes(model, monkeypatch):
    case = Case("ddim_arrays")
    monkeypatch.setattr(DDIMSampler, "register_buffer", lambda self, name, attr: setattr(self, name, attr))
    sampler = DDIMSampler(model)
    for steps, eta in ((50, 0.0), (50, 1.0), (10, 1.0)):
        sampler.make_schedule(steps, ddim_eta=eta)
        recorded = case.under(f"out/ddim_S{steps}_uniform_eta{eta}")
        assert sampler.ddim_timesteps.tolist() == recorded["ddim_timesteps"].tolist()
        for name in ("ddim_alphas", "ddim_alphas_prev", "ddim_sigmas"):
            close(getattr(sampler, name), recorded[name], atol=1e-6)
    with pytest.raises(IndexError):
        sampler.make_schedule(3)
