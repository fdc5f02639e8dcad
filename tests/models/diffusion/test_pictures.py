"""Rows for the image log, and pictures in overlapping tiles."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ldm.models.diffusion import previews, tiles
from ldm.models.diffusion.ddpm import LatentDiffusion, Layout2ImgDiffusion
from tests.models.diffusion.test_conditioning import BOXES, batch_for
from tests.models.diffusion.tiny import CODEBOOK, DEFAULTS, latent_diffusion, randomise


def test_rows_show_a_samples_stages_from_left_to_right():
    stages = [torch.full((2, 3, 4, 4), float(stage)) + torch.tensor([0.0, 0.5]).view(2, 1, 1, 1) for stage in range(3)]
    grid = previews.rows(stages)
    assert grid.shape == (3, 2 * 6 + 2, 3 * 6 + 2)
    middles = grid[0, [4, 10]][:, [4, 10, 16]]
    assert middles.tolist() == [[0.0, 1.0, 2.0], [0.5, 1.5, 2.5]]


def test_noising_stages_end_with_the_last_step():
    visited = []
    previews.noising_stages(torch.zeros(2, 1, 2, 2), 12, 5, lambda x, t: visited.append(t.tolist()))
    assert visited == [[0, 0], [5, 5], [10, 10], [11, 11]]


def test_maps_in_colour_are_pictures_and_the_same_in_every_run():
    maps = torch.randn(2, 7, 4, 4)
    shown = previews.in_colour(maps)
    assert shown.shape == (2, 3, 4, 4) and shown.min() == -1.0 and shown.max() == pytest.approx(1.0)
    torch.manual_seed(99)
    assert torch.equal(previews.in_colour(maps), shown)
    assert previews.in_colour(torch.zeros(1, 4, 2, 2)).isfinite().all()
    picture = torch.randn(1, 3, 2, 2)
    assert previews.as_picture(picture) is picture


def test_the_mask_covers_the_middle():
    mask = previews.centre_mask(torch.zeros(2, 4, 8, 8))
    assert mask.shape == (2, 1, 8, 8) and mask.sum() == 2 * (64 - 16)
    assert not mask[:, :, 2:6, 2:6].any() and mask[:, :, :2].all() and mask[:, :, :, 6:].all()


def test_selected_keys_and_all_where_none_is_there():
    log = {"inputs": torch.zeros(1), "samples": torch.ones(1)}
    assert set(previews.selected(log, ["samples", "other"])) == {"samples"}
    assert previews.selected(log, ["other"]) == log == previews.selected(log, None)


def test_guidance_changes_the_samples():
    model = randomise(latent_diffusion(timesteps=6)).eval()
    torch.manual_seed(1)
    log = model.log_images(batch_for("text"), N=2, ddim_steps=2, ddim_eta=0.0, unconditional_guidance_scale=1.0)
    torch.manual_seed(1)
    guided = model.log_images(batch_for("text"), N=2, ddim_steps=2, ddim_eta=0.0)
    torch.testing.assert_close(log["samples"], guided["samples"])
    assert not torch.allclose(log["samples_scaled"], guided["samples_scaled"])


def test_captions_of_the_whole_batch_are_shown():
    assert len(latent_diffusion(timesteps=6).log_images(batch_for("text"), N=2, ddim_steps=1)["conditioning"]) == 3


def test_codebook_latents_decode_by_number_and_by_score():
    model = randomise(latent_diffusion(first_stage_config=CODEBOOK)).eval()
    ids = torch.randint(0, 16, (2, 8, 8))
    scores = torch.nn.functional.one_hot(ids, 16).permute(0, 3, 1, 2).float()
    by_number, by_score = (model.decode_first_stage(z, predict_cids=True) for z in (ids, scores))
    torch.testing.assert_close(by_number, by_score)
    z = model.first_stage_model.quantize.embedding.weight[ids].permute(0, 3, 1, 2)
    torch.testing.assert_close(by_number, model.decode_first_stage(z, force_not_quantize=True))
    off_the_book = z + 0.05 * torch.randn_like(z)
    assert not torch.allclose(model.decode_first_stage(off_the_book, force_not_quantize=True), model.decode_first_stage(off_the_book))


# -- layouts ---------------------------------------------------------------------------------------------------------------------------


def test_a_layout_model_draws_its_boxes():
    params = {**DEFAULTS, "timesteps": 6, "cond_stage_config": BOXES}
    params.pop("cond_stage_key")
    model = randomise(Layout2ImgDiffusion("coordinates_bbox", **params)).eval()
    plotted = []
    builder = SimpleNamespace(plot=lambda box, label, size: plotted.append((box.tolist(), label(2), size)) or torch.zeros(3, *size))
    data = SimpleNamespace(
        conditional_builders={"coordinates_bbox": builder}, get_textual_label=lambda category: f"a {category}", get_category_id=lambda i: i + 10
    )
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(datasets={"validation": data}))
    batch = batch_for("boxes")
    logs = model.log_images(batch, 2, ddim_steps=1)
    assert logs["bbox_image"].shape == (2, 3, 256, 256)
    assert plotted == [(batch["coordinates_bbox"][i].tolist(), "a 12", (256, 256)) for i in range(2)]
    with pytest.raises(ValueError, match="'caption'.*coordinates_bbox"):
        Layout2ImgDiffusion("caption", **params)


# -- tiles -----------------------------------------------------------------------------------------------------------------------------


def test_places_and_distances():
    assert tiles.meshgrid(2, 3)[1, 2].tolist() == [1, 2]
    distance = tiles.distance_to_border(5, 5)
    assert distance[2, 2] == 0.5 and not distance[0].any() and not distance[:, -1].any() and distance[1, 2] == 0.25
    weight = LatentDiffusion.get_weighting(5, 5, 2, 3, "cpu")
    assert weight.shape == (1, 25, 6) and weight.min() == pytest.approx(0.01) and weight.max() == 0.5


@pytest.mark.parametrize("uf, df", [(1, 1), (2, 1), (1, 2)])
def test_tiles_worked_on_one_by_one_blend_to_the_picture(uf, df):
    """A smooth resizing of the tiles gives the resizing of the picture."""
    x = torch.randn(2, 3, 16, 16)

    def resize(picture):
        if uf > 1:
            return torch.nn.functional.interpolate(picture, scale_factor=uf)
        return torch.nn.functional.avg_pool2d(picture, df)

    fold, unfold, normalization, weighting = LatentDiffusion.get_fold_unfold(x, (8, 8), (4, 4), uf=uf, df=df)
    cut = unfold(x).view(2, 3, 8, 8, -1)
    assert cut.shape[-1] == 9 and weighting.shape == (1, 1, 8 * uf // df, 8 * uf // df, 9)
    done = torch.stack([resize(cut[..., i]) for i in range(9)], dim=-1)
    blended = fold((done * weighting).flatten(1, 3)) / normalization
    torch.testing.assert_close(blended, resize(x))


@pytest.mark.parametrize("kernel, stride, df", [((8, 8), (6, 6), 1), ((32, 32), (4, 4), 1), ((4, 4), (8, 8), 1), ((8, 8), (4, 4), 3)])
def test_tiles_that_do_not_fit_are_refused(kernel, stride, df):
    with pytest.raises(ValueError, match="do not cover|divisible"):
        tiles.tiling(torch.zeros(1, 1, 16, 16), kernel, stride, df=df)
