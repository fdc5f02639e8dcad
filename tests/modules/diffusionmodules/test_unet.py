"""The denoising network: recorded numbers, checkpoint keys of every published configuration, and what its switches promise."""
import json
import weakref

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, EncoderUNetModel, ResBlock, UNetModel
from ldm.util import instantiate_from_config
from tests.golden.case import assert_close_to_golden, assert_gradient_close, load_case, oracle_file

RECORDED = ["st_nolegacy", "st_legacy_nhc", "attnblock_legacy_nhc", "attnblock_heads_classcond_ssn_updown"]
TINY = dict(image_size=8, in_channels=4, out_channels=4, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(1, 2), num_heads=2)
TEXT = dict(use_spatial_transformer=True, context_dim=12, legacy=False)


def loud_unet(**settings) -> UNetModel:
    """A tiny network whose layers that begin as zeros are drawn anew, so that everything in it shows."""
    torch.manual_seed(1)
    model = UNetModel(**{**TINY, **settings})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch(size: int = 2, classes: int | None = None, **_):
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "x": torch.randn(size, 4, 8, 8, generator=generator),
        "timesteps": torch.randint(0, 1000, (size,), generator=generator),
        "context": torch.randn(size, 5, 12, generator=generator),
    }
    return inputs if classes is None else inputs | {"y": torch.arange(size) % classes}


@pytest.mark.parametrize("name", RECORDED)
def test_output_and_gradients_agree_with_the_recorded_ones(name):
    case = load_case(f"unet_{name}")
    model = instantiate_from_config(case.config.model)
    model.load_state_dict(case.state_dict())
    inputs = case.under("in")
    x, t = inputs.pop("x"), inputs.pop("t")
    for key in case.under("grad_in"):
        inputs[key].requires_grad_()

    out = model(x, t, **inputs)
    assert_close_to_golden(out, case["out/out"])
    out.sum().backward()
    parameters = dict(model.named_parameters())
    for key, gradient in case.under("grad").items():
        assert_gradient_close(parameters[key].grad, gradient)
    for key, gradient in case.under("grad_in").items():
        assert_gradient_close(inputs[key].grad, gradient)
    squared_norm = sum(parameter.grad.double().pow(2).sum() for parameter in parameters.values())
    torch.testing.assert_close(squared_norm, case["out/grad_sq_norm_all"], rtol=1e-5, atol=0.0)


def published_unets() -> dict[str, dict]:
    """The UNet parameters of every published configuration, by its path."""
    configs = json.loads(oracle_file("facts_configs.json").read_text())
    found = {}
    for path, content in configs.items():
        params = content.get("model", {}).get("params", {}) if isinstance(content, dict) else {}
        if "unet_config" in params:
            found[path] = params["unet_config"]["params"]
    return found


