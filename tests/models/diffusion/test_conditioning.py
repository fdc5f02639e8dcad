"""Conditions on their way into the network."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.models.diffusion import conditioning
from ldm.models.diffusion.conditioning import DiffusionWrapper
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from tests.models.diffusion.tiny import CODEBOOK, LATENTS, PICTURES, UNET, WORDS, batch_of_pictures, latent_diffusion, randomise, with_params

x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 7])
CONTEXT, MAPS = torch.randn(2, 5, 32), torch.randn(2, 3, 8, 8)
CLASSES = with_params(UNET, use_spatial_transformer=False, context_dim=None, num_classes=10)


def wrapped(key: str | None, **params) -> DiffusionWrapper:
    return randomise(DiffusionWrapper(with_params(UNET, **params), key)).eval()


@torch.no_grad()
def test_concat_joins_channels():
    model = wrapped("concat", in_channels=10)
    answer = model(x, t, c_concat=[MAPS, MAPS])
    torch.testing.assert_close(answer, model.diffusion_model(torch.cat([x, MAPS, MAPS], dim=1), t))
    assert answer.shape == x.shape


@torch.no_grad()
def test_crossattn_attends_to_all_tokens():
    model = wrapped("crossattn")
    torch.testing.assert_close(model(x, t, c_crossattn=[CONTEXT[:, :2], CONTEXT[:, 2:]]), model.diffusion_model(x, t, context=CONTEXT))
    assert not torch.allclose(model(x, t, c_crossattn=[CONTEXT]), model(x, t, c_crossattn=[-CONTEXT]))


@torch.no_grad()
def test_hybrid_does_both():
    model = wrapped("hybrid", in_channels=7)
    expected = model.diffusion_model(torch.cat([x, MAPS], dim=1), t, context=CONTEXT)
    torch.testing.assert_close(model(x, t, c_concat=[MAPS], c_crossattn=[CONTEXT]), expected)


@torch.no_grad()
def test_adm_takes_labels():
    model = randomise(DiffusionWrapper(CLASSES, "adm")).eval()
    labels = torch.tensor([1, 8])
    torch.testing.assert_close(model(x, t, c_crossattn=[labels]), model.diffusion_model(x, t, y=labels))


@torch.no_grad()
def test_without_a_key_a_condition_is_ignored():
    model = wrapped(None)
    assert torch.equal(model(x, t), model(x, t, c_crossattn=[CONTEXT]))


@pytest.mark.parametrize("key, missing", [("concat", "c_concat"), ("crossattn", "c_crossattn"), ("hybrid", "c_concat"), ("adm", "c_crossattn")])
def test_a_missing_condition_is_named(key, missing):
    model = DiffusionWrapper(CLASSES if key == "adm" else UNET, key)
    with pytest.raises(ValueError, match=f"'{key}' needs {missing}"):
        model(x, t)


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'crossatt'.*'crossattn'"):
        DiffusionWrapper(UNET, "crossatt")


@pytest.mark.parametrize("key, name", [("concat", "c_concat"), ("crossattn", "c_crossattn"), ("adm", "c_crossattn"), (None, "c_crossattn")])
def test_a_bare_condition_goes_where_the_key_reads(key, name):
    assert conditioning.as_keywords(CONTEXT, key) == {name: [CONTEXT]}
    assert conditioning.as_keywords([CONTEXT], key) == {name: [CONTEXT]}
    both = {"c_concat": [MAPS], "c_crossattn": [CONTEXT]}
    assert conditioning.as_keywords(both, key) == both


def test_first_cuts_every_kind_of_condition():
    assert torch.equal(conditioning.first(CONTEXT, 1), CONTEXT[:1])
    assert conditioning.first(["a", "b"], 1) == ["a"]
    cut = conditioning.first({"c_concat": [MAPS], "c_crossattn": CONTEXT, "human_label": ["cat", "dog"]}, 1)
    assert torch.equal(cut["c_concat"][0], MAPS[:1]) and torch.equal(cut["c_crossattn"], CONTEXT[:1]) and cut["human_label"] == ["cat"]
    assert torch.equal(conditioning.first([MAPS, CONTEXT], 1)[1], CONTEXT[:1])
    assert conditioning.first(None, 1) is None


def test_size_of_every_kind_of_condition():
    assert [conditioning.size(c) for c in (CONTEXT, [CONTEXT], {"c_crossattn": [CONTEXT]}, ["a", "b", "c"], None)] == [2, 2, 2, 3, None]


def test_stacked_puts_the_first_batch_first():
    both = conditioning.stacked({"c_concat": [MAPS], "c_crossattn": [CONTEXT]}, {"c_concat": [2 * MAPS], "c_crossattn": [CONTEXT]})
    assert torch.equal(both["c_concat"][0], torch.cat([MAPS, 2 * MAPS]))
    for other in ([CONTEXT, CONTEXT], {"c_crossattn": [CONTEXT]}):
        with pytest.raises(ValueError, match="two conditions of the same build"):
            conditioning.stacked([CONTEXT], other)


def test_raw_condition():
    batch = {"image": torch.zeros(1, 2, 2, 3), "caption": ["a"], "txt": ["b"], "coordinates_bbox": torch.ones(1, 4), "class_label": torch.tensor([3])}

    def picture(key):
        return f"picture of {key}"

    assert conditioning.raw_condition(batch, "caption", picture) == ["a"]
    assert conditioning.raw_condition(batch, "txt", picture) == ["b"]
    assert torch.equal(conditioning.raw_condition(batch, "coordinates_bbox", picture), torch.ones(1, 4))
    assert conditioning.raw_condition(batch, "class_label", picture) is batch
    assert conditioning.raw_condition(batch, "image", picture) == "picture of image"
    with pytest.raises(ValueError, match="cond_stage_key is 'text'.*caption"):
        conditioning.raw_condition(batch, "text", picture)


def test_boxes_of_a_crop():
    """The right half of the picture: a box across the middle keeps its right part's end, one outside gets no width."""
    boxes = torch.tensor([[0.5, 0.0, 0.25, 1.0], [0.75, 0.5, 0.5, 0.5]])
    got = conditioning.rescaled_boxes(boxes, (0.5, 0.0, 0.5, 1.0))
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5]]))


