"""The drawn world: what exists, what is kept from the denoiser, pictures and captions."""
import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.data.character_captions import full_caption, random_caption
from ldm.data.character_world import ACCESSORIES, BACKGROUNDS, BODIES, COLOURS, EYES, HEADWEAR, MOUTHS
from ldm.data.characters import (
    NEW_CHARACTERS,
    RESERVED,
    VALUES,
    Character,
    CharacterDataset,
    CharacterLatents,
    Thing,
    dressed,
    is_held_out,
    random_scene,
    render,
    training_pictures,
)


def scenes(count, **options):
    rng = np.random.default_rng(5)
    return [random_scene(rng, **options) for _ in range(count)]


def test_the_denoiser_never_meets_a_reserved_value_or_a_held_out_combination():
    for scene in scenes(3000):
        assert scene.colour in COLOURS
        if isinstance(scene, Character):
            assert scene.eyes in EYES
            assert not is_held_out(scene)


def test_the_first_stage_meets_every_value_there_is():
    seen = {name: set() for name in VALUES}
    for scene in scenes(3000, reserved=True):
        for name, value in scene.attributes().items():
            seen[name].add(value)
    assert {name: values - {None} for name, values in seen.items()} == {name: set(values) for name, values in VALUES.items()}


def test_about_one_combination_in_ten_is_held_out():
    combinations = [Character(*values) for values in itertools.product(BODIES, COLOURS, EYES, MOUTHS)]
    assert 0.05 < sum(map(is_held_out, combinations)) / len(combinations) < 0.15


def test_new_characters_are_all_different_and_have_both_reserved_traits_on_plain_ground():
    everyone = [character for split in NEW_CHARACTERS.values() for character in split]
    assert len({(character.eyes, character.colour) for character in everyone}) == len(everyone) == 12
    for character in everyone:
        assert character.eyes in RESERVED["eyes"] and character.colour in RESERVED["colour"]
        assert (character.headwear, character.accessory, character.background) == ("none", "none", "plain")


def test_the_choice_of_new_characters_is_the_one_that_the_figures_are_for():
    assert [(c.eyes, c.colour, c.body, c.mouth) for c in NEW_CHARACTERS["report"]] == [
        ("star", "turquoise", "round", "smile"),
        ("cross", "white", "boxy", "flat"),
        ("ring", "pink", "triangular", "teeth"),
        ("triangle", "turquoise", "tall", "open"),
    ]


def test_a_hat_needs_a_colour_and_nothing_else_has_one():
    with pytest.raises(ValueError, match="hat_colour"):
        Character("round", "red", "button", "smile", headwear="hat")
    with pytest.raises(ValueError, match="a hat has a colour"):
        Character("round", "red", "button", "smile", headwear="crown", hat_colour="red")
    with pytest.raises(ValueError, match="'purple' is none of"):
        Character("round", "purple", "button", "smile")
    hatted = Character("round", "red", "button", "smile", headwear="hat", hat_colour="blue")
    assert dressed(hatted, headwear="none").hat_colour is None


@pytest.mark.parametrize("attribute", ["body", "colour", "eyes", "mouth", "headwear", "accessory", "background"])
def test_every_value_of_an_attribute_is_drawn_differently(attribute):
    base = Character("round", "red", "button", "smile")
    pictures = []
    for value in VALUES[attribute]:
        changes = {attribute: value} | ({"hat_colour": "blue"} if value == "hat" else {})
        pictures.append(np.asarray(render(dressed(base, **changes), np.random.default_rng(0)), dtype=float))
    for one, other in itertools.combinations(pictures, 2):
        assert np.abs(one - other).mean() > 0.5


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_picture_has_the_size_asked_for_and_shows_the_same(size):
    scene = Character("boxy", "blue", "star", "open", background="beach")
    picture = render(scene, np.random.default_rng(1), size=size)
    assert picture.size == (size, size) and picture.mode == "RGB"
    large = render(scene, np.random.default_rng(1), size=64).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(np.asarray(picture.resize((32, 32), Image.Resampling.BOX), float) - np.asarray(large, float)).mean() < 4


def test_an_item_is_the_same_picture_whenever_it_is_asked_for():
    data = CharacterDataset(10)
    first, again = data[3], CharacterDataset(10)[3]
    assert first["image"].shape == (64, 64, 3) and first["image"].dtype == np.float32
    assert first["image"].min() >= -1 and first["image"].max() <= 1
    np.testing.assert_array_equal(first["image"], again["image"])
    assert np.abs(first["image"] - CharacterDataset(10, set="val")[3]["image"]).max() > 0.1


def test_crops_have_their_side_and_captions_can_be_emptied():
    assert CharacterDataset(4, crop=32)[0]["image"].shape == (32, 32, 3)
    assert {CharacterDataset(4, empty_caption=1.0)[k]["caption"] for k in range(4)} == {""}
    with pytest.raises(ValueError, match="crop is 65"):
        CharacterDataset(4, crop=65)
    with pytest.raises(ValueError, match="set is 'trian'"):
        CharacterDataset(4, set="trian")


def test_captions_leave_attributes_out_down_to_the_bare_class():
    chance = random.Random(0)
    captions = [random_caption(scene, chance, ("a photo of a {}",)) for scene in scenes(2000, things=0.0)]
    assert captions.count("a character") > 30
    assert sum(" eyes" in caption for caption in captions) in range(800, 1600)
    assert any(caption.startswith("a photo of a ") for caption in captions)


def test_captions_say_what_is_there():
    character = Character("tall", "green", "narrow", "teeth", "hat", "red", "bow tie", "snow")
    assert full_caption(character) == "a green tall character with narrow eyes and bared teeth, wearing a red hat, with a bow tie in the snow"
    assert full_caption(Character("round", "blue", "sleepy", "open")) == "a blue round character with sleepy eyes and an open mouth on a plain background"
    assert full_caption(Thing("boat", "red", "beach")) == "a red boat at the beach"


def test_no_attribute_value_is_unnamed():
    for headwear, accessory, background in itertools.product(HEADWEAR, ACCESSORIES, BACKGROUNDS):
        colour = "red" if headwear == "hat" else None
        caption = full_caption(Character("round", "red", "button", "smile", headwear, colour, accessory, background))
        assert (headwear in caption) == (headwear != "none") and (accessory in caption) == (accessory != "none")


def test_cached_latents_keep_the_captions_of_their_pictures(tmp_path):
    source = CharacterDataset(6, reserved=True)
    about = {name: str(getattr(source, name)) for name in ("length", "size", "set", "seed", "reserved", "things")}
    mean = torch.randn(6, 8, 8, 4)
    save_file({"mean": mean.half(), "std": torch.zeros(6, 8, 8, 4).half()}, tmp_path / "latents.safetensors", metadata=about)
    latents = CharacterLatents(str(tmp_path / "latents.safetensors"), empty_caption=0.0)
    assert len(latents) == 6
    for index in range(6):
        random.seed(index)
        item = latents[index]
        random.seed(index)
        assert item["caption"] == source.caption(index)
        np.testing.assert_allclose(item["image"], mean[index].numpy(), atol=2e-3)
    with pytest.raises(FileNotFoundError, match="encode_characters"):
        CharacterLatents(str(tmp_path / "none.safetensors"))


def test_training_pictures_of_a_new_character_differ_and_repeat(tmp_path):
    character = NEW_CHARACTERS["dev"][0]
    paths = training_pictures(character, tmp_path / "a")
    assert [path.name for path in paths] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert len({path.read_bytes() for path in paths}) == 5
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in training_pictures(character, tmp_path / "b")]