@pytest.mark.parametrize("manifest", ["manifest_sd_v1.json", "manifest_txt2img_1p4B.json"])
def test_keys_shapes_and_order_are_those_of_published_checkpoints(manifest):
    recorded = json.loads(oracle_file(manifest).read_text())
    prefix = "model.diffusion_model."
    expected = {key.removeprefix(prefix): value["shape"] for key, value in recorded["keys"].items() if key.startswith(prefix)}
    with torch.device("meta"):
        model = UNetModel(**published_unets()[recorded["config"]])
    state = model.state_dict()
    assert len(expected) == 686
    assert {key: list(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)                     # saved optimiser states number the parameters in this order


def test_every_published_configuration_builds_and_runs():
    published = published_unets()
    assert len(published) > 20
    different = {json.dumps(params, sort_keys=True): (path, params) for path, params in published.items()}
    for path, params in different.values():
        with torch.device("meta"), torch.no_grad():
            model = UNetModel(**params)
            side = params["image_size"]
            context = torch.empty(1, 3, params["context_dim"]) if params.get("use_spatial_transformer") else None
            out = model(torch.empty(1, params["in_channels"], side, side), torch.zeros(1), context=context)
        assert out.shape == (1, params["out_channels"], side, side), path


def test_a_new_network_predicts_zero():
    model = UNetModel(**TINY, **TEXT)
    assert not model(**batch()).any()


def test_timestep_condition_and_class_each_matter():
    model, inputs = loud_unet(**TEXT, num_classes=3), batch(classes=3)
    out = model(**inputs)
    for key, other in (("timesteps", inputs["timesteps"] + 1), ("context", inputs["context"] + 0.1), ("y", (inputs["y"] + 1) % 3)):
        assert (model(**{**inputs, key: other}) - out).abs().max() > 1e-4, key


def test_every_sample_is_predicted_by_itself():
    model, inputs = loud_unet(**TEXT), batch(3)
    alone = torch.cat([model(**{key: value[i : i + 1] for key, value in inputs.items()}) for i in range(3)])
    torch.testing.assert_close(model(**inputs), alone, atol=1e-5, rtol=1e-5)


def test_latents_of_another_size_work():
    assert loud_unet(**TEXT)(**batch() | {"x": torch.randn(2, 4, 12, 4)}).shape == (2, 4, 12, 4)


def test_labels_are_asked_for_if_and_only_if_there_are_classes():
    with pytest.raises(ValueError, match="num_classes is None, but class labels y were given"):
        loud_unet(**TEXT)(**batch(classes=2))
    with pytest.raises(ValueError, match="num_classes is 2, but class labels y were not given"):
        loud_unet(**TEXT, num_classes=2)(**batch())


@pytest.mark.parametrize("settings", [{"use_spatial_transformer": True}, {"context_dim": 12}])
def test_transformers_and_context_width_belong_together(settings):
    with pytest.raises(ValueError, match="use_spatial_transformer is .* context_dim is"):
        UNetModel(**TINY, **settings)


def test_lists_of_a_yaml_file_are_taken_as_they_come():
    config = OmegaConf.create({"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": {**TINY, **TEXT, "context_dim": [12]}})
    assert list(instantiate_from_config(config).state_dict()) == list(UNetModel(**TINY, **TEXT).state_dict())


def test_codebook_predictor_is_used_instead_of_the_usual_head():
    model, inputs = loud_unet(n_embed=7), batch()
    assert model(inputs["x"], inputs["timesteps"]).shape == (2, 7, 8, 8)
    assert "out.2.weight" in model.state_dict()
    assert not UNetModel(**TINY).predict_codebook_ids


def test_settings_stay_readable():
    model = UNetModel(**TINY, **TEXT, use_fp16=True)
    assert (model.image_size, model.in_channels, model.model_channels, model.num_heads_upsample, model.dtype) == (8, 4, 32, 2, torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stages = [32, 32, 32, 64, 64, 64, 64, 32, 32]            # first conv, down (block, halving, block), middle, up
    assert model._feature_size == sum(stages)


@pytest.mark.parametrize("kind", [TEXT, {"legacy": True}, {"resblock_updown": True, "use_scale_shift_norm": True, "use_new_attention_order": True}])
def test_checkpointing_changes_no_gradient_and_computes_each_block_twice(kind):
    results, counts = [], []
    for use_checkpoint in (False, True):
        model, inputs, calls = loud_unet(**kind, use_checkpoint=use_checkpoint), batch(), []
        if "context_dim" not in kind:
            del inputs["context"]
        for module in model.modules():
            if isinstance(module, ResBlock | AttentionBlock | BasicTransformerBlock):
                first = next(child for child in module.modules() if isinstance(child, torch.nn.GroupNorm | torch.nn.LayerNorm))
                first.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        out = model(**inputs)
        out.square().sum().backward()
        results.append([out.detach(), *(parameter.grad for parameter in model.parameters())])
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0] > 0
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=0.0, atol=1e-6 * plain.abs().max().item())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages made inside that are still alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            address = storage.data_ptr()
            if storage.nbytes() and address not in self.sizes:
                self.sizes[address] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, address)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize("kind", [TEXT, {"legacy": False}])
