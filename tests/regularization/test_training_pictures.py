"""The training pictures as latents, taken from the run's own training set before the first step."""
from __future__ import annotations

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.models.diffusion.tiny import WORDS, with_params
from tests.regularization.tiny_runs import Pictures, fit, ready, regularized_model

PICTURES = ("TrainingPictures", {"samples": 4, "t_min": 0})


def mixed_in(banks):
    """Three prior samples and four training pictures."""
    prior = {"target": "ldm.regularization.latents.PriorSamples", "params": {"samples": 3, "ddim_steps": 2, "cache_dir": str(banks)}}
    return "MixedLatents", {"parts": [prior, {"target": "ldm.regularization.latents.TrainingPictures", "params": {"samples": 4, "t_min": 2}}]}


class Mirrored(Pictures):
    """Each picture mirrored or not and captioned by chance, with all three generators."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        caption = random.choice(["a photo of a *", "a picture of a *"])
        flips = [axis for axis, flip in ((0, np.random.rand() < 0.5), (1, torch.rand(1).item() < 0.5)) if flip]
        return {"image": item["image"].flip(flips), "caption": caption}


class Data(pl.LightningDataModule):
    """Keeps its data sets as the project's own does."""

    def setup(self, stage=None):
        self.datasets = {"train": Mirrored(3)}

    def train_dataloader(self):
        return DataLoader(self.datasets["train"], batch_size=2)


def model_on_pictures(base, banks, **term):
    model = regularized_model(base, banks, **{"latents": PICTURES, **term})
    model.training_items = lambda: Mirrored(3)
    return model


def test_the_pictures_are_the_training_sets_as_its_first_stage_encodes_them(base, tmp_path):
    model = model_on_pictures(base, tmp_path)
    model.get_first_stage_encoding = lambda posterior: model.scale_factor * posterior.mode()  # without its own noise
    z_0 = model.encode_training_pictures(9, seed=5)
    assert z_0.shape == (9, model.channels, model.image_size, model.image_size)
    pictures = Pictures(3).pictures.permute(0, 3, 1, 2)
    possible = [model.get_first_stage_encoding(model.encode_first_stage(pictures.flip(axes))) for axes in ([], [2], [3], [2, 3])]
    chosen = []
    for number, z in enumerate(z_0):
        equal = [turn for turn, mirrored in enumerate(possible) if torch.allclose(z, mirrored[number % 3], atol=1e-5)]
        assert len(equal) == 1, "one of its four mirrorings, and of no other picture"
        chosen += equal
    assert len(set(chosen)) > 1


def test_they_leave_the_words_own_training_alone(base, tmp_path):
    several = {"personalization_config": with_params(WORDS, num_vectors_per_token=3, progressive_words=True), "cond_stage_trainable": False}
    model = regularized_model(base, tmp_path, {**several, "train_embeddings": True}, latents=PICTURES)
    model.training_items = lambda: Mirrored(3)
    before = model.embedding_manager.progressive_counter
    model.encode_training_pictures(4, seed=5)
    assert model.embedding_manager.progressive_counter == before


def test_they_depend_on_the_seed_alone_and_leave_the_runs_chance_as_it_was(base, tmp_path):
    model = model_on_pictures(base, tmp_path)
    drawn = []
    for run_seed in (1, 2):
        pl.seed_everything(run_seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        drawn.append(model.encode_training_pictures(4, seed=5))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert torch.equal(*drawn) and not torch.equal(drawn[0], model.encode_training_pictures(4, seed=6))


@pytest.mark.parametrize("kind", ["pictures", "mixed"])
@pytest.mark.parametrize("teacher", ["FrozenCopy", "CachedTeacher"])
def test_at_step_zero_nothing_differs_and_after_a_step_something_does(base, tmp_path, kind, teacher):
    latents = PICTURES if kind == "pictures" else mixed_in(tmp_path)
    model = ready(model_on_pictures(base, tmp_path, latents=latents, teacher=teacher, batch_size=4))
    assert model.regularizer.floor <= 1e-10
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.01)
    batch = next(iter(DataLoader(Mirrored(2), batch_size=2)))
    assert model.shared_step(batch)[1]["train/loss_locality"] > 1e-8


@pytest.mark.parametrize("teacher", ["FrozenCopy", "CachedTeacher"])
def test_a_resumed_run_is_the_straight_one(base, tmp_path, teacher):
    def run(folder: str, steps: int, resume: str | None = None) -> dict[int, float]:
        model = regularized_model(base, tmp_path / "banks", latents=mixed_in(tmp_path / "banks"), teacher=teacher, batch_size=3)
        log = fit(model, tmp_path / folder, steps=steps, datamodule=Data(), resume=resume, save=True)
        return log.by_step("train/loss_locality")

    straight = run("straight", 6)
    run("first", 4)
    resumed = run("resumed", 6, str(tmp_path / "first" / "last.ckpt"))
    assert list(straight) == [0, 1, 2, 3, 4, 5] and straight[5] > 1e-6
    assert list(resumed) == [4, 5] and resumed[4] == straight[4], "the same bank, and the same place in it"


class Stream(IterableDataset):
    def __iter__(self):
        yield from Pictures(2)


@pytest.mark.parametrize(("datasets", "found"), [(None, "none"), ({}, "none"), ({"train": Stream()}, "Stream"), ({"train": Pictures(0)}, "Pictures without")])
def test_a_run_without_numbered_pictures_is_told_what_is_missing(base, tmp_path, datasets, found):
    model = regularized_model(base, tmp_path / "banks", latents=PICTURES)
    data = Data()
    data.setup = lambda stage=None: setattr(data, "datasets", datasets)
    with pytest.raises(ValueError, match=f"TrainingPictures needs the run's training set.*found {found}.*DataModuleFromConfig"):
        fit(model, tmp_path, steps=1, datamodule=data)


def test_so_is_one_without_a_data_module(base, tmp_path):
    with pytest.raises(ValueError, match="TrainingPictures needs the run's training set.*found none"):
        fit(regularized_model(base, tmp_path / "banks", latents=PICTURES), tmp_path, steps=1)


def test_more_items_than_samples_are_warned_of(base, tmp_path, caplog):
    model_on_pictures(base, tmp_path).encode_training_pictures(2, seed=5)
    assert "2 samples of 3 items" in caplog.text


def test_the_data_of_a_run_are_the_same_with_and_without_the_pictures_in_the_bank(base, tmp_path):
    """Rate 0: nothing moves, so equal data, noise and timesteps give equal losses of the original kind."""
    losses = []
    for latents in (PICTURES, ("NoiseLatents", {})):
        model = regularized_model(base, tmp_path / "banks", {"model_lr": 0.0}, latents=latents)
        model.learning_rate = 0.0
        losses.append(fit(model, tmp_path / latents[0], steps=4, datamodule=Data()).by_step("train/loss_original"))
    assert losses[0] == losses[1] and len(set(losses[0].values())) == 4