def test_pictures_must_fit_first_stage_and_image_size():
    conditioning.check_picture_size((64, 64), 3, 8)
    with pytest.raises(ValueError, match="multiples of 8"):
        conditioning.check_picture_size((60, 64), 3, 8)
    with pytest.raises(ValueError, match="image_size is 64.*set it to 8.*size to 512"):
        conditioning.check_picture_size((64, 64), 3, 64)


def test_halvings_are_read_from_the_config():
    assert [conditioning.halvings(config) for config in (PICTURES, LATENTS)] == [1, 0]


# -- encoders --------------------------------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Encoders of every build, as methods."""

    def __init__(self):
        super().__init__()
        self.given = None

    def encode(self, c, **kwargs):
        self.given = kwargs
        return CONTEXT

    def without_manager(self, c):
        return 2 * CONTEXT

    def distribution(self, c):
        return DiagonalGaussianDistribution(torch.cat([MAPS, MAPS], dim=1))

    def forward(self, c, key=None):
        return 3 * CONTEXT


@pytest.mark.parametrize("forward, expected", [(None, CONTEXT), ("without_manager", 2 * CONTEXT), ("distribution", MAPS), ("forward", 3 * CONTEXT)])
def test_the_encoders_method_is_chosen(forward, expected):
    model = latent_diffusion(cond_stage_forward=forward, personalization_config=WORDS)
    model.cond_stage_model = Recorder()
    assert torch.equal(model.get_learned_conditioning(["a *"]), expected)
    if forward is None:
        assert model.cond_stage_model.given == {"embedding_manager": model.embedding_manager}


def test_an_encoder_without_words_is_given_no_manager():
    model = latent_diffusion()
    model.cond_stage_model = Recorder()
    model.get_learned_conditioning(["a"])
    assert model.cond_stage_model.given == {}


def test_a_module_without_encode_is_called():
    model = latent_diffusion()
    model.cond_stage_model = nn.Identity()
    assert model.get_learned_conditioning(CONTEXT) is CONTEXT


# -- models of every kind of condition -------------------------------------------------------------------------------------------------