def test_checkpointing_lowers_the_peak_of_memory(kind):
    peaks = {}
    for use_checkpoint in (False, True):
        model, inputs = loud_unet(**kind, num_res_blocks=2, use_checkpoint=use_checkpoint), batch(16)
        if "context_dim" not in kind:
            del inputs["context"]
        with LiveBytes() as memory:
            model(**inputs).sum().backward()
        peaks[use_checkpoint] = memory.peak
    assert peaks[True] < 0.6 * peaks[False], peaks


def test_autocast_trains_in_bfloat16_near_the_float32_gradients():
    model, inputs = loud_unet(**TEXT), batch(4)
    target = torch.randn(4, 4, 8, 8)

    def loss_and_gradients():
        model.zero_grad()
        loss = (model(**inputs).float() - target).square().mean()
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact, exact_gradient = loss_and_gradients()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**inputs).dtype == torch.bfloat16
        rough, rough_gradient = loss_and_gradients()
    assert rough == pytest.approx(exact, rel=0.02)
    assert torch.cosine_similarity(rough_gradient, exact_gradient, dim=0) > 0.99


@pytest.mark.parametrize("frozen", [False, True], ids=["unfrozen", "frozen"])
def test_checkpointing_under_autocast_gives_the_same_gradients(frozen):
    """A26: with 16-bit training, computing again has to happen in 16 bits too, whether the weights learn or only what comes in by the context."""
    gradients = []
    for use_checkpoint in (False, True):
        model, inputs = loud_unet(**TEXT, use_checkpoint=use_checkpoint).requires_grad_(not frozen), batch()
        inputs["context"].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).float().square().mean()
        loss.backward()                                       # outside, as Lightning does
        gradients.append([inputs["context"].grad, *(parameter.grad for parameter in model.parameters() if not frozen)])
    for plain, again in zip(*gradients, strict=True):
        assert plain.any() and plain.dtype == torch.float32
        torch.testing.assert_close(again, plain, rtol=0.0, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize("convert", [UNetModel.convert_to_fp16, UNetModel.bfloat16])
def test_half_precision_weights_predict_nearly_the_same(convert):
    model, inputs = loud_unet(**TEXT, num_classes=3).eval(), batch(classes=3)
    with torch.no_grad():
        exact = model(**inputs)
        convert(model)
        assert model.input_blocks[1][0].in_layers[2].weight.dtype != torch.float32
        rough = model(**inputs)
        assert 0 < (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
        if convert is UNetModel.convert_to_fp16:
            assert (model.dtype, rough.dtype, model.time_embed[0].weight.dtype) == (torch.float16, torch.float32, torch.float32)
            model.convert_to_fp32()
            assert model.dtype == torch.float32
            assert (model(**inputs) - exact).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions_train(dims):
    model = loud_unet(dims=dims, num_heads=1, attention_resolutions=(2,))
    x = torch.randn(2, 4, *[4] * dims)
    out = model(x, torch.tensor([1, 2]))
    assert out.shape == x.shape
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("settings", [{"pool": "adaptive"}, {"pool": "attention", "num_head_channels": 16}])
def test_encoder_answers_one_vector_a_picture(settings):
    model = EncoderUNetModel(**{**TINY, "out_channels": 10}, **settings)
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    out = model(x, t)
    assert out.shape == (3, 10)
    assert (model(x, t + 1) - out).abs().max() > 0
    torch.testing.assert_close(model(x[1:2], t[1:2]), out[1:2], atol=1e-5, rtol=1e-5)

    unet = UNetModel(**TINY, num_head_channels=settings.get("num_head_channels", -1))
    lower_half = {key for key in unet.state_dict() if not key.startswith("out")}
    assert {key for key in model.state_dict() if not key.startswith("out.")} == lower_half


def test_encoder_says_which_pools_it_has():
    with pytest.raises(ValueError, match="pool is 'spatial'; it must be adaptive or attention"):
        EncoderUNetModel(**TINY, pool="spatial")
    with pytest.raises(ValueError, match="needs num_head_channels"):
        EncoderUNetModel(**TINY, pool="attention")
