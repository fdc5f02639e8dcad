"""Models without a text: where their pictures go, which classes they show, and that batch size does not matter."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.inference import unconditional
from ldm.inference.drawing import PictureNoise, draw_latents_ancestrally
from tests.inference.small_models import write_model

SCRIPT = "scripts/sample_diffusion.py"
FEW = ["-c", 2, "--batch_size", 2, "--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind, step in (("unconditional", 1234), ("classes", 7), ("inpainting", 0)):
        write_model(folder / kind, kind, step=step)
    return folder


def the_run(folder):
    (step,) = (folder / "samples").iterdir()
    (run,) = step.iterdir()
    return step.name, run


def array_of(run) -> np.ndarray:
    (path,) = (run / "numpy").iterdir()
    array = np.load(path)["arr_0"]
    assert path.name == "x".join(map(str, array.shape)) + "-samples.npz"
    return array


def test_pictures_array_and_settings_lie_where_they_always_did(command, models, tmp_path):
    code, said = command(SCRIPT, "-r", models / "unconditional", "-n", 5, *FEW, "-l", tmp_path)
    assert code == 0, said
    step, run = the_run(tmp_path)
    assert step == "00001234"
    assert sorted(path.name for path in (run / "img").iterdir()) == [f"sample_{n:06}.png" for n in range(5)]
    array = array_of(run)
    assert array.shape == (5, 32, 32, 3) and array.dtype == np.uint8
    assert np.array_equal(array[3], np.asarray(Image.open(run / "img" / "sample_000003.png")))
    settings = yaml.safe_load((run / "sampling_config.yaml").read_text())
    assert settings["n_samples"] == 5 and settings["steps"] == 2 and settings["eta"] == 1.0 and settings["checkpoint"] == "model.ckpt"


@pytest.mark.parametrize("sampler", [["-e", 1], ["-e", 0], ["-v"]], ids=str)
def test_the_batch_size_does_not_change_a_picture(command, models, tmp_path, sampler):
    for size in (1, 3):
        code, said = command(SCRIPT, "-r", models / "unconditional", "-n", 3, *FEW, "--batch_size", size, *sampler, "-l", tmp_path / str(size))
        assert code == 0, said
    one, three = (array_of(the_run(tmp_path / str(size))[1]).astype(int) for size in (1, 3))
    assert abs(one - three).max() <= 1
    assert abs(one[0] - one[1]).max() > 1


def test_vanilla_sampling_is_the_models_own(models, monkeypatch):
    """The same as `p_sample_loop`, given the same noise."""
    from ldm.inference.models import open_model
    from ldm.training.compose import merge

    model = open_model(merge([models / "unconditional" / "config.yaml"], []), models / "unconditional" / "model.ckpt", device=torch.device("cpu"))
    ours = draw_latents_ancestrally(model, PictureNoise([3], (3, 8, 8)), conditioning=None)
    noise = PictureNoise([3], (3, 8, 8))
    normals = iter(noise)
    monkeypatch.setattr("ldm.models.diffusion.sampling.noise_like", lambda *_: next(normals))
    torch.testing.assert_close(model.p_sample_loop(None, (1, 3, 8, 8), x_T=noise.start, verbose=False), ours, rtol=1e-5, atol=1e-5)


def test_classes_are_drawn_in_turn(command, models, tmp_path):
    for words, expected in (([], ["0", "1", "2"]), (["--classes", 4, 1], ["4", "1", "4"])):
        code, said = command(SCRIPT, "-r", models / "classes" / "model.ckpt", "-n", 3, *FEW, *words, "-l", tmp_path / expected[0])
        assert code == 0, said
        _, run = the_run(tmp_path / expected[0])
        assert [Image.open(path).text["class"] for path in sorted((run / "img").iterdir())] == expected
    about = json.loads(Image.open(run / "img" / "sample_000000.png").text["settings"])
    assert about["steps"] == 2 and about["checkpoint"] == "model.ckpt"


def test_the_class_decides_about_the_picture(command, models, tmp_path):
    for label in (0, 3):
        assert command(SCRIPT, "-r", models / "classes", "-n", 1, *FEW, "--classes", label, "-l", tmp_path / str(label))[0] == 0
    zero, three = (array_of(the_run(tmp_path / str(label))[1]) for label in (0, 3))
    assert not np.array_equal(zero, three)


def test_without_a_logdir_pictures_lie_beside_the_model_and_two_runs_in_two_folders(command, tmp_path):
    write_model(tmp_path / "model", "unconditional")
    for _ in range(2):
        assert command(SCRIPT, "-r", tmp_path / "model", "-n", 1, *FEW)[0] == 0
    (step,) = (tmp_path / "model" / "samples").iterdir()
    assert len(list(step.iterdir())) == 2


def test_a_run_folder_of_the_training_command_is_found(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "configs").mkdir()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "run" / "configs" / "a-project.yaml").touch()
    by_folder = unconditional.find_source(tmp_path / "run")
    assert by_folder == unconditional.find_source(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert by_folder.configs == [tmp_path / "run" / "configs" / "a-project.yaml"] and by_folder.folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("model", "words", "said_of_it"),
    [
        ("classes", ["--classes", 5], "this model has the classes 0 to 4"),
        ("unconditional", ["--classes", 0], "it knows no classes"),
        ("inpainting", [], "masked pictures by scripts/inpaint.py"),
        ("unconditional", ["-c", 21], "trained with 20"),
        ("unconditional", ["-n", 0], "--n_samples is 0"),
        ("unconditional", ["-n"], "--n_samples needs a number"),
        ("unconditional", ["-e", 2], "eta is 2"),
        ("unconditional", ["--seed", -3], "--seed is -3"),
        ("", [], "holds no checkpoint"),
        ("nowhere", [], "cannot find"),
        ("unconditional", ["model.params.chanels=3"], "did you mean channels"),
    ],
)
def test_bad_words_get_one_line_and_leave_nothing(command, models, tmp_path, model, words, said_of_it):
    code, said = command(SCRIPT, "-r", models / model, "-n", 2, *FEW, "-l", tmp_path / "out", *words)
    assert code == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert said_of_it in line and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_was_drawn(command, models, tmp_path, monkeypatch):
    batches = []

    def interrupted(model, noise, settings, **options):
        if batches:
            raise KeyboardInterrupt
        batches.append(1)
        return noise.start

    monkeypatch.setattr(unconditional, "draw_latents", interrupted)
    code, said = command(SCRIPT, "-r", models / "unconditional", "-n", 5, *FEW, "-l", tmp_path)
    _, run = the_run(tmp_path)
    assert code == 130 and "stopped: 2 of 5 pictures were written and stay in" in said
    assert len(list((run / "img").iterdir())) == 2 and not (run / "numpy").exists()
