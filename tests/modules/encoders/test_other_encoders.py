"""Class labels, rescaled pictures, and the clip package's own towers."""
import clip
import pytest
import torch
import torch.nn.functional as F
from clip.model import CLIP

from ldm.modules.encoders.modules import (
    AbstractEncoder,
    ClassEmbedder,
    FrozenClipImageEmbedder,
    FrozenCLIPTextEmbedder,
    SpatialRescaler,
)


def test_class_embedder_takes_the_whole_batch():
    embedder = ClassEmbedder(embed_dim=6, n_classes=4, key="class_label")
    batch = {"class_label": torch.tensor([2, 0]), "other": torch.tensor([1, 1]), "image": torch.zeros(2, 8, 8, 3)}
    assert torch.equal(embedder(batch), embedder.embedding.weight[[2, 0]][:, None])
    assert torch.equal(embedder(batch, key="other"), embedder.embedding.weight[[1, 1]][:, None])
    assert not hasattr(embedder, "encode")
    assert list(embedder.state_dict()) == ["embedding.weight"]


def test_an_encoder_without_encode_says_so():
    with pytest.raises(NotImplementedError, match="AbstractEncoder has no encode"):
        AbstractEncoder().encode("text")


def test_rescaler_halves_once_a_stage():
    x = torch.randn(2, 5, 16, 24)
    halved = F.interpolate(x, scale_factor=0.5, mode="bilinear")
    assert torch.equal(SpatialRescaler(n_stages=1)(x), halved)
    assert torch.equal(SpatialRescaler(n_stages=2).encode(x), F.interpolate(halved, scale_factor=0.5, mode="bilinear"))
    assert SpatialRescaler(n_stages=0)(x) is x


def test_rescaler_maps_channels_where_asked():
    rescaler = SpatialRescaler(n_stages=1, method="nearest", multiplier=2, in_channels=5, out_channels=3)
    x = torch.randn(1, 5, 4, 4)
    assert torch.equal(rescaler(x), F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), rescaler.channel_mapper.weight))
    assert list(rescaler.state_dict()) == ["channel_mapper.weight"]
    assert list(SpatialRescaler(out_channels=3, bias=True).state_dict()) == ["channel_mapper.weight", "channel_mapper.bias"]


def test_rescaler_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="method is 'lanczos'.*bicubic"):
        SpatialRescaler(method="lanczos")
    with pytest.raises(ValueError, match="n_stages is -1"):
        SpatialRescaler(n_stages=-1)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """Weights of a small model in the clip package's format, and that model."""
    torch.manual_seed(0)
    model = CLIP(
        embed_dim=8, image_resolution=224, vision_layers=1, vision_width=64, vision_patch_size=112,
        context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=1,
    )  # fmt: skip
    model = model.eval()
    path = tmp_path_factory.mktemp("clip") / "small.pt"
    torch.save({key: value.half().float() for key, value in model.state_dict().items()}, path)
    model.load_state_dict(torch.load(path))
    return path, model


@torch.no_grad()
def test_pooled_text_embedding_is_the_clip_packages(clip_file):
    path, model = clip_file
    texts = ["a photo of a dog", "two"]
    expected = model.encode_text(clip.tokenize(texts))
    torch.testing.assert_close(FrozenCLIPTextEmbedder(str(path), normalize=False)(texts), expected, atol=1e-5, rtol=1e-4)
    embedder = FrozenCLIPTextEmbedder(str(path), n_repeat=3)
    z = embedder.encode(texts)
    assert z.shape == (2, 3, 8) and torch.equal(z[:, 0], z[:, 2])
    torch.testing.assert_close(z[:, 0], expected / expected.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert embedder.encode("one").shape == (1, 3, 8)


def test_pooled_text_embedder_can_be_frozen(clip_file):
    embedder = FrozenCLIPTextEmbedder(str(clip_file[0]))
    embedder.freeze()
    assert not any(p.requires_grad for p in embedder.parameters()) and not embedder.model.training


@torch.no_grad()
def test_picture_embedding_is_the_clip_packages(clip_file):
    path, model = clip_file
    embedder = FrozenClipImageEmbedder(str(path), device="cpu")
    x = torch.rand(2, 3, 224, 224) * 2 - 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    torch.testing.assert_close(embedder(x), model.encode_image(((x + 1) / 2 - mean) / std), atol=1e-4, rtol=1e-3)
    assert not {"mean", "std"} & set(embedder.state_dict())


@pytest.mark.parametrize("antialias", [False, True])
def test_pictures_of_any_size_are_brought_to_clips(clip_file, antialias):
    embedder = FrozenClipImageEmbedder(str(clip_file[0]), device="cpu", antialias=antialias)
    grey = embedder.preprocess(torch.zeros(1, 3, 40, 60))
    assert grey.shape == (1, 3, 224, 224)
    torch.testing.assert_close(grey[0, :, 5, 5], (0.5 - embedder.mean[:, 0, 0]) / embedder.std[:, 0, 0])


@pytest.mark.parametrize("build", [lambda: FrozenCLIPTextEmbedder(), lambda: FrozenClipImageEmbedder("ViT-L/14")])
def test_weights_are_named_by_path_and_never_downloaded(build):
    with pytest.raises(FileNotFoundError, match="no file ViT-L/14.*nothing is downloaded"):
        build()
