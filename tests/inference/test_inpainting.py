"""Masked pictures: what is not masked stays, what is masked comes from the model under the masked picture's encoding."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ldm.inference import inpainting
from ldm.inference.inpainting import Masked, condition_of, pairs_in, read_pair
from ldm.models.diffusion.ddim import DDIMSampler
from tests.golden.case import REPOSITORY
from tests.inference.small_models import write_model

SCRIPT = "scripts/inpaint.py"


@pytest.fixture(scope="module")
def filler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "inpainting"
    return folder, write_model(folder, "inpainting")


def write_pair(folder, name, width, height):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(width)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((8, 8, 19, 15), fill=255)
    mask.save(folder / f"{name}_mask.png")


@pytest.fixture
def holes(tmp_path):
    for name, width, height in (("one", 32, 32), ("two", 48, 32)):
        write_pair(tmp_path / "in", name, width, height)
    return tmp_path / "in"


@pytest.fixture
def fill(command, filler, holes, tmp_path):
    folder, _ = filler
    words = ["--indir", holes, "--outdir", tmp_path / "out", "--steps", 3, "--device", "cpu"]
    return lambda *more: command(SCRIPT, *words, "--config", folder / "config.yaml", "--ckpt", folder / "model.ckpt", *more)


def test_what_is_not_masked_stays_and_the_rest_is_drawn(fill, holes, tmp_path):
    code, said = fill()
    assert code == 0, said
    for name in ("one", "two"):
        before, after, mask = (np.asarray(Image.open(path)) for path in (holes / f"{name}.png", tmp_path / "out" / f"{name}.png", holes / f"{name}_mask.png"))
        assert np.array_equal(after[mask == 0], before[mask == 0]) and (after[mask > 0] != before[mask > 0]).mean() > 0.9


def test_what_is_drawn_is_the_samplers_answer_under_the_joined_condition(fill, filler, holes, tmp_path):
    _, model = filler
    assert fill()[0] == 0
    picture, mask = (torch.from_numpy(np.array(Image.open(holes / name))).float() / 255 for name in ("one.png", "one_mask.png"))
    picture, mask = picture.permute(2, 0, 1)[None], mask[None, None]
    with torch.no_grad():
        encoded = model.first_stage_model.encode((1 - mask) * picture * 2 - 1)
        c = torch.cat([encoded, F.interpolate(mask * 2 - 1, size=(8, 8))], dim=1)
        x_T = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(42))[None]
        latents, _ = DDIMSampler(model).sample(3, 1, (3, 8, 8), c, x_T=x_T, eta=0.0, verbose=False)
        drawn = ((model.decode_first_stage(latents) + 1) / 2).clamp(0, 1)
    expected = ((1 - mask) * picture + mask * drawn)[0].permute(1, 2, 0).numpy() * 255
    assert abs(expected - np.asarray(Image.open(tmp_path / "out" / "one.png"))).max() <= 1


def test_the_content_under_the_mask_does_not_reach_the_model(filler):
    _, model = filler
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1.0
    some, other = torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 32, 32) * 2 - 1
    other = torch.where(mask == 1, other, some)
    torch.testing.assert_close(condition_of(model, Masked(some, mask)), condition_of(model, Masked(other, mask)), rtol=0, atol=0)


def test_a_second_run_and_a_run_into_the_same_folder_overwrite_nothing(fill, holes, tmp_path):
    assert fill()[0] == 0
    first = (tmp_path / "out" / "one.png").read_bytes()
    assert fill()[0] == 0
    assert (tmp_path / "out" / "one.png").read_bytes() == first and (tmp_path / "out" / "one-0001.png").is_file()
    before = (holes / "one.png").read_bytes()
    assert fill("--outdir", holes)[0] == 0
    assert (holes / "one.png").read_bytes() == before and (holes / "one-0001.png").is_file()


def test_a_mask_is_white_from_its_middle_grey_on(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    mask = Image.new("L", (16, 16), 127)
    mask.putpixel((3, 2), 128)
    mask.save(tmp_path / "a_mask.png")
    (pair,) = pairs_in(tmp_path)
    assert read_pair(pair).mask.nonzero().tolist() == [[0, 0, 2, 3]]


def test_sizes_that_the_model_cannot_take_are_all_named(fill, holes, tmp_path):
    write_pair(holes, "odd", 36, 30)
    code, said = fill()
    assert code == 1 and "odd.png is 36×30 pixels" in said and "36 → such as 32 or 40" in said and "30 → such as 24 or 32" in said
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_size_or_without_a_picture_is_refused(fill, holes, tmp_path):
    Image.new("L", (16, 16)).save(holes / "one_mask.png")
    code, said = fill()
    assert code == 1 and "one_mask.png: is 16×16 pixels, and one.png is 32×32" in said
    (holes / "two.png").unlink()
    code, said = fill()
    assert code == 1 and "holds two_mask.png without the picture of that name" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said_of_it"),
    [
        (["--steps", 0], "at least 1"),
        (["--steps", 21], "trained with 20"),
        (["--indir", "nowhere"], "no folder nowhere"),
        (["--indir", "configs"], "holds no NAME_mask.png"),
        (["--outdir", "README.md"], "is a file"),
        (["--ckpt", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--indir"], "must name a folder each"),
    ],
)
def test_bad_words_get_one_line_and_leave_nothing(fill, monkeypatch, tmp_path, words, said_of_it):
    monkeypatch.chdir(REPOSITORY)
    code, said = fill(*words)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1 and said_of_it in line and not (tmp_path / "out").exists()


def test_a_model_that_fills_no_masks_is_refused(command, holes, tmp_path):
    write_model(tmp_path / "other", "unconditional")
    words = ["--config", tmp_path / "other/config.yaml", "--ckpt", tmp_path / "other/model.ckpt"]
    code, said = command(SCRIPT, "--indir", holes, "--outdir", tmp_path / "out", *words)
    assert code == 1 and "this model does not fill masks" in said and "expected concat, 7 channels" in said and not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_was_filled(fill, monkeypatch, tmp_path):
    filled = []

    def interrupted(model, masked, *_):
        if filled:
            raise KeyboardInterrupt
        filled.append(1)
        return masked.picture[0]

    monkeypatch.setattr(inpainting, "fill", interrupted)
    code, said = fill()
    assert code == 130 and "stopped: 1 of 2 pictures were written" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one.png"]
