"""What the characters model is measured on."""
from ldm.data.character_captions import full_caption
from ldm.data.characters import RESERVED, Character, CharacterDataset, is_held_out
from ldm.evaluation.attributes import accuracy
from ldm.evaluation.quality import unseen_characters


def test_the_prompts_name_combinations_that_training_never_has_and_no_reserved_value():
    characters = unseen_characters(50)
    assert all(is_held_out(character) for character in characters)
    assert not any(character.eyes in RESERVED["eyes"] or character.colour in RESERVED["colour"] for character in characters)
    trained = CharacterDataset(2000)
    seen = {(s.body, s.colour, s.eyes, s.mouth) for s in map(trained.scene, range(2000)) if isinstance(s, Character)}
    assert not seen & {(c.body, c.colour, c.eyes, c.mouth) for c in characters}
    assert len(set(map(full_caption, characters))) > 40


def test_an_attribute_that_no_scene_has_is_left_out_of_the_accuracy():
    plain = Character("round", "red", "button", "smile")
    shares = accuracy([plain.attributes(), {**plain.attributes(), "eyes": "narrow"}], [plain, plain])
    assert "hat_colour" not in shares
    assert shares["eyes"] == {"button": 0.5, "all": 0.5}
    assert shares["body"] == {"round": 1.0, "all": 1.0}
