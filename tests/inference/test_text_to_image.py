"""Prompts to files: one set of pictures a prompt, the same for every batch size, nothing overwritten, and bad input told in one line."""
from __future__ import annotations

import copy
import json
import os
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.checkpoints import save_weights
from ldm.checkpoints.embeddings import write_embeddings
from ldm.checkpoints.keys import NOTES
from ldm.inference import text_to_image
from ldm.inference.drawing import PictureNoise, Settings, draw_latents
from tests.evaluation import small_characters
from tests.golden.case import REPOSITORY
from tests.inference.small_models import write_model
from tests.modules.text_encoders import BERT_WORDS, bert_vocabulary

SCRIPT = "scripts/stable_txt2img.py"
FEW = ["--ddim_steps", "2", "--n_iter", "1", "--seed", "1"]


def picture(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def drawn(command, small, tmp_path):
    """Draws with the small model to a folder; its exit code and what was said."""

    def draw(*words, outdir="out", script=SCRIPT):
        return command(script, *small.words, "--outdir", tmp_path / outdir, *FEW, *words)

    return draw


def test_pictures_and_grid_are_written_and_numbered(drawn, tmp_path):
    code, said = drawn("--prompt", "a house by a/b", "--n_samples", 2, "--n_iter", 2)
    assert code == 0, said
    assert names(tmp_path / "out" / "samples") == [f"{n:05}.png" for n in range(4)]
    assert names(tmp_path / "out") == ["a-house-by-a_b-0000.png", "samples"]
    assert picture(tmp_path / "out" / "samples" / "00000.png").shape == (64, 64, 3)
    assert picture(tmp_path / "out" / "a-house-by-a_b-0000.png").shape == (2 * 66 + 2, 2 * 66 + 2, 3)


def test_the_other_command_names_its_files_as_it_always_did(command, small, tmp_path):
    words = ["--config", small.config, "--ckpt_path", small.checkpoint, "--device", "cpu", "--ddim_steps", 2, "--n_samples", 2, "--outdir", tmp_path]
    for _ in range(2):
        code, said = command("scripts/txt2img.py", *words, "--prompt", "a house")
        assert code == 0, said
    assert names(tmp_path) == ["a-house-0001.png", "a-house.png", "samples"]
    assert names(tmp_path / "samples") == [f"{n:04}.png" for n in range(4)]


@pytest.mark.parametrize("sampler", [["--ddim_eta", "0"], ["--ddim_eta", "1"], ["--plms"], ["--dpm_solver"]], ids=" ".join)
def test_the_batch_size_does_not_change_a_picture(drawn, tmp_path, sampler):
    if "--dpm_solver" in sampler:
        pytest.importorskip("diffusers")
    for count in (1, 4):
        code, said = drawn("--prompt", "a house", "--n_samples", count, "--n_iter", 4 // count, *sampler, outdir=str(count))
        assert code == 0, said
    one, four = ([picture(tmp_path / str(count) / "samples" / f"{n:05}.png") for n in range(4)] for count in (1, 4))
    for n in range(4):
        assert abs(one[n] - four[n]).max() <= 1, "equal, to rounding"
    assert abs(one[0] - one[1]).max() > 1, "another seed is another picture"


def test_added_noise_is_each_pictures_own():
    pair, alone = PictureNoise([7, 8], (4, 2, 2)), PictureNoise([8], (4, 2, 2))
    torch.testing.assert_close(pair.start[1:], alone.start, rtol=0, atol=0)
    for _, together, single in zip(range(3), pair, alone, strict=False):
        torch.testing.assert_close(together[1:], single, rtol=0, atol=0)
        assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("sampler", ["DDIM", "PLMS"])
def test_every_number_of_steps_is_made(small, sampler):
    model = copy.copy(small.model)
    model.apply_model = lambda x, t, c: torch.zeros_like(x)
    for steps in range(1, model.num_timesteps + 1):
        made = []
        draw_latents(model, PictureNoise([0], (4, 8, 8)), Settings(sampler, steps), conditioning=torch.zeros(1, 1, 32), callback=made.append)
        assert made == list(range(steps))


def test_a_picture_says_what_it_was_drawn_from_and_can_be_drawn_again(drawn, words_file, tmp_path):
    code, said = drawn("--prompt", "a photo of a * — groß", "--n_samples", 3, "--scale", "2.5", "--embedding_path", words_file)
    assert code == 0, said
    about = Image.open(tmp_path / "out" / "samples" / "00002.png").text
    settings = json.loads(about["settings"])
    assert about["prompt"] == "a photo of a * — groß" and about["seed"] == "3"
    assert settings["checkpoint"] == "model.safetensors" and settings["embeddings"] == "embeddings.pt" and settings["precision"] == "full"
    again = ["--prompt", about["prompt"], "--seed", about["seed"], "--scale", settings["scale"], "--ddim_steps", settings["steps"], "--n_samples", 1]
    code, said = drawn(*again, "--H", settings["height"], "--W", settings["width"], "--embedding_path", words_file, outdir="again")
    assert code == 0, said
    assert abs(picture(tmp_path / "again" / "samples" / "00000.png") - picture(tmp_path / "out" / "samples" / "00002.png")).max() <= 1


@pytest.mark.parametrize(
    ("content", "prompts", "left_out"),
    [
        (b"one\ntwo\nthree\nfour\nfive\n", 5, None),
        (b"one\r\ntwo\r\n", 2, None),
        (b"\xef\xbb\xbfone\n\n  \ntwo\n\n", 2, "blank lines left out: 3"),
        (b"only", 1, None),
    ],
)
def test_each_line_of_a_file_gets_its_pictures(drawn, tmp_path, content, prompts, left_out):
    (tmp_path / "list.txt").write_bytes(content)
    code, said = drawn("--from-file", tmp_path / "list.txt", "--n_samples", 3, "--n_iter", 2)
    assert code == 0, said
    about = [Image.open(path).text for path in sorted((tmp_path / "out" / "samples").iterdir())]
    assert len(about) == 2 * prompts and {a["seed"] for a in about} == {"1", "2"}
    assert len({(a["prompt"], a["seed"]) for a in about}) == 2 * prompts and all("\r" not in a["prompt"] for a in about)
    assert names(tmp_path / "out") == ["list-0000.png", "samples"]
    assert (left_out in said) if left_out else "left out" not in said


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xff\xfe\x00"])
def test_a_file_without_prompts_is_refused(drawn, tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    code, said = drawn("--from-file", tmp_path / "list.txt")
    assert code == 1 and "list.txt" in said and ("expected one prompt a line" in said or "expected one a line" in said)
    assert not (tmp_path / "out").exists()


def test_a_line_of_a_file_is_drawn_as_if_it_were_alone(drawn, tmp_path):
    (tmp_path / "list.txt").write_text("a cat\na house\n")
    assert drawn("--from-file", tmp_path / "list.txt", "--n_samples", 2, outdir="file")[0] == 0
    assert drawn("--prompt", "a house", "--n_samples", 1, outdir="alone")[0] == 0
    assert abs(picture(tmp_path / "file" / "samples" / "00001.png") - picture(tmp_path / "alone" / "samples" / "00000.png")).max() <= 1


def test_nothing_is_overwritten_whatever_gaps_there_are(drawn, tmp_path):
    (tmp_path / "out" / "samples").mkdir(parents=True)
    kept = [tmp_path / "out" / name for name in ("a-house-0000.png", "a-house-0002.png", "samples/00000.jpg", "samples/00003.png")]
    for path in kept:
        path.write_text("mine")
    for _ in range(2):
        code, said = drawn("--prompt", "a house", "--n_samples", 2)
        assert code == 0, said
    assert all(path.read_text() == "mine" for path in kept)
    assert names(tmp_path / "out" / "samples") == ["00000.jpg", "00003.png", *[f"{n:05}.png" for n in range(4, 8)]]
    assert names(tmp_path / "out")[:-1] == [f"a-house-{n:04}.png" for n in (0, 2, 3, 4)]


def test_skipped_files_are_not_written(drawn, tmp_path):
    assert drawn("--prompt", "a", "--skip_grid", "--n_samples", 1, outdir="samples_only")[0] == 0
    assert drawn("--prompt", "a", "--skip_save", "--n_samples", 1, outdir="grid_only")[0] == 0
    assert names(tmp_path / "samples_only") == ["samples"] and names(tmp_path / "grid_only") == ["a-0000.png"]


def test_fixed_code_starts_every_picture_from_one_noise(drawn, tmp_path):
    code, said = drawn("--prompt", "a", "--fixed_code", "--n_samples", 2)
    assert code == 0 and "are all the same" in said
    first, second = (picture(tmp_path / "out" / "samples" / f"0000{n}.png") for n in range(2))
    assert abs(first - second).max() <= 1
    code, said = drawn("--prompt", "a", "--fixed_code", "--n_samples", 2, "--ddim_eta", 1, outdir="noisy")
    assert code == 0 and "are all the same" not in said
    assert abs(picture(tmp_path / "noisy" / "samples" / "00000.png") - picture(tmp_path / "noisy" / "samples" / "00001.png")).max() > 1


def test_words_of_a_file_have_its_number_of_vectors_whatever_the_config_says(drawn, words_file, tmp_path):
    for prompt, folder in (("a photo of *", "with"), ("", "empty"), ("a photo of a character", "without")):
        code, said = drawn("--prompt", prompt, "--embedding_path", words_file, "--n_samples", 1, outdir=folder)
        assert code == 0, said
        assert ("none of the learnt words" in said) == (folder != "with")
        assert folder == "with" or "'*'" in said, "which words exist is said"
    for prompt, folder in (("a photo of *", "plain"), ("a photo of a character", "plain_without")):
        assert drawn("--prompt", prompt, "--n_samples", 1, outdir=folder)[0] == 0
    first = {folder: picture(tmp_path / folder / "samples" / "00000.png") for folder in ("with", "without", "plain", "plain_without")}
    assert abs(first["with"] - first["plain"]).max() > 1, "with the word in the prompt the file makes a difference"
    assert abs(first["without"] - first["plain_without"]).max() <= 1, "without it none"


def test_a_word_glued_to_its_neighbour_is_pointed_at(drawn, words_file):
    code, said = drawn("--prompt", "a *, large", "--embedding_path", words_file, "--n_samples", 1)
    assert code == 0 and "none of the learnt words" in said and "put spaces round it" in said


def test_a_checkpoints_own_words_are_used_where_no_file_is_named(command, drawn, small, words_file, checkpoint_with_words, tmp_path):
    assert drawn("--prompt", "a photo of *", "--embedding_path", words_file, "--n_samples", 1, outdir="file")[0] == 0
    words = ["--config", small.config, "--ckpt", checkpoint_with_words, "--device", "cpu", "--outdir", tmp_path / "own", *FEW, "--n_samples", 1]
    code, said = command(SCRIPT, *words, "--prompt", "a photo of *")
    assert code == 0, said
    assert abs(picture(tmp_path / "own" / "samples" / "00000.png") - picture(tmp_path / "file" / "samples" / "00000.png")).max() <= 1


def test_a_prompt_that_is_too_long_is_drawn_and_said(drawn):
    code, said = drawn("--prompt", "word " * 75 + "and the end", "--n_samples", 1)
    assert code == 0 and "the prompt has 78 tokens, and the text encoder reads 75 of them; not read: “and the end”" in said
    assert "Token indices" not in said


@pytest.mark.parametrize(
    ("words", "said_of_it"),
    [
        (["--H", 60, "--W", 100], "needs a multiple of 8, such as 56 or 64; --W is 100: this model needs a multiple of 8, such as 96 or 104"),
        (["--H", 0], "--H is 0: this model needs a multiple of 8, such as 8"),
        (["--C", 3], "--C is 3, but this model's is 4"),
        (["--f", 4], "--f is 4, but this model's is 8"),
        (["--ckpt", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--ckpt", "README.md"], "README.md: not a checkpoint"),
        (["--config", "nowhere.yaml"], "no file nowhere.yaml"),
        (["--embedding_path", "nowhere.pt"], "--embedding_path: no file nowhere.pt"),
        (["--embedding_path", "README.md"], "README.md: not a checkpoint"),
        (["--from-file", "nowhere.txt"], "no file nowhere.txt"),
        (["--ddim_steps", 21], "21 steps were asked for; this model was trained with 20"),
        (["--ddim_steps", 0], "it must be at least 1"),
        (["--plms", "--ddim_eta", 1], "PLMS adds no noise"),
        (["--plms", "--dpm_solver"], "name one"),
        (["--ddim_eta", 1.5], "eta is 1.5"),
        (["--seed", -1], "--seed is -1"),
        (["--n_samples", 0], "--n_samples is 0"),
        (["--n_iter", 0], "--n_iter is 0"),
        (["--device", "nonsense"], "--device nonsense"),
        (["--prompt"], "need a value"),
        (["--laion400m", "--config", "configs/stable-diffusion/v1-inference.yaml", "--ckpt", "models/ldm/stable-diffusion-v1/model.ckpt"],
         "no checkpoint models/ldm/text2img-large/model.ckpt"),
    ],
)  # fmt: skip
def test_bad_words_get_one_line_and_leave_nothing(drawn, monkeypatch, tmp_path, words, said_of_it):
    monkeypatch.chdir(REPOSITORY)
    code, said = drawn(*words)
    assert code == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert said_of_it in line and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_without_diffusers_its_sampler_says_what_to_install(drawn, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, said = drawn("--dpm_solver", "--prompt", "a")
    assert code == 1 and "pip install diffusers" in said and not (tmp_path / "out").exists()


def test_words_of_another_width_are_refused_with_both_widths(drawn, tmp_path):
    write_embeddings(tmp_path / "wide.pt", {"*": torch.tensor(265)}, {"*": torch.zeros(1, 768)})
    code, said = drawn("--embedding_path", tmp_path / "wide.pt", "--prompt", "*")
    assert code == 1 and "768 wide, expected 32" in said and not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(command, small, tmp_path):
    save_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    code, said = command(SCRIPT, "--config", small.config, "--ckpt", tmp_path / "other.safetensors", "--outdir", tmp_path / "out", *FEW)
    assert code == 1 and "other.safetensors" in said and "Nothing was loaded" in said and not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_network_says_what_to_name_instead(command, small, tmp_path):
    torch.save({"state_dict": {"x": torch.zeros(1)}, NOTES: {"base_sha256": "00", "base_path": "sd.ckpt"}}, tmp_path / "last.ckpt")
    code, said = command(SCRIPT, "--config", small.config, "--ckpt", tmp_path / "last.ckpt", "--outdir", tmp_path / "out", *FEW)
    assert code == 1 and "(sd.ckpt)" in said and "--embedding_path" in said and str(tmp_path / "embeddings.pt") in said and not (tmp_path / "out").exists()


def test_a_model_with_berts_text_encoder_reads_the_vocabulary_that_is_named(command, tmp_path):
    bert = {"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": {"n_embed": 32, "n_layer": 1, "vocab_size": len(BERT_WORDS), "max_seq_len": 20}}
    vocabulary = bert_vocabulary(tmp_path)
    whole = {**bert, "params": {**bert["params"], "vocabulary": str(vocabulary)}}
    model = small_characters.random_model(cond_stage_config=whole, personalization_config=None)
    save_weights(tmp_path / "model.safetensors", model.state_dict())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_characters.config(cond_stage_config=bert)))
    star = BERT_WORDS.index("*")
    write_embeddings(tmp_path / "words.pt", {"*": torch.tensor(star)}, {"*": torch.randn(2, 32)})
    words = ["--config", tmp_path / "config.yaml", "--ckpt_path", tmp_path / "model.safetensors", "--embedding_path", tmp_path / "words.pt", "--device", "cpu"]
    words += ["--prompt", "a photo of *", "--n_samples", 1, "--ddim_steps", 2, "--outdir", tmp_path / "out"]
    code, said = command("scripts/txt2img.py", *words)
    assert code == 1 and "no vocabulary given" in said and not (tmp_path / "out").exists()
    code, said = command("scripts/txt2img.py", *words, "--vocabulary", vocabulary)
    assert code == 0 and "none of the learnt words" not in said and names(tmp_path / "out" / "samples") == ["0000.png"]


@pytest.mark.parametrize(("kind", "found"), [("unconditional", "it has no condition"), ("classes", "ClassEmbedder"), ("inpainting", "VQModelInterface")])
def test_a_model_without_texts_is_refused(command, tmp_path, kind, found):
    write_model(tmp_path / kind, kind)
    words = ["--config", tmp_path / kind / "config.yaml", "--ckpt", tmp_path / kind / "model.ckpt", "--outdir", tmp_path / "out", *FEW]
    code, said = command(SCRIPT, *words, "--prompt", "a")
    assert code == 1 and "this model draws no prompts" in said and found in said and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said_before_the_model_is_loaded(drawn, monkeypatch, tmp_path):
    monkeypatch.setattr(text_to_image, "open_model", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    code, said = drawn(outdir="file/below")
    assert code == 1 and "is a file; name a folder" in said
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        code, said = drawn(outdir="closed/below")
        assert code == 1 and "cannot be written" in said


def test_ctrl_c_keeps_what_was_drawn(drawn, monkeypatch, tmp_path):
    batches = []

    def interrupted(*given, **options):
        if batches:
            raise KeyboardInterrupt
        batches.append(1)
        return draw_latents(*given, **options)

    monkeypatch.setattr(text_to_image, "draw_latents", interrupted)
    code, said = drawn("--prompt", "a", "--n_samples", 2, "--n_iter", 3)
    assert code == 130 and "stopped: 2 of 6 pictures were written and stay in" in said and "Traceback" not in said
    assert names(tmp_path / "out") == ["samples"] and names(tmp_path / "out" / "samples") == ["00000.png", "00001.png"]


def test_values_that_are_no_numbers_are_not_written_as_pictures(drawn, monkeypatch, tmp_path):
    monkeypatch.setattr(text_to_image, "draw_latents", lambda model, noise, *_, **__: torch.full_like(noise.start, float("nan")))
    code, said = drawn("--prompt", "a", "--n_samples", 1)
    assert code == 1 and "no numbers" in said and names(tmp_path / "out") == []


def test_averaged_weights_are_drawn_with(small):
    model = small_characters.random_model(use_ema=True)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.zero_()  # the averages still hold what the network was
    request = text_to_image.Request(
        config=None, checkpoint="", embeddings=None, pictures=[text_to_image.Picture("a", 0)], settings=Settings(steps=2), batch_size=1
    )
    ((_, averaged),) = list(text_to_image.drawn_pictures(model, request, (4, 8, 8)))
    ((_, expected),) = list(text_to_image.drawn_pictures(small_characters.random_model(use_ema=True), request, (4, 8, 8)))
    torch.testing.assert_close(averaged, expected, atol=1e-5, rtol=0)
    assert not any(parameter.any() for parameter in model.model.parameters()), "and put back afterwards"


def test_the_characters_model_draws_what_the_prompt_says(command, tmp_path):
    """The shipped model, read by the shipped classifiers."""
    from ldm.evaluation.attributes import load_classifier

    words = ["--config", REPOSITORY / "configs/characters/finetune_unfrozen.yaml", "--ckpt", REPOSITORY / "assets/characters/model.safetensors"]
    code, said = command(SCRIPT, *words, "--prompt", "a red character in a forest", "--n_samples", 3, "--n_iter", 1, "--ddim_steps", 20, "--scale", 3,
                         "--outdir", tmp_path, "--device", "cpu", "--seed", 1)  # fmt: skip
    assert code == 0, said
    pictures = torch.stack([torch.from_numpy(picture(path)) for path in sorted((tmp_path / "samples").iterdir())]).permute(0, 3, 1, 2) / 127.5 - 1.0
    read = load_classifier(REPOSITORY / "assets/characters/classifiers.safetensors").read(pictures)
    assert [(found["kind"], found["colour"], found["background"]) for found in read] == [("character", "red", "forest")] * 3
