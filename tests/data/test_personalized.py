"""The personalised data sets: recorded pictures and captions, the order of chance, and what users' folders and words did to them."""
from __future__ import annotations

import hashlib
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.data import personalized, personalized_style
from ldm.data.base import Txt2ImgIterableBaseDataset
from ldm.util import instantiate_from_config
from tests.golden.case import load_case, oracle_file

MODULES = {"personalized": personalized, "personalized_style": personalized_style}
BOTH = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())


@pytest.fixture
def folder(tmp_path):
    """Five pictures, each of one colour."""
    for index, name in enumerate(("a.jpg", "b.JPG", "c.JPEG", "d.PNG", "e.webp")):
        Image.new("RGB", (40, 30), (50 * index, 200, 30)).save(tmp_path / name)
    return tmp_path


def reseed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seen(dataset, seed=7, items=60):
    reseed(seed)
    return [dataset[i % len(dataset)] for i in range(items)]


def captions(dataset, items=60):
    return [item["caption"] for item in seen(dataset, items=items)]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("flip_p, key", [(0.0, "image"), (1.0, "image_flipped")])
def test_pictures_equal_the_recorded_ones(tmp_path, index, flip_p, key):
    case = load_case("personalized_base")
    settings = case.notes["cases"][index]
    Image.fromarray(case[f"in/{index}/rgb_uint8"].numpy()).save(tmp_path / "0.png")
    dataset = personalized.PersonalizedBase(
        str(tmp_path), size=settings["size"], interpolation=settings["interpolation"], center_crop=settings["center_crop"], flip_p=flip_p
    )
    image = dataset[0]["image"]
    assert image.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(image), case[f"out/{index}/{key}"], atol=5e-5, rtol=0.0)


@pytest.mark.parametrize("name", ["imagenet_templates_small", "imagenet_dual_templates_small", "per_img_token_list"])
@BOTH
def test_templates_are_the_recorded_ones_under_their_known_names(module, name):
    record = json.loads(oracle_file("facts_caption_templates.json").read_text())[f"{module.__name__.rpartition('.')[2]}.{name}"]
    items = list(getattr(module, name))
    assert len(items) == record["n"]
    assert hashlib.sha256("\n".join(items).encode()).hexdigest() == record["sha256_of_newline_join"]
    assert items == record["items"]


def test_the_smallest_template_list_is_importable():
    assert list(personalized.imagenet_templates_smallest) == ["a photo of a {}"]


@pytest.mark.parametrize("exif", [True, False])
def test_an_upright_phone_photo_equals_its_rotated_twin(tmp_path, exif):
    noise = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    (tmp_path / "phone").mkdir()
    (tmp_path / "twin").mkdir()
    tag = Image.Exif()
    tag[0x0112] = 6 if exif else 1
    Image.fromarray(noise).save(tmp_path / "phone" / "a.jpg", quality=95, exif=tag)
    stored = np.asarray(Image.open(tmp_path / "phone" / "a.jpg"))
    Image.fromarray(np.rot90(stored, k=-1)).save(tmp_path / "twin" / "a.png")
    phone, twin = (personalized.PersonalizedBase(str(tmp_path / name), flip_p=0.0)[0]["image"] for name in ("phone", "twin"))
    assert (phone.shape == twin.shape and np.array_equal(phone, twin)) is exif
    assert phone.shape == ((20, 40, 3) if exif else (40, 20, 3))


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (personalized.PersonalizedBase(str(tmp_path), size=8)[0]["image"] == 1.0).all()


@BOTH
def test_stray_files_change_nothing_that_is_trained_on(folder, module):
    clean = seen(module.PersonalizedBase(str(folder), size=16))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (folder / name).write_bytes(b"\0\1\2")
    strewn = seen(module.PersonalizedBase(str(folder), size=16))
    assert [item["caption"] for item in clean] == [item["caption"] for item in strewn]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(clean, strewn, strict=True))


