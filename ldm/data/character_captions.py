"""Natural words for a scene of the drawn world. Attributes are left out at random, down to the bare "a character"."""
from __future__ import annotations

import random
from collections.abc import Sequence

from ldm.data.character_world import Character, Scene

MOUTH_WORDS = {"smile": "a smiling mouth", "open": "an open mouth", "flat": "a flat mouth", "teeth": "bared teeth"}
PLACE_WORDS = {
    "plain": "on a plain background", "forest": "in a forest", "beach": "at the beach", "night": "at night", "city": "in a city", "snow": "in the snow",
}  # fmt: skip
# sentence shapes beside the bare noun phrase; {} is a noun phrase with its article
SENTENCES = (
    "a picture of {}", "a drawing of {}", "a photo of {}", "here is {}", "this is {}", "{}, simple shapes", "we see {}", "a painting of {}",
    "an image of {}",
)  # fmt: skip


def article(words: str) -> str:
    """`words` with "a" or "an" before it."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def headwear_words(character: Character) -> str:
    """What the character wears on its head, with the article; "nothing on the head" for none."""
    if character.headwear == "none":
        return "nothing on the head"
    if character.headwear == "horns":
        return "horns"
    return article(f"{character.hat_colour} hat" if character.headwear == "hat" else "crown")


def noun_phrase(scene: Scene, named: Sequence[str] | None = None) -> str:
    """The scene in words, beginning with the noun's adjectives and without an article.

    named: attributes to put into words; all by default. "none" values are left out of the words.
    """
    said = set(named) if named is not None else set(scene.attributes())
    words = [scene.colour] if "colour" in said else []
    if isinstance(scene, Character) and "body" in said:
        words.append(scene.body)
    words.append(scene.kind)
    tail = []
    if isinstance(scene, Character):
        face = [f"{scene.eyes} eyes"] if "eyes" in said else []
        if "mouth" in said:
            face.append(MOUTH_WORDS[scene.mouth])
        if face:
            tail.append("with " + " and ".join(face))
        if "headwear" in said and scene.headwear != "none":
            tail.append("wearing " + headwear_words(scene))
        if "accessory" in said and scene.accessory != "none":
            tail.append(("holding " if scene.accessory == "balloon" else "with ") + article(scene.accessory))
    if "background" in said:
        tail.append(PLACE_WORDS[scene.background])
    return " ".join([" ".join(words), ", ".join(tail[:-1]), tail[-1] if tail else ""]).replace("  ", " ").strip()


def full_caption(scene: Scene) -> str:
    """Every attribute in words."""
    return article(noun_phrase(scene))


def random_caption(scene: Scene, chance: random.Random, templates: Sequence[str] = ()) -> str:
    """A caption that names each attribute with a probability drawn for this caption.

    Half of the captions are the noun phrase alone, a quarter one of `SENTENCES`, a quarter one of `templates`
    (each with one `{}` for a noun without its article, as "a photo of a {}").
    """
    if chance.random() < 0.08:
        named: list[str] = []
    else:
        keep = chance.choice((0.35, 0.65, 0.95))
        named = [name for name in scene.attributes() if chance.random() < keep]
    phrase = noun_phrase(scene, named)
    kind = chance.random()
    if kind < 0.25:
        return chance.choice(SENTENCES).format(article(phrase))
    if kind < 0.5 and templates:
        return chance.choice(templates).format(phrase)
    return article(phrase)
