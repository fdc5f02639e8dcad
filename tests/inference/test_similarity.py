"""CLIP's cosines: of CLIPs in both formats, with pictures prepared as CLIP was trained, and a report from which the number can be read."""
from __future__ import annotations

import re
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from ldm.inference.similarity import cosines, open_clip, prepared, read_pictures
from ldm.modules.encoders.clip_tokenizer import clip_tokenizer
from tests.golden.case import REPOSITORY

SCRIPT = "scripts/evaluate_model.py"
CPU = torch.device("cpu")
TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_act": "quick_gelu"}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "small-clip"
    torch.manual_seed(3)
    text = {**TOWER, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8}, projection_dim=24)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def as_clip_package_names_them(model: CLIPModel) -> dict[str, torch.Tensor]:
    """The tensors of a transformers CLIP with one layer a tower, under the names of the clip package."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = {
        "text_projection": state["text_projection.weight"].T, "visual.proj": state["visual_projection.weight"].T, "logit_scale": state["logit_scale"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
    }  # fmt: skip
    for name in ("weight", "bias"):
        result[f"ln_final.{name}"] = state[f"text_model.final_layer_norm.{name}"]
        result[f"visual.ln_pre.{name}"] = state[f"vision_model.pre_layrnorm.{name}"]
        result[f"visual.ln_post.{name}"] = state[f"vision_model.post_layernorm.{name}"]
        for ours, theirs in (("", "text_model"), ("visual.", "vision_model")):
            layer, block = f"{theirs}.encoder.layers.0", f"{ours}transformer.resblocks.0"
            result[f"{block}.attn.in_proj_{name}"] = torch.cat([state[f"{layer}.self_attn.{part}_proj.{name}"] for part in "qkv"])
            result[f"{block}.attn.out_proj.{name}"] = state[f"{layer}.self_attn.out_proj.{name}"]
            result[f"{block}.ln_1.{name}"], result[f"{block}.ln_2.{name}"] = state[f"{layer}.layer_norm1.{name}"], state[f"{layer}.layer_norm2.{name}"]
            result[f"{block}.mlp.c_fc.{name}"], result[f"{block}.mlp.c_proj.{name}"] = state[f"{layer}.mlp.fc1.{name}"], state[f"{layer}.mlp.fc2.{name}"]
    return result


@pytest.fixture(scope="module")
def clip_file(clip_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "ViT-small.pt"
    torch.save(as_clip_package_names_them(CLIPModel.from_pretrained(clip_folder)), path)
    return path


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", (40, 30)), ("b", (24, 64)), ("c", (32, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


def test_cosines_are_of_all_pairs():
    a, b = F.normalize(torch.randn(4, 5), dim=1), F.normalize(torch.randn(3, 5), dim=1)
    pairs = [[F.cosine_similarity(x, y, dim=0).item() for y in b] for x in a]
    found = cosines(a, b)
    assert found.mean == pytest.approx(np.mean(pairs), abs=1e-6)
    assert (found.least, found.most) == pytest.approx((np.min(pairs), np.max(pairs)), abs=1e-6)
    assert found.standard_error == pytest.approx(np.std(np.mean(pairs, axis=1), ddof=1) / 2, abs=1e-6)
    assert cosines(a, a[:1]).most == pytest.approx(1.0) and cosines(a, -a[:1]).least == pytest.approx(-1.0)


def test_pictures_are_prepared_as_transformers_does(pictures):
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for path, picture in zip(sorted(pictures.iterdir()), read_pictures(pictures), strict=True):
        theirs = processor(Image.open(path), return_tensors="pt")["pixel_values"][0]
        assert (prepared(picture, 32) - theirs).abs().mean() < 0.02, "but for rounding to 8 bits on the way"


def test_a_clip_of_a_folder_is_transformers_own(clip_folder, pictures):
    clip, model = open_clip(clip_folder, CPU), CLIPModel.from_pretrained(clip_folder).eval()
    x = torch.stack([prepared(picture, 32) for picture in read_pictures(pictures)])
    texts = ["a photo of a dog", "a house"]
    tokens = clip_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        answer = model(pixel_values=x, **tokens)
    torch.testing.assert_close(clip.of_pictures(read_pictures(pictures)), answer.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.of_texts(texts), answer.text_embeds, atol=1e-5, rtol=0)
    assert clip.name == "small-clip (transformers, patches of 8 at 32 px, 24 dimensions)"


def test_a_clip_of_a_file_gives_the_same_directions(clip_folder, clip_file, pictures):
    by_folder, by_file = open_clip(clip_folder, CPU), open_clip(clip_file, CPU)
    tensors = read_pictures(pictures)
    # that package stores half-precision weights
    torch.testing.assert_close(by_file.of_pictures(tensors), by_folder.of_pictures(tensors), atol=5e-3, rtol=0)
    torch.testing.assert_close(by_file.of_texts(["a dog", "a house"]), by_folder.of_texts(["a dog", "a house"]), atol=5e-3, rtol=0)
    assert by_file.side == 32 and by_file.name == "ViT-small.pt (clip package, 32 px, 24 dimensions)"


def test_a_torchscript_archive_is_read_as_published_files_are(clip_file, pictures, tmp_path):
    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in torch.load(clip_file).items():
                module = self
                *parents, leaf = name.split(".")
                for parent in parents:
                    if not hasattr(module, parent):
                        module.add_module(parent, torch.nn.Module())
                    module = getattr(module, parent)
                module.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Archive()).save(str(tmp_path / "archive.pt"))
    tensors = read_pictures(pictures)
    torch.testing.assert_close(open_clip(tmp_path / "archive.pt", CPU).of_pictures(tensors), open_clip(clip_file, CPU).of_pictures(tensors), rtol=0, atol=1e-6)


def test_a_folder_without_a_tokenizer_takes_clips_own(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    torch.testing.assert_close(open_clip(tmp_path / "bare", CPU).of_texts(["a dog"]), open_clip(clip_folder, CPU).of_texts(["a dog"]))


@pytest.fixture
def evaluate(command, small, words_file, pictures, clip_folder):
    words = ["--config", small.config, "--ckpt_path", small.checkpoint, "--embedding_path", words_file, "--data_dir", pictures, "--device", "cpu"]
    return lambda *more: command(SCRIPT, *words, "--clip", clip_folder, "--n_samples", 5, "--ddim_steps", 2, "--prompt", "a photo of *", *more)


def test_the_report_says_what_its_numbers_are(evaluate, clip_folder, pictures, small, words_file, tmp_path, command):
    code, said = evaluate()
    assert code == 0, said
    image, text = (re.search(rf"{name} similarity +(-?\d\.\d+) ±", said) for name in ("image", "text"))
    # the same from files that the drawing command wrote with the same seeds
    words = [*small.words, "--embedding_path", words_file, "--prompt", "a photo of *", "--outdir", tmp_path / "o", "--seed", 42]
    assert command("scripts/stable_txt2img.py", *words, "--n_samples", 5, "--n_iter", 1, "--ddim_steps", 2, "--scale", 5)[0] == 0
    clip = open_clip(clip_folder, CPU)
    samples = clip.of_pictures(read_pictures(tmp_path / "o" / "samples"))
    assert float(image[1]) == pytest.approx(cosines(samples, clip.of_pictures(read_pictures(pictures))).mean, abs=2e-3)
    assert float(text[1]) == pytest.approx(cosines(samples, clip.of_texts(["a photo of"])).mean, abs=2e-3)
    assert "5 samples × 3 pictures" in said and "“a photo of”" in said and "-1 to 1" in said and "small-clip (transformers" in said
    assert "shorter side to 32 px" in said and "64×64 px, 2 DDIM steps, guidance 5, seeds 42 to 46" in said and "neither by 100" in said


def test_the_batch_size_does_not_change_the_numbers(evaluate):
    said = [evaluate("--batch_size", size)[1] for size in (1, 5)]
    numbers = [[float(number) for number in re.findall(r"-?\d\.\d{4}", text)] for text in said]
    assert len(numbers[0]) == 8 and numbers[0] == pytest.approx(numbers[1], abs=1e-3)


def test_a_prompt_of_the_word_alone_has_no_text_to_compare(evaluate):
    code, said = evaluate("--prompt", "*")
    assert code == 0 and "text similarity   not measured" in said and "image similarity" in said


@pytest.mark.parametrize(
    ("words", "said_of_it"),
    [
        (["--clip", "nowhere"], "--clip: there is no nowhere"),
        (["--clip", "configs"], "has no config.json"),
        (["--clip", "README.md"], "README.md: not a checkpoint"),
        (["--clip", "assets/characters/classifiers.safetensors"], "is no weights file of the clip package: it has no tensor text_projection"),
        (["--data_dir", "nowhere"], "--data_dir: there is no nowhere"),
        (["--data_dir", "configs"], "--data_dir: no picture in configs"),
        (["--ckpt_path", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--embedding_path", "nowhere.pt"], "no file nowhere.pt"),
        (["--n_samples", 0], "--n_samples is 0"),
        (["--H", 63], "needs a multiple of 8"),
    ],
)
def test_bad_words_get_one_line(evaluate, monkeypatch, words, said_of_it):
    monkeypatch.chdir(REPOSITORY)
    code, said = evaluate(*words)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1 and said_of_it in line and "Traceback" not in said


def test_a_folder_of_another_model_is_no_clip(evaluate, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    code, said = evaluate("--clip", tmp_path / "other")
    assert code == 1 and "is not readable as a CLIP model" in said