@BOTH
def test_every_picture_of_the_folder_is_visited_whatever_its_extension(folder, module):
    dataset = module.PersonalizedBase(str(folder), size=16, repeats=3)
    assert dataset.num_images == len(dataset.image_paths) == 5 and len(dataset) == 15
    reds = [round(float(dataset[i]["image"][0, 0, 0] + 1) * 127.5 / 50) for i in range(15)]
    assert Counter(reds) == {index: 3 for index in range(5)}


@pytest.mark.parametrize("name, length", [("train", 35), ("val", 5), ("validation", 5)])
@BOTH
def test_only_the_training_set_repeats(folder, module, name, length):
    assert len(module.PersonalizedBase(str(folder), size=16, repeats=7, set=name)) == length


def test_bad_folders_are_named_when_the_data_set_is_made(tmp_path):
    (tmp_path / "photo.png").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for root, said in (("missing", "there is no"), ("photo.png", "is a file"), ("empty", "it is empty"), ("runs", "found: a/")):
        with pytest.raises((ValueError, OSError), match=f"(?s){tmp_path / root}.*{said}|there is no {tmp_path / root}"):
            personalized.PersonalizedBase(str(tmp_path / root))


@BOTH
def test_the_placeholder_is_the_only_foreign_word_of_a_caption(folder, module):
    allowed = {template.format("@") for template in module.imagenet_templates_small}
    drawn = set(captions(module.PersonalizedBase(str(folder), size=16, placeholder_token="@")))
    assert drawn <= allowed and len(drawn) > 10


@pytest.mark.parametrize("token", [["@"], ("@",), OmegaConf.create(["@"])])
@BOTH
def test_a_placeholder_from_a_list_is_written_bare(folder, module, token):
    config = {"target": f"{module.__name__}.PersonalizedBase", "params": {"data_root": str(folder), "size": 16, "placeholder_token": token}}
    for caption in captions(instantiate_from_config(config)):
        assert "@" in caption.split() and not set("[]'\"") & set(caption)


@pytest.mark.parametrize("token", [[], ["a", "b"], "", "  ", [3]])
def test_no_placeholder_or_several_are_refused(folder, token):
    with pytest.raises(ValueError, match="placeholder_token is .*it must be one word"):
        personalized.PersonalizedBase(str(folder), placeholder_token=token)


def test_braces_in_a_placeholder_are_kept(folder):
    assert all("{0}" in caption for caption in captions(personalized.PersonalizedBase(str(folder), size=16, placeholder_token="{0}")))


def test_the_coarse_class_stands_before_the_placeholder(folder):
    drawn = captions(personalized.PersonalizedBase(str(folder), size=16, coarse_class_text="cat"))
    assert all(caption.endswith("cat *") for caption in drawn)


@BOTH
def test_own_letters_come_in_the_expected_share_and_belong_to_their_picture(folder, module):
    dataset = module.PersonalizedBase(str(folder), size=16, per_image_tokens=True)
    with_letter = 0
    for i, item in enumerate(seen(dataset, items=800)):
        letters = [letter for letter in module.per_img_token_list if letter in item["caption"]]
        assert letters in ([], [module.per_img_token_list[i % 5]])
        with_letter += bool(letters)
    assert abs(with_letter / 800 - 0.25) < 0.06


def test_more_pictures_than_letters_are_refused(tmp_path):
    for index in range(22):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index:02}.png")
    with pytest.raises(ValueError, match="22 pictures, but there are letters for 21"):
        personalized.PersonalizedBase(str(tmp_path), per_image_tokens=True)
    (tmp_path / "00.png").unlink()
    assert personalized.PersonalizedBase(str(tmp_path), per_image_tokens=True).num_images == 21


