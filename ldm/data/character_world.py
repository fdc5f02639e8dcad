"""The drawn world: which pictures exist. Characters with seven attributes, and things that are no characters.

Values in `RESERVED` never occur in what the denoiser is trained on: they are what *new* characters have, so that a trait
that leaks from a new character into others can be told from what the model knew before. The first stage sees every value.
"""
from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

BODIES = ("round", "boxy", "triangular", "tall")
COLOURS = ("red", "yellow", "green", "blue", "brown")
EYES = ("button", "narrow", "sleepy", "square")
MOUTHS = ("smile", "open", "flat", "teeth")
HEADWEAR = ("none", "hat", "crown", "horns")
HAT_COLOURS = ("red", "yellow", "green", "blue")
ACCESSORIES = ("none", "scarf", "bow tie", "balloon")
BACKGROUNDS = ("plain", "forest", "beach", "night", "city", "snow")
THINGS = ("house", "tree", "car", "boat", "flower", "rocket")

RESERVED = {"eyes": ("star", "cross", "ring", "triangle"), "colour": ("pink", "turquoise", "white")}

# every value a classifier must tell apart; "none" also stands where a thing has no such attribute
VALUES: dict[str, tuple[str, ...]] = {
    "kind": ("character", *THINGS),
    "body": BODIES,
    "colour": COLOURS + RESERVED["colour"],
    "eyes": EYES + RESERVED["eyes"],
    "mouth": MOUTHS,
    "headwear": HEADWEAR,
    "hat_colour": HAT_COLOURS,
    "accessory": ACCESSORIES,
    "background": BACKGROUNDS,
}


@dataclass(frozen=True)
class Character:
    """One character in one place. `hat_colour` is None unless `headwear` is "hat"."""

    body: str
    colour: str
    eyes: str
    mouth: str
    headwear: str = "none"
    hat_colour: str | None = None
    accessory: str = "none"
    background: str = "plain"

    kind = "character"

    def __post_init__(self):
        if (self.headwear == "hat") != (self.hat_colour is not None):
            raise ValueError(f"headwear {self.headwear!r} with hat_colour {self.hat_colour!r}: a hat has a colour, nothing else does")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value not in VALUES[field.name]:
                raise ValueError(f"{field.name} {value!r} is none of {', '.join(VALUES[field.name])}")

    def attributes(self) -> dict[str, str | None]:
        """Attribute → value, `kind` included."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Thing:
    """Something that is no character, in one colour and one place."""

    kind: str
    colour: str
    background: str = "plain"

    def attributes(self) -> dict[str, str | None]:
        """Attribute → value; attributes of characters are None."""
        return {**dict.fromkeys(VALUES), **asdict(self)}


Scene = Character | Thing


def is_held_out(character: Character) -> bool:
    """Whether this combination of body, colour, eyes and mouth (one in ten) is kept out of the denoiser's training."""
    key = "/".join((character.body, character.colour, character.eyes, character.mouth))
    return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def random_scene(rng: np.random.Generator, *, reserved: bool = False, things: float = 0.25) -> Scene:
    """A scene drawn by chance.

    reserved: with every value and every combination (the first stage, the classifiers); without, no reserved value
    and no held-out combination occurs (the denoiser).
    things: share of scenes that show no character.
    """
    extra = RESERVED if reserved else {"eyes": (), "colour": ()}
    background = "plain" if rng.random() < 0.35 else str(rng.choice(BACKGROUNDS[1:]))
    colours = COLOURS + extra["colour"]
    if rng.random() < things:
        return Thing(str(rng.choice(THINGS)), str(rng.choice(colours)), background)
    while True:
        character = random_character(rng, colours=colours, eyes=EYES + extra["eyes"], background=background)
        if reserved or not is_held_out(character):
            return character


def random_character(rng: np.random.Generator, *, colours: tuple[str, ...], eyes: tuple[str, ...], background: str) -> Character:
    """A character whose colour and eyes come from the given values, all else from the ordinary ones."""
    headwear = str(rng.choice(HEADWEAR, p=(0.3, 0.4, 0.15, 0.15)))
    return Character(
        body=str(rng.choice(BODIES)),
        colour=str(rng.choice(colours)),
        eyes=str(rng.choice(eyes)),
        mouth=str(rng.choice(MOUTHS)),
        headwear=headwear,
        hat_colour=str(rng.choice(HAT_COLOURS)) if headwear == "hat" else None,
        accessory=str(rng.choice(ACCESSORIES, p=(0.4, 0.2, 0.2, 0.2))),
        background=background,
    )


def dressed(character: Character, **changes: str | None) -> Character:
    """The same character with other headwear, accessory or background."""
    if changes.get("headwear", "hat") != "hat":
        changes.setdefault("hat_colour", None)
    return replace(character, **changes)


def _new_characters(seed: int, splits: tuple[str, ...]) -> dict[str, tuple[Character, ...]]:
    """One split a diagonal of the table reserved eyes × reserved colours: unlike eyes, bodies and mouths within each."""
    rng = np.random.default_rng(seed)
    eyes, colours = RESERVED["eyes"], RESERVED["colour"]
    return {
        split: tuple(
            Character(str(body), colours[(i + diagonal) % len(colours)], eyes[i], str(mouth))
            for i, (body, mouth) in enumerate(zip(rng.permutation(BODIES), rng.permutation(MOUTHS), strict=True))
        )
        for diagonal, split in enumerate(splits)
    }


# dev: for choosing settings; report: for figures; later: kept for studies to come.
NEW_CHARACTERS = _new_characters(seed=2106_05744, splits=("dev", "report", "later"))