LABELS = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 32, "n_classes": 10, "key": "class_label"}}
RESCALER = {"target": "ldm.modules.encoders.modules.SpatialRescaler", "params": {"n_stages": 1, "in_channels": 5, "out_channels": 3}}
BOXES = {
    "target": "ldm.modules.encoders.modules.BERTEmbedder",
    "params": {"n_embed": 32, "n_layer": 1, "vocab_size": 20, "max_seq_len": 6, "use_tokenizer": False, "device": "cpu"},
}
PLAIN_UNET = with_params(UNET, use_spatial_transformer=False, context_dim=None)
MODELS = {
    "text": {},
    "text, frozen encoder": {"cond_stage_trainable": False},
    "text under another key": {"cond_stage_key": "txt"},
    "classes": {"cond_stage_config": LABELS, "cond_stage_key": "class_label"},
    "classes, frozen encoder": {"cond_stage_config": LABELS, "cond_stage_key": "class_label", "cond_stage_trainable": False},
    "boxes": {"cond_stage_config": BOXES, "cond_stage_key": "coordinates_bbox"},
    "maps": {
        "cond_stage_config": RESCALER, "cond_stage_key": "segmentation", "conditioning_key": None, "unet_config": with_params(PLAIN_UNET, in_channels=7),
    },
    "masked picture": {
        "cond_stage_config": "__is_first_stage__", "cond_stage_key": "masked_image", "conditioning_key": None, "cond_stage_trainable": False,
        "unet_config": with_params(PLAIN_UNET, in_channels=8),
    },
    "the picture itself": {
        "cond_stage_config": "__is_first_stage__", "cond_stage_key": "image", "conditioning_key": "concat", "cond_stage_trainable": False,
        "unet_config": with_params(PLAIN_UNET, in_channels=8), "first_stage_config": CODEBOOK,
    },
    "low resolution": {
        "cond_stage_config": {"target": "torch.nn.Identity"}, "cond_stage_key": "LR_image", "conditioning_key": None, "cond_stage_trainable": False,
        "unet_config": with_params(PLAIN_UNET, in_channels=7),
    },
    "unconditional": {"cond_stage_config": "__is_unconditional__", "cond_stage_trainable": False, "unet_config": PLAIN_UNET, "cond_stage_key": "image"},
    "noised condition": {"num_timesteps_cond": 5},
    "cached latents": {"first_stage_config": LATENTS},
}  # fmt: skip


def batch_for(name: str) -> dict:
    batch = batch_of_pictures(3, side=8, channels=4) if name == "cached latents" else batch_of_pictures(3)
    return {
        **batch, "txt": batch["caption"], "class_label": torch.tensor([1, 2, 3]), "human_label": ["one", "two", "three"],
        "coordinates_bbox": torch.randint(0, 20, (3, 6)), "segmentation": torch.rand(3, 16, 16, 5), "masked_image": torch.rand(3, 16, 16, 3),
        "LR_image": torch.rand(3, 8, 8, 3),
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_learns_from_a_batch(name):
    model = randomise(latent_diffusion(**MODELS[name])).train()
    model.learning_rate = 1e-4
    optimizer = model.configure_optimizers()
    loss, logs = model.shared_step(batch_for(name))
    loss.backward()
    assert loss.isfinite() and set(logs) == {"train/loss_simple", "train/loss_vlb", "train/loss"}
    trained = {id(p) for p in optimizer.param_groups[0]["params"]}
    idle = [name for name, p in model.named_parameters() if id(p) in trained and p.grad is None and ".to_logits." not in name]  # a head that is not used
    assert not idle, "everything in the plan has a part in the loss"
    assert all(p.grad is None for p in model.first_stage_model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_gives_its_inputs_and_pictures(name):
    model = randomise(latent_diffusion(**MODELS[name], timesteps=6, log_every_t=3), scale=0.05).eval()
    batch = batch_for(name)
    options = {"return_first_stage_outputs": True, "force_c_encode": True, "return_original_cond": True, "bs": 2}
    z, c, pictures, reconstruction, raw = model.get_input(batch, "image", **options)
    assert z.shape == (2, 4, 8, 8) and len(pictures) == len(reconstruction) == 2
    if name == "unconditional":
        assert c is None and raw is None
    else:
        assert conditioning.size(c) == 2
    images = model.log_images(batch, N=2, ddim_steps=2, plot_denoise_rows=True, plot_progressive_rows=True, plot_diffusion_rows=True, inpaint=True)
    expected = {"inputs", "reconstruction", "samples", "diffusion_row", "denoise_row", "progressive_row", "samples_inpainting", "samples_outpainting", "mask"}
    expected |= {"samples_scaled"} if conditioning.is_text(raw) else set()
    expected |= {"conditioning"} if name not in ("unconditional", "boxes", "maps") else set()
    expected |= {"original_conditioning"} if name == "maps" else set()
    expected |= {"samples_x0_quantized"} if name == "the picture itself" else set()
    assert set(images) == expected
    for key, rows in images.items():
        assert rows.shape[-3] in (1, 3), key
        assert rows.isfinite().all(), key
    assert len(images["samples"]) == 2
    assert model.log_images(batch, N=1, ddim_steps=None, return_keys=["samples", "nothing"]).keys() == {"samples"}
