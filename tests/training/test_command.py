"""The training command as its users meet it: what public reports of this codebase and its neighbours complained of, each as a test."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clip.simple_tokenizer import SimpleTokenizer
from omegaconf import OmegaConf

import ldm.checkpoints.loading
from ldm.checkpoints import read_state_dict
from ldm.checkpoints.embeddings import read_embeddings, write_embeddings
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training import run as run_module
from tests.training import tiny, toy


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.base_checkpoint(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return tiny.photos(tmp_path_factory.mktemp("data") / "P5")


@pytest.fixture
def not_built(monkeypatch):
    """Building a model is an error: the fault has to be found before."""

    def refuse(*_: object, **__: object):
        raise AssertionError("the model was built")

    monkeypatch.setattr(run_module, "instantiate_from_config", refuse)


def refused(ran, *words: str) -> None:
    """One message, exit code not 0, no traceback, nothing left behind."""
    assert ran.code == 1, ran.out
    assert "Traceback" not in ran.out and ran.folder is None
    for word in words:
        assert word in ran.out, ran.out


# -- RUN -------------------------------------------------------------------------------------------------------------------------------


def test_run_that_reaches_its_last_step_says_finished_names_its_results_and_exits_0(train):
    """A19."""
    ran = train(toy.config())
    assert ran.code == 0 and ran.last["global_step"] == 20
    assert "finished after 20 steps" in ran.out and "checkpoints/last.ckpt" in ran.out and str(ran.folder) in ran.out
    assert "no test: the config has no data.params.test" in ran.out and "Traceback" not in ran.out


def test_data_to_test_with_but_no_test_step_is_no_failure(train):
    ran = train(toy.config(data__params__test={"target": f"{toy.MODULE}.ToyData"}), "--max_steps", "1")
    assert ran.code == 0 and "no test: Toy has no test_step" in ran.out


def test_a_run_without_a_limit_is_refused_and_told_how_to_name_one(train):
    ran = train(toy.config(lightning__trainer={"max_steps": None}))
    assert ran.code == 1 and "give --max_steps N (or lightning.trainer.max_steps in the config)" in ran.out and ran.folder is None


def test_failure_at_the_start_names_only_its_cause_with_the_nearest_name(train, not_built):
    """A20: an extra model key, a misspelt target and a bad override, each alone and all at once."""
    extra = toy.config(model__params__widht=3)
    refused(train(extra), "model.params.widht: unknown; did you mean width?")
    target = toy.config(model__target="ldm.models.autoencoder.AutoencoderKI")
    refused(train(target), "did you mean ldm.models.autoencoder.AutoencoderKL?")
    refused(train(toy.config(), "lightning.trainer.max_stepz=3"), "lightning.trainer.max_stepz: unknown; did you mean max_steps?")
    refused(train(toy.config(), "--max_step", "3"), "--max_steps")
    both = toy.config(model__params__widht=3, data__target="main.DataModuleFromConfi")
    refused(train(both, "lightnin.trainer.max_steps=3"), "3 faults", "widht", "main.DataModuleFromConfig", "lightnin: unknown; did you mean lightning?")


@pytest.mark.parametrize(
    ("image_size", "size", "words"),
    [
        (16, 16, ("model.params.image_size is 16", "size in pixels", "set model.params.image_size: 8")),
        (8, 32, ("model.params.image_size is 8", "data.params.train.params.size 32", "is 16")),
        (8, 17, ("data.params.train.params.size is 17", "cannot divide by 2", "16 or 18")),
    ],
)
def test_pixel_size_put_where_the_latent_size_belongs_is_found_before_training(train, not_built, pictures, image_size, size, words):
    """A21."""
    plain = tiny.config(pictures)
    plain["model"]["params"]["image_size"] = image_size
    for name in ("train", "validation"):
        plain["data"]["params"][name]["params"]["size"] = size
    refused(train(plain), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine without a GPU")
@pytest.mark.parametrize("gpus", ["0,", "1", "0,1", "-1"])
def test_gpus_that_are_not_there_are_refused(train, not_built, gpus):
    """A22."""
    refused(train(toy.config(), f"--gpus={gpus}"), f"--gpus {gpus} asks for", "no GPU")


def test_gpus_0_without_a_comma_means_the_cpu_and_the_first_lines_say_so(train):
    """A22."""
    ran = train(toy.config(), "--gpus", "0", "--max_steps", "1")
    assert ran.code == 0
    assert f"device         CPU, {torch.get_num_threads()} thread" in ran.out


def test_section_that_a_flag_writes_into_may_be_absent_where_it_is_optional(train, base, pictures):
    """A23: no data.params.validation."""
    plain = tiny.config()
    del plain["data"]["params"]["validation"]
    words = ("--actual_resume", str(base), "--data_root", str(pictures), "--init_word", "toy", "--placeholder_string", "@", "--max_steps", "1")
    assert train(plain, *words).code == 0


@pytest.mark.parametrize("flag", ["--init_word", "--placeholder_string"])
def test_section_that_a_flag_needs_is_named_with_the_file_that_lacks_it(train, not_built, pictures, flag):
    """A23: no personalization_config."""
    plain = tiny.config(pictures)
    del plain["model"]["params"]["personalization_config"]
    refused(train(plain, flag, "x"), flag, "model.params.personalization_config", ".yaml")


def test_learning_rate_is_shown_with_its_formula(train):
    """A25."""
    plain = toy.config(data__params__batch_size=4)
    words = ("--accumulate_grad_batches", "2", "--max_steps", "1")
    scaled = train(plain, *words)
    assert "0.08 = 2 accumulated × 1 device × 4 batch size × 0.01 base_learning_rate" in scaled.out
    assert scaled.last["optimizer_states"][0]["param_groups"][0]["initial_lr"] == pytest.approx(0.08)
    plain_rate = train(plain, *words, "--scale_lr", "false")
    assert "0.01: the base rate (--scale_lr false)" in plain_rate.out
    assert plain_rate.last["optimizer_states"][0]["param_groups"][0]["initial_lr"] == pytest.approx(0.01)


# -- DATA, TOK: what the command has to do about them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["empty", "only folders", "missing", "a file"])
def test_wrong_picture_folder_is_named_before_the_model_is_loaded(train, not_built, tmp_path, wrong):
    """A04."""
    path = tmp_path / wrong
    if wrong == "only folders":
        tiny.photos(path / "sub")
    elif wrong == "empty":
        path.mkdir()
    elif wrong == "a file":
        path.write_text("x")
    refused(train(tiny.config(), "--data_root", str(path)), "data_root", str(path))


def test_files_that_are_no_pictures_change_nothing_but_a_warning(train, base, pictures, tmp_path):
    """A01."""
    mixed = tiny.photos(tmp_path / "P5")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (mixed / name).write_bytes(b"\x00\x01")
    clean, littered = (train(tiny.config(folder), "--actual_resume", str(base), "--max_steps", "2") for folder in (pictures, mixed))
    assert littered.code == 0 and f"of 5 pictures in {mixed}" in littered.out and "notes.txt" in littered.out
    ours, theirs = littered.last["state_dict"], clean.last["state_dict"]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_placeholder_flag_reaches_captions_embeddings_and_the_saved_config(train, base, pictures, monkeypatch):
    """A06, A08: the bare symbol in every caption, also where a yaml names it in a list."""
    seen: list[str] = []
    get_input = LatentDiffusion.get_input
    monkeypatch.setattr(LatentDiffusion, "get_input", lambda self, batch, *a, **k: seen.extend(batch["caption"]) or get_input(self, batch, *a, **k))
    ran = train(tiny.config(pictures), "--actual_resume", str(base), "--placeholder_string", "@")
    by_yaml = tiny.config(pictures)
    by_yaml["model"]["params"]["personalization_config"]["params"]["placeholder_strings"] = ["@"]
    assert ran.code == 0 and train(by_yaml, "--actual_resume", str(base), "--max_steps", "1").code == 0
    assert seen and all("@" in caption and not set("[]'*") & set(caption) for caption in seen)
    tokens, vectors = read_embeddings(ran.folder / "checkpoints" / "embeddings.pt")
    assert list(tokens) == list(vectors) == ["@"] and int(tokens["@"]) == 287
    saved = OmegaConf.load(next((ran.folder / "configs").glob("*-project.yaml")))
    assert saved.data.params.train.params.placeholder_token == "@"


@pytest.mark.parametrize("count", [2048, 77, 0, -1])
def test_more_vectors_than_the_encoder_has_places_are_refused_before_the_run(train, not_built, pictures, count):
    """A07."""
    ran = train(tiny.config(pictures), f"model.params.personalization_config.params.num_vectors_per_token={count}")
    refused(ran, f"num_vectors_per_token is {count}")


def test_init_word_of_several_tokens_is_refused_with_its_pieces(train, not_built, pictures):
    """A05."""
    refused(train(tiny.config(pictures), "--init_word", "opossum"), "'opossum' is 2 tokens of the text encoder ('o', 'possum')", "init_word_mean=true")


def test_init_word_of_several_tokens_starts_from_their_mean_where_that_is_asked_for(train, pictures):
    personalization = "model.params.personalization_config.params"
    words = ["--init_word", "opossum", f"{personalization}.init_word_mean=true", "--max_steps", "1", "model.base_learning_rate=0", "model.params.model_lr=0"]
    ran = train(tiny.config(pictures), *words)
    assert ran.code == 0, ran.out
    assert OmegaConf.select(OmegaConf.load(next((ran.folder / "configs").glob("*-project.yaml"))), f"{personalization}.init_word_mean") is True
    embeddings = "cond_stage_model.transformer.text_model.embeddings"
    tokens, places = (ran.last["state_dict"][f"{embeddings}.{kind}_embedding.weight"] for kind in ("token", "position"))
    mean = tokens[SimpleTokenizer().encode("opossum")].mean(dim=0, keepdim=True)
    _, vectors = read_embeddings(ran.folder / "checkpoints" / "embeddings.pt")
    torch.testing.assert_close(vectors["*"], mean + places[0])  # a start vector has its place added, as in the original


def test_placeholder_of_several_tokens_is_refused(train, not_built, pictures):
    refused(train(tiny.config(pictures), "--placeholder_string", "opossum"), "'opossum' is 2 tokens", "exactly one token")


# -- weights ---------------------------------------------------------------------------------------------------------------------------


def test_base_checkpoint_is_loaded_once_and_shown_in_the_plan(train, base, pictures, monkeypatch):
    reads: list[str] = []
    monkeypatch.setattr(ldm.checkpoints.loading, "read_state_dict", lambda path, **k: reads.append(str(path)) or read_state_dict(path, **k))
    ran = train(tiny.config(pictures), "--actual_resume", str(base), "--max_steps", "1")
    assert ran.code == 0 and reads == [str(base)]
    assert f"weights        {base}" in ran.out


def test_embeddings_given_explicitly_win_over_the_checkpoints(train, base, pictures, tmp_path):
    first = train(tiny.config(pictures), "--actual_resume", str(base))
    last = first.folder / "checkpoints" / "last.ckpt"
    tokens, vectors = read_embeddings(first.folder / "checkpoints" / "embeddings.pt")
    other = {key: torch.full_like(value, 0.25) for key, value in vectors.items()}
    write_embeddings(tmp_path / "other.pt", tokens, other)
    words = ("--actual_resume", str(last), "--max_steps", "1", "model.base_learning_rate=1.0e-9")
    ran = train(tiny.config(pictures), *words, "--embedding_manager_ckpt", str(tmp_path / "other.pt"))
    assert ran.code == 0
    assert torch.allclose(read_embeddings(ran.folder / "checkpoints" / "embeddings.pt")[1]["*"], other["*"], atol=1e-3)
    ran = train(tiny.config(pictures), *words)
    assert torch.allclose(read_embeddings(ran.folder / "checkpoints" / "embeddings.pt")[1]["*"], vectors["*"], atol=1e-5)


@pytest.mark.parametrize("kind", ["yaml", "png", "folder", "pointer", "empty", "missing"])
def test_what_is_no_checkpoint_is_said_to_be_none(train, not_built, pictures, tmp_path, kind):
    """A13, at the command."""
    path = {"yaml": tmp_path / "c.yaml", "png": next(pictures.iterdir()), "folder": pictures, "missing": tmp_path / "m.ckpt"}.get(kind, tmp_path / "w.ckpt")
    if kind == "yaml":
        path.write_text("model: {}\n")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind == "empty":
        path.touch()
    refused(train(tiny.config(pictures), "--actual_resume", str(path)), "--actual_resume", str(path))


def test_base_that_holds_more_than_weights_needs_trust_pickle(train, pictures, base, tmp_path):
    torch.save({"state_dict": read_state_dict(base), "hyper_parameters": Path("x")}, tmp_path / "base.ckpt")
    words = ("--actual_resume", str(tmp_path / "base.ckpt"), "--max_steps", "1")
    refused(train(tiny.config(pictures), *words), "--trust_pickle", "base.ckpt")
    assert train(tiny.config(pictures), *words, "--trust_pickle").code == 0


def test_frozen_run_resumes_and_its_checkpoint_leaves_the_frozen_weights_out(train, base, pictures):
    plain = tiny.config(pictures)
    plain["model"]["params"]["unfreeze_model"] = False
    first = train(plain, "--actual_resume", str(base), "--max_steps", "2")
    straight = train(plain, "--actual_resume", str(base), "--max_steps", "4")
    assert not any(key.startswith("model.") for key in first.last["state_dict"])
    resumed = train(None, "-r", str(first.folder), "--max_steps", "4")
    assert resumed.code == 0, resumed.out
    ours, theirs = (read_embeddings(ran.folder / "checkpoints" / "embeddings.pt")[1]["*"] for ran in (first, straight))
    assert torch.equal(ours, theirs)


def test_regularised_run_resumes_to_the_last_bit(train, base, pictures):
    plain = tiny.config(pictures)
    plain["model"]["target"] = "ldm.models.diffusion.regularized.RegularizedLatentDiffusion"
    part = "ldm.regularization"
    plain["model"]["params"]["regularization_config"] = {
        "target": f"{part}.regularizer.LocalityRegularizer",
        "params": {
            "weight_config": {"target": f"{part}.weight.ConstantWeight", "params": {"weight": 10.0, "every": 2}},
            "conditioning_config": {"target": f"{part}.conditioning.ClassPrompts", "params": {}},
            "latents_config": {"target": f"{part}.latents.TrainingLatents"},
            "teacher_config": {"target": f"{part}.teacher.FrozenCopy"},
            "loss_config": {"target": f"{part}.losses.NoiseMSE"},
        },
    }
    first = train(plain, "--actual_resume", str(base), "--max_steps", "3")
    straight = train(plain, "--actual_resume", str(base), "--max_steps", "6")
    assert train(None, "-r", str(first.folder), "--max_steps", "6").code == 0
    resumed = torch.load(first.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(resumed["state_dict"][key], value) for key, value in straight.last["state_dict"].items())
    assert "train/loss_locality" in (first.folder / "metrics.jsonl").read_text()


# -- life of a run -----------------------------------------------------------------------------------------------------------------------


def test_dry_run_shows_the_plan_and_writes_nothing(train):
    ran = train(toy.config(), "--dry-run")
    assert ran.code == 0 and ran.folder is None
    for label in ("device", "trains", "learning rate", "regulariser", "data", "steps", "results"):
        assert f"{label} " in ran.out
    assert "net: 4 tensors, 41 values at 0.03" in ran.out and "nothing was trained" in ran.out


def test_error_while_training_keeps_the_last_step_and_says_one_thing(train):
    ran = train(toy.config(model__params__fail_at=7))
    assert ran.code == 1 and "the toy breaks here" in ran.out and "Traceback" not in ran.out
    assert ran.last["global_step"] == 7


def test_debug_shows_the_traceback_and_moves_the_folder(train, tmp_path):
    with pytest.raises(RuntimeError, match="the toy breaks here"):
        train(toy.config(model__params__fail_at=2), "--debug", "-n", "x")
    assert list(tmp_path.glob("logs*/debug_runs/*_x/checkpoints")) and not list(tmp_path.glob("logs*/*_x"))


def test_debugged_run_names_the_folder_in_which_it_ends(train, tmp_path):
    ran = train(toy.config(), "--debug", "-n", "x", "--max_steps", "1")
    (folder,) = tmp_path.glob("logs*/debug_runs/*_x")
    assert f"Results in {folder}:" in ran.out and "checkpoints/last.ckpt" in ran.out


def test_run_folder_that_cannot_be_made_is_refused(train, not_built, tmp_path):
    (tmp_path / "file").write_text("x")
    ran = train(toy.config(), "-l", str(tmp_path / "file" / "logs"))
    assert ran.code == 1 and "cannot be made" in ran.out and "--logdir" in ran.out


def test_metrics_have_one_json_line_a_step(train):
    ran = train(toy.config(), "--max_steps", "9")
    lines = [json.loads(line) for line in (ran.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))
    assert all({"train/loss", "lr-AdamW"} <= set(line) for line in lines) and "val/loss" in lines[6]


def test_resume_and_name_together_are_refused(train, tmp_path):
    ran = train(toy.config(), "-r", str(tmp_path), "-n", "new")
    assert ran.code == 1 and "-n names a new run" in ran.out


def test_a_run_without_an_end_is_refused(train, not_built):
    plain = toy.config()
    del plain["lightning"]["trainer"]["max_steps"]
    refused(train(plain), "--max_steps")


def test_full_disk_keeps_the_old_checkpoint_and_leaves_no_temporary_file(train, monkeypatch):
    first = train(toy.config(), "--max_steps", "5")
    before = (first.folder / "checkpoints" / "last.ckpt").read_bytes()
    save = torch.save

    def full(content, path, *a, **k):
        save({"half": 1}, path)
        raise RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    ran = train(None, "-r", str(first.folder), "--max_steps", "10")
    assert ran.code == 1 and "the disk is full" in ran.out and "Traceback" not in ran.out
    assert (first.folder / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not [path for path in (first.folder / "checkpoints").iterdir() if path.name.endswith(".tmp")]
