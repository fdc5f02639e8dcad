"""CLIP's text encoder: recorded numbers, the library's own forward, the checkpoints' names, folders and sizes, the way in for placeholders."""
import copy
import json

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from ldm.modules.encoders.clip_text import VIT_L_14
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from tests.golden.case import assert_close_to_golden, load_case, oracle_file
from tests.modules.text_encoders import TINY, Adding, clip_folder, clip_of_case, clip_with_weights_of, tiny_clip

POSITION_IDS = "transformer.text_model.embeddings.position_ids"
PROMPTS = ["a photo of a *", "", "a much longer prompt, with commas, about 3 things"]


def plain_forward(embedder, texts):
    """What `transformers` itself makes of the texts."""
    ids = embedder.tokenizer(texts, truncation=True, max_length=embedder.max_length, padding="max_length", return_tensors="pt")["input_ids"]
    return embedder.transformer.text_model(input_ids=ids).last_hidden_state


@pytest.fixture(scope="module")
def recorded():
    return clip_with_weights_of(load_case("ld_a_weights")), load_case("ld_a_core")


@torch.no_grad()
def test_encodings_are_the_recorded_ones(recorded):
    embedder, core = recorded
    assert_close_to_golden(embedder.encode(core.notes["PROMPTS"]), core["out/conditioning_no_manager"])


@pytest.mark.parametrize("max_length", [77, 20])
def test_numbers_are_those_of_the_plain_library_model(max_length):
    embedder = FrozenCLIPEmbedder(device="cpu", max_length=max_length, text_config=TINY | {"num_hidden_layers": 3})
    with torch.no_grad():
        torch.testing.assert_close(embedder(PROMPTS), plain_forward(embedder, PROMPTS), atol=1e-6, rtol=1e-6)


def test_gradients_are_those_of_the_plain_library_model():
    embedder = tiny_clip()
    weight = torch.randn(3, 77, 16)
    names, parameters = zip(*embedder.named_parameters(), strict=True)
    ours = torch.autograd.grad((embedder(PROMPTS) * weight).sum(), parameters)
    plain = torch.autograd.grad((plain_forward(embedder, PROMPTS) * weight).sum(), parameters)
    for name, a, b in zip(names, ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()) + 1e-9, rtol=0, msg=name)


@pytest.fixture(scope="module")
def full_size():
    return FrozenCLIPEmbedder(device="cpu")


def test_default_is_the_text_tower_of_vit_l_14(full_size):
    with torch.no_grad():
        z = full_size("a photo of a *")
        torch.testing.assert_close(z, plain_forward(full_size, ["a photo of a *"]), atol=1e-6, rtol=1e-6)
    assert z.shape == (1, 77, 768)
    config = full_size.transformer.text_model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (12, 12, 3072)
    assert (config.hidden_act, config.layer_norm_eps, config._attn_implementation) == ("quick_gelu", 1e-5, "sdpa")


def test_keys_and_shapes_are_those_of_stable_diffusion_checkpoints(full_size):
    manifest = json.loads(oracle_file("manifest_sd_v1.json").read_text())["keys"]
    prefix = "cond_stage_model."
    expected = {key[len(prefix) :]: entry["shape"] for key, entry in manifest.items() if key.startswith(prefix)}
    assert expected.pop(POSITION_IDS) == [1, 77]
    assert {key: list(value.shape) for key, value in full_size.state_dict().items()} == expected
    assert len(expected) == 196


@pytest.mark.parametrize("with_position_ids", [True, False])
def test_strict_loading_takes_checkpoints_with_and_without_position_ids(with_position_ids):
    source, target = tiny_clip(), tiny_clip()
    state = source.state_dict()
    if with_position_ids:
        state[POSITION_IDS] = torch.arange(77)[None]
    target.load_state_dict(state, strict=True)
    assert torch.equal(target(PROMPTS), source(PROMPTS))
    assert (POSITION_IDS in state) == with_position_ids  # the caller's dictionary is left alone
    assert POSITION_IDS not in target.state_dict()


def test_strict_loading_still_refuses_other_keys():
    state = tiny_clip().state_dict()
    state["transformer.text_model.embeddings.other"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="embeddings.other"):
        tiny_clip().load_state_dict(state)


def test_tokens_see_only_what_stands_before_them():
    embedder = tiny_clip()
    with torch.no_grad():
        a, b = embedder(["a photo of a dog", "a photo of a cat on a mat"])
    assert torch.equal(a[:5], b[:5]) and not torch.allclose(a[5], b[5])


def test_text_is_lower_cased_and_a_string_is_one_text():
    embedder = tiny_clip()
    with torch.no_grad():
        assert torch.equal(embedder("A Photo OF a DOG"), embedder(["a photo of a dog"]))
        assert torch.equal(embedder.encode(("a", "b")), embedder(["a", "b"]))


