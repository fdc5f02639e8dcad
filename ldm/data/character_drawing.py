"""Draws a scene of the drawn world with Pillow, anti-aliased by supersampling.

Coordinates are pixels of a 64×64 picture, whatever the size asked for; y points down.
What a first stage with f = 8 must keep is drawn large: eyes of 7.5 pixels' radius, strokes of 3 pixels and more.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ldm.data.character_world import Character, Scene, Thing

Colour = tuple[int, int, int]
WORLD = 64  # side of the picture in the units used below
SUPERSAMPLING = 4

PALETTE: dict[str, Colour] = {
    "red": (222, 48, 44), "yellow": (250, 208, 48), "green": (64, 168, 62), "blue": (44, 92, 216), "brown": (134, 84, 44),
    "pink": (255, 92, 206), "turquoise": (36, 222, 212), "white": (248, 248, 250),
}  # fmt: skip
INK: Colour = (38, 30, 44)
PAPER: Colour = (255, 255, 255)
GOLD: Colour = (246, 190, 40)
ORANGE: Colour = (244, 138, 36)
PLAIN_GROUNDS: tuple[Colour, ...] = ((244, 232, 210), (214, 226, 240), (226, 218, 236), (216, 234, 216), (236, 220, 216))


class Canvas:
    """A picture with a pen whose coordinates are those of the 64×64 world."""

    def __init__(self, background: Colour, size: int = WORLD):
        self.size = size
        self.scale = size * SUPERSAMPLING / WORLD
        side = size * SUPERSAMPLING
        self.picture = Image.new("RGB", (side, side), background)
        self.pen = ImageDraw.Draw(self.picture)

    def _points(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self.pen.ellipse(self._points([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour, *, radius: float = 0.0) -> None:
        self.pen.rounded_rectangle(self._points([(left, top), (right, bottom)]), radius=radius * self.scale, fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        self.pen.polygon(self._points(points), fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float) -> None:
        self.pen.line(self._points(points), fill=fill, width=max(1, round(width * self.scale)), joint="curve")

    def half_disc(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """The lower half of an ellipse, flat side up, at y."""
        self.pen.pieslice(self._points([(x - rx, y - ry), (x + rx, y + ry)]), 0, 180, fill=fill)

    def finished(self) -> Image.Image:
        return self.picture.resize((self.size, self.size), Image.Resampling.BOX)


def render(scene: Scene, rng: np.random.Generator, *, size: int = WORLD) -> Image.Image:
    """An RGB picture of the scene, size × size pixels. Place, scale and shades vary with `rng`."""
    canvas = Canvas(PAPER, size)
    side = 1 if rng.random() < 0.5 else -1  # what stands at one side stands there in half of the pictures
    _BACKGROUNDS[scene.background](canvas, rng, side)
    x, y, s = 32 + rng.uniform(-2.5, 2.5), 39 + rng.uniform(-1.5, 1.5), rng.uniform(0.94, 1.04)
    fill = _shade(PALETTE[scene.colour], rng)
    if isinstance(scene, Thing):
        _THINGS[scene.kind](canvas, x, y, s, fill)
    else:
        _draw_character(canvas, scene, x, y, s, fill, side)
    return canvas.finished()


def _shade(colour: Colour, rng: np.random.Generator, spread: float = 8.0) -> Colour:
    r, g, b = (int(np.clip(c + rng.uniform(-spread, spread), 0, 255)) for c in colour)
    return r, g, b


def _darker(colour: Colour, share: float = 0.72) -> Colour:
    r, g, b = (int(c * share) for c in colour)
    return r, g, b


# --- characters -------------------------------------------------------------------------------------------------------

_BODY_HALF_SIZE = {"round": (22.0, 21.0), "boxy": (20.5, 20.5), "triangular": (24.0, 22.0), "tall": (17.5, 24.0)}


def _draw_character(canvas: Canvas, character: Character, x: float, y: float, s: float, fill: Colour, side: int) -> None:
    half_width, half_height = (s * length for length in _BODY_HALF_SIZE[character.body])
    top = y - half_height
    if character.accessory == "balloon":
        canvas.line([(x + side * half_width * 0.7, y + 8), (x + side * 23, 19)], INK, 1.2)
        canvas.ellipse(x + side * 22.5, 12, 8, 9, INK)
        canvas.ellipse(x + side * 22.5, 12, 6.6, 7.6, ORANGE)
    if character.headwear == "horns":
        _horns(canvas, x, top, s)
    for grown, colour in ((1.8, INK), (0.0, fill)):  # an outline is the same body, a little larger, behind
        _body(canvas, character.body, x, y, half_width + grown, half_height + grown, colour)
    if character.accessory == "scarf":
        _scarf(canvas, x, y + half_height * 0.80, half_width * (1.0 if character.body in ("triangular", "boxy") else 0.84), s)
    if character.accessory == "bow tie":
        _bow_tie(canvas, x, y + half_height * 0.84, s)
    for eye_side in (-1, 1):
        eye(canvas, character.eyes, x + eye_side * 9.8 * s, y - 5.5 * s, 7.5 * s)
    _MOUTHS[character.mouth](canvas, x, y + 8.6 * s, s)
    if character.headwear == "hat":
        _hat(canvas, x, top, s, PALETTE[character.hat_colour or "red"])
    if character.headwear == "crown":
        _crown(canvas, x, top, s)


def _body(canvas: Canvas, body: str, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
    if body == "round":
        canvas.ellipse(x, y, rx, ry, fill)
    elif body == "boxy":
        canvas.box(x - rx, y - ry, x + rx, y + ry, fill, radius=5)
    elif body == "tall":
        canvas.box(x - rx, y - ry, x + rx, y + ry, fill, radius=rx)
    else:
        canvas.polygon([(x - rx * 0.42, y - ry), (x + rx * 0.42, y - ry), (x + rx, y + ry), (x - rx, y + ry)], fill)


def eye(canvas: Canvas, shape: str, x: float, y: float, r: float) -> None:
    """A dark eye with a white rim, so that it shows on every body colour."""
    for grown, fill in ((1.9, PAPER), (0.0, INK)):
        _eye_shape(canvas, shape, x, y, r + grown, grown, fill)
    if shape == "ring":
        canvas.ellipse(x, y, r * 0.52, r * 0.52, PAPER)


def _eye_shape(canvas: Canvas, shape: str, x: float, y: float, r: float, grown: float, fill: Colour) -> None:
    if shape in ("button", "ring"):
        canvas.ellipse(x, y, r * 0.94, r * 0.94, fill)
    elif shape == "narrow":
        canvas.ellipse(x, y, r * 0.5, r, fill)
    elif shape == "sleepy":
        canvas.half_disc(x, y - 2 - grown * 0.6, r, r + 1, fill)
    elif shape == "square":
        canvas.box(x - r * 0.82, y - r * 0.82, x + r * 0.82, y + r * 0.82, fill)
    elif shape == "star":
        radii = (r * 1.12, (r - grown) * 0.5 + grown * 0.8)
        canvas.polygon([(x + radii[i % 2] * math.sin(i * math.pi / 5), y - radii[i % 2] * math.cos(i * math.pi / 5)) for i in range(10)], fill)
    elif shape == "triangle":
        canvas.polygon([(x, y - r * 1.15 - grown * 0.5), (x + r * 1.1, y + r * 0.8), (x - r * 1.1, y + r * 0.8)], fill)
    elif shape == "cross":
        arm, width = (r - grown) * 0.78 + grown * 0.4, 4.2 + 1.6 * grown
        canvas.line([(x - arm, y - arm), (x + arm, y + arm)], fill, width)
        canvas.line([(x - arm, y + arm), (x + arm, y - arm)], fill, width)


def _smile(canvas: Canvas, x: float, y: float, s: float) -> None:
    canvas.half_disc(x, y - 3.5 * s, 10.5 * s, 10 * s, INK)
    canvas.half_disc(x, y - 2 * s, 8 * s, 7 * s, (200, 40, 60))


def _open(canvas: Canvas, x: float, y: float, s: float) -> None:
    canvas.ellipse(x, y, 5.6 * s, 5.6 * s, INK)


def _flat(canvas: Canvas, x: float, y: float, s: float) -> None:
    canvas.box(x - 9.5 * s, y - 2.2 * s, x + 9.5 * s, y + 2.2 * s, INK)


def _teeth(canvas: Canvas, x: float, y: float, s: float) -> None:
    canvas.box(x - 10.5 * s, y - 5 * s, x + 10.5 * s, y + 5 * s, INK)
    canvas.box(x - 8.5 * s, y - 3.2 * s, x + 8.5 * s, y + 3.2 * s, PAPER)


_MOUTHS = {"smile": _smile, "open": _open, "flat": _flat, "teeth": _teeth}


def _hat(canvas: Canvas, x: float, top: float, s: float, fill: Colour) -> None:
    bottom = top + 4 * s
    for grown, colour in ((1.3, INK), (0.0, fill)):
        canvas.box(x - 17 * s - grown, bottom - 4.5 * s - grown, x + 17 * s + grown, bottom + grown, colour, radius=2)
        canvas.box(x - 10.5 * s - grown, bottom - 17 * s - grown, x + 10.5 * s + grown, bottom - 2 * s, colour, radius=1)
    canvas.box(x - 10.5 * s, bottom - 8 * s, x + 10.5 * s, bottom - 4.8 * s, _darker(fill, 0.5))


def _crown(canvas: Canvas, x: float, top: float, s: float) -> None:
    bottom = top + 4 * s
    for grown, colour in ((1.4, INK), (0.0, GOLD)):
        half, height = 12 * s + grown, 14 * s + grown
        points = [(-1, 0.0), (-1, 1.0), (-0.5, 0.5), (0, 1.0), (0.5, 0.5), (1, 1.0), (1, 0.0)]
        canvas.polygon([(x + half * u, bottom + grown - height * v) for u, v in points], colour)


def _horns(canvas: Canvas, x: float, top: float, s: float) -> None:
    for horn_side in (-1, 1):
        for grown, colour in ((1.6, INK), (0.0, (240, 226, 190))):
            points = [(4 - grown, 9), (15.5 + grown, 12), (17 + grown * 0.6, -12 - 2 * grown)]
            canvas.polygon([(x + horn_side * s * u, top + s * v) for u, v in points], colour)


def _scarf(canvas: Canvas, x: float, y: float, half_width: float, s: float) -> None:
    canvas.box(x - half_width - 1, y - 4.2 * s, x + half_width + 1, y + 4.2 * s, INK, radius=3)
    canvas.box(x - half_width, y - 3.1 * s, x + half_width, y + 3.1 * s, ORANGE, radius=2)


def _bow_tie(canvas: Canvas, x: float, y: float, s: float) -> None:
    for grown, colour in ((1.5, INK), (0.0, (250, 250, 250))):
        for wing in (-1, 1):
            canvas.polygon([(x, y), (x + wing * (10 * s + grown), y - 5 * s - grown), (x + wing * (10 * s + grown), y + 5 * s + grown)], colour)
        canvas.ellipse(x, y, 2.6 * s + grown * 0.6, 2.6 * s + grown * 0.6, colour)


# --- things -----------------------------------------------------------------------------------------------------------


def _house(canvas: Canvas, x: float, y: float, s: float, fill: Colour) -> None:
    canvas.box(x - 19 * s, y - 4 * s, x + 19 * s, y + 21 * s, INK)
    canvas.box(x - 17.4 * s, y - 4 * s, x + 17.4 * s, y + 19.4 * s, fill)
    canvas.polygon([(x - 24 * s, y - 3 * s), (x, y - 26 * s), (x + 24 * s, y - 3 * s)], INK)
    canvas.polygon([(x - 19.5 * s, y - 4.6 * s), (x, y - 23.4 * s), (x + 19.5 * s, y - 4.6 * s)], _darker(fill, 0.6))
    canvas.box(x - 12 * s, y + 6 * s, x - 2 * s, y + 19.4 * s, INK)
    canvas.box(x + 4 * s, y + 2 * s, x + 13 * s, y + 11 * s, (255, 244, 170))


def _tree(canvas: Canvas, x: float, y: float, s: float, fill: Colour) -> None:
    canvas.box(x - 4.5 * s, y + 2 * s, x + 4.5 * s, y + 22 * s, (92, 60, 36))
    for dx, dy, r in ((-10, -4, 12), (10, -4, 12), (0, -13, 13)):
        canvas.ellipse(x + dx * s, y + dy * s, (r + 1.6) * s, (r + 1.6) * s, INK)
    for dx, dy, r in ((-10, -4, 12), (10, -4, 12), (0, -13, 13)):
        canvas.ellipse(x + dx * s, y + dy * s, r * s, r * s, fill)


def _car(canvas: Canvas, x: float, y: float, s: float, fill: Colour) -> None:
    canvas.polygon([(x - 14 * s, y + 2 * s), (x - 9 * s, y - 12 * s), (x + 9 * s, y - 12 * s), (x + 15 * s, y + 2 * s)], INK)
    canvas.polygon([(x - 10.5 * s, y + 1 * s), (x - 7 * s, y - 9.5 * s), (x + 7 * s, y - 9.5 * s), (x + 11 * s, y + 1 * s)], (214, 240, 255))
    canvas.box(x - 26 * s, y - 1 * s, x + 26 * s, y + 14 * s, INK, radius=4)
    canvas.box(x - 24.4 * s, y + 0.6 * s, x + 24.4 * s, y + 12.4 * s, fill, radius=3)
    for wheel in (-13, 13):
        canvas.ellipse(x + wheel * s, y + 14 * s, 7.5 * s, 7.5 * s, INK)
        canvas.ellipse(x + wheel * s, y + 14 * s, 3.5 * s, 3.5 * s, (200, 200, 206))


def _boat(canvas: Canvas, x: float, y: float, s: float, fill: Colour) -> None:
    canvas.box(x - 1.4 * s, y - 26 * s, x + 1.4 * s, y + 8 * s, INK)
    canvas.polygon([(x + 2 * s, y - 25 * s), (x + 21 * s, y + 3 * s), (x + 2 * s, y + 3 * s)], (252, 250, 240))
    canvas.polygon([(x - 2 * s, y - 20 * s), (x - 16 * s, y + 3 * s), (x - 2 * s, y + 3 * s)], (236, 228, 210))
    canvas.polygon([(x - 26 * s, y + 5 * s), (x + 26 * s, y + 5 * s), (x + 16 * s, y + 21 * s), (x - 16 * s, y + 21 * s)], INK)
    canvas.polygon([(x - 23 * s, y + 6.8 * s), (x + 23 * s, y + 6.8 * s), (x + 15 * s, y + 19.4 * s), (x - 15 * s, y + 19.4 * s)], fill)


def _flower(canvas: Canvas, x: float, y: float, s: float, fill: Colour) -> None:
    canvas.box(x - 2 * s, y - 4 * s, x + 2 * s, y + 23 * s, (46, 120, 50))
    canvas.ellipse(x + 8 * s, y + 14 * s, 7 * s, 3.5 * s, (46, 120, 50))
    petals = [(x + 11 * s * math.cos(k * math.pi / 3), y - 9 * s + 11 * s * math.sin(k * math.pi / 3)) for k in range(6)]
    for grown, colour in ((1.6, INK), (0.0, fill)):
        for px, py in petals:
            canvas.ellipse(px, py, 6.4 * s + grown, 6.4 * s + grown, colour)
    canvas.ellipse(x, y - 9 * s, 6.5 * s, 6.5 * s, (120, 70, 30) if fill[0] > 200 and fill[1] > 160 else GOLD)


def _rocket(canvas: Canvas, x: float, y: float, s: float, fill: Colour) -> None:
    canvas.polygon([(x - 7 * s, y + 14 * s), (x + 7 * s, y + 14 * s), (x, y + 26 * s)], ORANGE)
    for wing in (-1, 1):
        canvas.polygon([(x + wing * 8 * s, y + 1 * s), (x + wing * 19 * s, y + 18 * s), (x + wing * 8 * s, y + 14 * s)], _darker(fill, 0.55))
    for grown, colour in ((1.6, INK), (0.0, fill)):
        canvas.ellipse(x, y - 10 * s, 10 * s + grown, 17 * s + grown, colour)
        canvas.box(x - 10 * s - grown, y - 10 * s, x + 10 * s + grown, y + 14 * s + grown, colour)
    canvas.ellipse(x, y - 7 * s, 6.6 * s, 6.6 * s, INK)
    canvas.ellipse(x, y - 7 * s, 4.8 * s, 4.8 * s, (200, 236, 255))


_THINGS = {"house": _house, "tree": _tree, "car": _car, "boat": _boat, "flower": _flower, "rocket": _rocket}


# --- backgrounds ------------------------------------------------------------------------------------------------------


def _plain(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    colour = PLAIN_GROUNDS[int(rng.integers(len(PLAIN_GROUNDS)))]
    canvas.box(-1, -1, 65, 65, colour)
    canvas.box(-1, 56, 65, 65, _darker(colour, 0.88))


def _forest(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    canvas.box(-1, -1, 65, 65, (186, 220, 170))
    for x, height in ((4, 46), (60, 44), (18, 34), (46, 36)):
        x += rng.uniform(-2, 2)
        for dx, shade in ((0.0, (24, 88, 52)), (3.0, (34, 108, 62))):
            canvas.polygon([(x - 11 + dx, 54), (x, 54 - height), (x + 11 - dx, 54)], shade)
    canvas.box(-1, 53, 65, 65, (70, 110, 48))


def _beach(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    canvas.box(-1, -1, 65, 65, (150, 214, 250))
    canvas.ellipse(32 - side * 24, 9, 7.5, 7.5, (255, 226, 70))
    canvas.box(-1, 32, 65, 50, (30, 130, 196))
    canvas.box(-1, 48, 65, 65, (240, 214, 150))


def _night(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    canvas.box(-1, -1, 65, 65, (24, 26, 74))
    for _ in range(12):
        canvas.ellipse(rng.uniform(2, 62), rng.uniform(2, 46), 1.2, 1.2, (255, 255, 224))
    canvas.ellipse(32 - side * 24, 10, 7, 7, (255, 246, 190))
    canvas.box(-1, 55, 65, 65, (16, 16, 44))


def _city(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    canvas.box(-1, -1, 65, 65, (250, 190, 140))
    for left, width, top in ((0, 13, 12), (14, 11, 24), (39, 11, 20), (51, 14, 8)):
        top += rng.uniform(-3, 3)
        canvas.box(left, top, left + width, 58, (96, 88, 112))
        for row in range(4):
            canvas.box(left + 3, top + 4 + 9 * row, left + width - 3, top + 8 + 9 * row, (255, 232, 140))
    canvas.box(-1, 56, 65, 65, (70, 66, 78))


def _snow(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    canvas.box(-1, -1, 65, 65, (140, 160, 190))
    canvas.polygon([(-2, 50), (12 + rng.uniform(-3, 3), 12), (30, 50)], (226, 234, 244))
    canvas.polygon([(34, 50), (54 + rng.uniform(-3, 3), 8), (68, 50)], (226, 234, 244))
    canvas.box(-1, 48, 65, 65, (250, 252, 255))


_BACKGROUNDS = {"plain": _plain, "forest": _forest, "beach": _beach, "night": _night, "city": _city, "snow": _snow}
