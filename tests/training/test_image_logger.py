"""Previews: when, of what, and under which names."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.training.image_logger import ImageLogger
from tests.training import toy


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"batch_frequency": 10}, [1, 2, 4, 8, 10, 20, 30]),
        ({"batch_frequency": 10, "increase_log_steps": False}, [10, 20, 30]),
        ({"batch_frequency": 10, "increase_log_steps": False, "log_first_step": True}, [0, 10, 20, 30]),
        ({"batch_frequency": 1, "increase_log_steps": False}, list(range(1, 31))),
        ({"batch_frequency": 8}, [1, 2, 4, 8, 16, 24]),
    ],
)
def test_steps_at_which_previews_are_due(given, steps):
    logger = ImageLogger(max_images=4, **given)
    assert [step for step in range(31) if logger.check_frequency(step)] == steps


def test_files_stand_in_split_folders_under_the_originals_names(tmp_path):
    logger = ImageLogger(10, 4)
    logger.log_local(tmp_path, "train", {"inputs": torch.zeros(6, 3, 8, 8), "samples": torch.ones(2, 3, 8, 8)}, 1500, 3, 27)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert names == ["images/train/inputs_gs-001500_e-000003_b-000027.jpg", "images/train/samples_gs-001500_e-000003_b-000027.jpg"]


def test_four_pictures_a_row_and_minus_one_is_black(tmp_path):
    logger = ImageLogger(10, 8)
    pictures = torch.stack([torch.full((3, 8, 8), value) for value in (-1.0, 0.0, 1.0, -1.0, 1.0)])
    logger.log_local(tmp_path, "val", {"x": pictures}, 0, 0, 0)
    grid = np.asarray(Image.open(next(tmp_path.rglob("*.jpg"))).convert("L")).astype(int)
    assert grid.shape == (22, 42)                              # two rows of four, two pixels between
    assert abs(grid[6, 6] - 0) < 6 and abs(grid[6, 16] - 128) < 6 and abs(grid[6, 26] - 255) < 6 and abs(grid[16, 6] - 255) < 6


class Model(torch.nn.Module):
    """Draws previews; remembers how it was asked."""

    def __init__(self, folder: Path):
        super().__init__()
        self.layer = torch.nn.Dropout(0.5)
        self.trainer, self.loggers = SimpleNamespace(default_root_dir=str(folder)), []
        self.global_step, self.current_epoch, self.asked = 10, 0, []

    def log_images(self, batch, split, **given):
        self.asked.append((split, given, self.training, torch.is_grad_enabled()))
        torch.rand(5)
        return {"many": torch.full((6, 3, 4, 4), 3.0), "text": "no tensor"}


def test_model_draws_in_eval_mode_without_gradients_and_without_a_trace(tmp_path):
    model = Model(tmp_path).train()
    logger = ImageLogger(10, 4, log_images_kwargs={"ddim_steps": 3})
    written: dict = {}
    logger.log_local = lambda folder, split, images, *place: written.update(images)
    before = torch.get_rng_state()
    logger.log_img(model, {}, 0, split="train")
    assert model.asked == [("train", {"ddim_steps": 3}, False, False)] and model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert list(written) == ["many"] and written["many"].shape[0] == 4 and written["many"].max() == 1.0


def test_one_preview_a_step_however_many_batches_share_it(tmp_path):
    model = Model(tmp_path)
    logger = ImageLogger(10, 1)
    for batch in range(3):
        logger.on_train_batch_end(SimpleNamespace(), model, None, {}, batch)
    for batch in range(2):
        logger.on_validation_batch_end(SimpleNamespace(sanity_checking=False), model, None, {}, batch)
    assert [split for split, *_ in model.asked] == ["train", "val"]


def test_disabled_logger_asks_nothing(tmp_path):
    model = Model(tmp_path)
    ImageLogger(10, 1, disabled=True).on_train_batch_end(SimpleNamespace(), model, None, {}, 0)
    ImageLogger(10, 0).on_train_batch_end(SimpleNamespace(), model, None, {}, 0)
    ImageLogger(10, 1).on_validation_batch_end(SimpleNamespace(sanity_checking=True), model, None, {}, 0)
    assert not model.asked


def test_run_writes_previews_of_both_splits(train):
    plain = toy.config(lightning__callbacks={"image_logger": {"params": {"batch_frequency": 7, "max_images": 2, "increase_log_steps": False}}})
    ran = train(plain, "--max_steps", "7")
    written = sorted(str(path.relative_to(ran.folder / "images")) for path in (ran.folder / "images").rglob("*.jpg"))
    assert written == ["train/inputs_gs-000007_e-000000_b-000006.jpg", "val/inputs_gs-000007_e-000000_b-000000.jpg"]