@pytest.mark.parametrize("per_image_tokens", [False, True])
@BOTH
def test_chance_enters_in_the_recorded_order(folder, module, per_image_tokens):
    """np.random.uniform (with own letters only), random.choice, torch.rand: a run with the original's seeds sees the same examples."""
    dataset = module.PersonalizedBase(str(folder), size=16, per_image_tokens=per_image_tokens)
    plain = module.PersonalizedBase(str(folder), size=16, flip_p=0.0)
    reseed(3)
    items = [dataset[i] for i in range(40)]
    reseed(3)
    for i, item in enumerate(items):
        if per_image_tokens and np.random.uniform() < 0.25:
            caption = random.choice(module.imagenet_dual_templates_small).format("*", module.per_img_token_list[i % 5])
        else:
            caption = random.choice(module.imagenet_templates_small).format("*")
        flipped = bool(torch.rand(1) < 0.5)
        state = random.getstate(), torch.get_rng_state()
        expected = plain[i]["image"][:, ::-1] if flipped else plain[i]["image"]
        random.setstate(state[0])
        torch.set_rng_state(state[1])
        assert item["caption"] == caption and np.array_equal(item["image"], expected)


def test_items_have_the_two_known_keys(folder):
    item = personalized.PersonalizedBase(str(folder), size=16)[0]
    assert list(item) == ["caption", "image"]
    assert item["image"].shape == (16, 16, 3) and -1.0 <= item["image"].min() <= item["image"].max() <= 1.0


def test_without_a_size_the_picture_keeps_its_own(folder):
    assert personalized.PersonalizedBase(str(folder))[0]["image"].shape == (30, 40, 3)
    assert personalized.PersonalizedBase(str(folder), center_crop=True)[0]["image"].shape == (30, 30, 3)


def test_proportions_are_given_up_unless_the_middle_is_cut_out(tmp_path):
    picture = Image.new("RGB", (48, 16), (0, 0, 0))
    picture.paste((255, 255, 255), (16, 0, 32, 16))
    picture.save(tmp_path / "a.png")
    stretched, cut = (personalized.PersonalizedBase(str(tmp_path), size=16, center_crop=crop)[0]["image"] for crop in (False, True))
    assert (cut == 1.0).all() and (stretched[:, 0] == -1.0).all()


def test_an_edited_picture_is_read_anew(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (16, 16), (0, 0, 0)).save(path)
    dataset = personalized.PersonalizedBase(str(tmp_path), size=16)
    assert (dataset[0]["image"] == -1.0).all()
    modified = path.stat().st_mtime_ns
    Image.new("RGB", (16, 16), (255, 255, 255)).save(path)
    assert path.stat().st_mtime_ns != modified
    assert (dataset[0]["image"] == 1.0).all()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"interpolation": "lanczo"}, "interpolation is 'lanczo'; it must be one of linear, bilinear, bicubic, lanczos; did you mean lanczos"),
        ({"size": 0}, "size is 0"),
        ({"size": 63.5}, "size is 63.5"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(folder, settings, said):
    with pytest.raises(ValueError, match=said):
        personalized.PersonalizedBase(str(folder), **settings)


def test_linear_is_bilinear(folder):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "a.jpg")
    linear, bilinear, bicubic = (
        personalized.PersonalizedBase(str(folder), size=16, flip_p=0.0, interpolation=name)[0]["image"] for name in ("linear", "bilinear", "bicubic")
    )
    assert np.array_equal(linear, bilinear) and not np.array_equal(linear, bicubic)


def test_batches_come_through_worker_processes(folder):
    loader = torch.utils.data.DataLoader(personalized.PersonalizedBase(str(folder), size=16, repeats=2), batch_size=4, num_workers=1)
    batch = next(iter(loader))
    assert batch["image"].shape == (4, 16, 16, 3) and len(batch["caption"]) == 4


class Letters(Txt2ImgIterableBaseDataset):
    def __iter__(self):
        return iter({"caption": letter} for letter in self.sample_ids)


def test_a_stream_has_its_records_length_and_needs_an_iterator():
    stream = Letters(num_records=3, valid_ids=["a", "b", "c"], size=64)
    assert len(stream) == 3 and stream.size == 64
    assert [item["caption"] for item in stream] == ["a", "b", "c"]
    stream.sample_ids = ["b"]
    assert [item["caption"] for item in stream] == ["b"] and stream.valid_ids == ["a", "b", "c"]
    with pytest.raises(TypeError):
        Txt2ImgIterableBaseDataset()