def test_placeholders_enter_after_the_table_and_before_the_positions():
    embedder, hook = tiny_clip(), Adding(0.0)
    with torch.no_grad():
        untouched = embedder.encode(PROMPTS)
        assert torch.equal(embedder.encode(PROMPTS, embedding_manager=hook), untouched)
        (ids, embeddings), model = hook.seen[0], embedder.transformer.text_model
        assert ids.dtype == torch.int64 and ids.shape == (3, 77)
        assert torch.equal(embeddings, model.embeddings.token_embedding(ids))
        changed = embedder.encode(PROMPTS, embedding_manager=Adding(0.5))
        model.embeddings.token_embedding.weight += 0.5
        torch.testing.assert_close(embedder.encode(PROMPTS), changed)
    assert not torch.allclose(changed, untouched)


def test_unknown_keywords_are_not_swallowed():
    with pytest.raises(TypeError, match="embeding_manager"):
        tiny_clip().encode("a", embeding_manager=None)


def test_freeze_is_for_the_caller_to_call():
    embedder = tiny_clip()
    assert all(p.requires_grad for p in embedder.parameters())
    embedder.freeze()
    assert not any(p.requires_grad for p in embedder.parameters()) and not embedder.transformer.training


def test_a_copy_is_independent():
    """A frozen twin of the encoder is a deep copy."""
    embedder = tiny_clip()
    twin = copy.deepcopy(embedder)
    with torch.no_grad():
        before = twin("a dog")
        embedder.transformer.text_model.embeddings.token_embedding.weight.mul_(2)
        assert torch.equal(twin("a dog"), before)
    twin.load_state_dict(embedder.state_dict() | {POSITION_IDS: torch.arange(77)[None]})


def test_output_has_the_dtype_of_the_weights():
    assert tiny_clip().to(torch.bfloat16)("a dog").dtype == torch.bfloat16


# -- folders, names, sizes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"), TINY)


def test_a_folder_brings_size_weights_and_tokenizer(folder):
    embedder = FrozenCLIPEmbedder(version=str(folder), device="cpu")
    stored = load_file(folder / "model.safetensors")
    loaded = embedder.transformer.text_model.state_dict()
    assert stored.keys() == loaded.keys() and all(torch.equal(stored[key], loaded[key]) for key in stored)
    assert embedder.tokenizer("*")["input_ids"] == [49406, 265, 49407]


def test_a_folder_wins_over_text_config(folder):
    embedder = FrozenCLIPEmbedder(version=str(folder), device="cpu", text_config={"hidden_size": 64})
    assert embedder.transformer.text_model.config.hidden_size == 16


def test_a_folder_in_the_old_layout_in_half_precision_loads_as_float32(folder, tmp_path):
    """As published for Stable Diffusion: keys under text_model., position ids, fp16, and the tokenizer in another folder."""
    state = {f"text_model.{key}": value.half() for key, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    embedder = FrozenCLIPEmbedder(version=str(tmp_path), device="cpu")
    loaded = embedder.state_dict()
    assert all(loaded[f"transformer.{key}"].dtype == torch.float32 and torch.equal(loaded[f"transformer.{key}"], value.float()) for key, value in state.items())
    assert embedder.tokenizer("*")["input_ids"] == [49406, 265, 49407]


def test_a_folder_of_a_whole_clip_gives_its_text_tower(tmp_path):
    vision = TINY | {"image_size": 8, "patch_size": 4}
    whole = CLIPModel(CLIPConfig(text_config=TINY | {"pad_token_id": 49407}, vision_config=vision))
    whole.save_pretrained(tmp_path)
    loaded = FrozenCLIPEmbedder(version=str(tmp_path), device="cpu").transformer.text_model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in whole.text_model.state_dict().items())


def test_a_folder_with_half_its_weights_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = {key: value for key, value in load_file(folder / "model.safetensors").items() if "layers" not in key}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 16 tensors.*encoder.layers.0"):
        FrozenCLIPEmbedder(version=str(tmp_path), device="cpu")


def test_a_folder_without_config_or_weights_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        FrozenCLIPEmbedder(version=str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="no weights"):
        FrozenCLIPEmbedder(version=str(tmp_path), device="cpu")


def test_a_name_that_is_neither_folder_nor_known_is_refused_and_no_hub_is_asked():
    with pytest.raises(FileNotFoundError, match="openai/clip-vit-large-patch15.*openai/clip-vit-large-patch14"):
        FrozenCLIPEmbedder(version="openai/clip-vit-large-patch15")


def test_text_config_may_come_from_a_yaml_and_names_the_rest_from_vit_l_14():
    config = OmegaConf.create({"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1})
    built = FrozenCLIPEmbedder(text_config=config).transformer.text_model.config
    assert (built.hidden_size, built.intermediate_size, built.hidden_act) == (24, VIT_L_14["intermediate_size"], "quick_gelu")


def test_text_config_is_checked_all_at_once():
    with pytest.raises(ValueError, match="(?s)hiden_size: unknown, did you mean hidden_size.*no multiple of num_attention_heads 5.*vocab_size 100 is less"):
        FrozenCLIPEmbedder(text_config={"hiden_size": 3, "num_attention_heads": 5, "vocab_size": 100})


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="max_length is 78.*77 positions"):
        tiny_clip(max_length=78)


def test_recorded_case_sizes_build(recorded):
    assert clip_of_case(load_case("em_1vec")).transformer.text_model.config.hidden_size == 16
