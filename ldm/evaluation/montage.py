"""Pictures for the report: tensors to images, several in one, and the one-look picture report.png."""
from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ldm.evaluation.comparison import CharacterTest, Result
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.reading import reading_note

INK, QUIET, RULE, PAPER = (28, 28, 30), (96, 98, 104), (222, 222, 218), (255, 255, 255)
ROLE_COLOURS = {"frozen": "#5f6673", "unregularized": "#a8480a", "regularized": "#0b6e63"}
OTHER_COLOURS = ("#4053a8", "#8a3a8f", "#6b6200", "#a12a46")


def colours_of(results: Sequence[Result]) -> list[str]:
    """One colour a result: its role's, or one of others in turn."""
    others = iter(OTHER_COLOURS * (len(results) // len(OTHER_COLOURS) + 1))
    seen: set[str] = set()
    colours = []
    for result in results:
        known = result.role in ROLE_COLOURS and result.role not in seen
        colours.append(ROLE_COLOURS[result.role] if known else next(others))
        seen.add(result.role)
    return colours


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as an RGB image."""
    return Image.fromarray(((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def tiles(pictures: Sequence[Image.Image], *, columns: int, side: int, gap: int = 4, background: tuple[int, int, int] = PAPER) -> Image.Image:
    """Pictures in rows of `columns`, the middle square of each scaled to side × side pixels."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side + (columns - 1) * gap, rows * side + (rows - 1) * gap), background)
    for k, picture in enumerate(pictures):
        sheet.paste(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS), ((k % columns) * (side + gap), (k // columns) * (side + gap)))
    return sheet


def data_uri(image: Image.Image) -> str:
    """The image as a PNG inside a URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")), size)


def one_look(
    results: Sequence[Result], prompts: Sequence[Prompt], *, headline: str, concept: Sequence[Image.Image], test: CharacterTest | None, rows: int = 6
) -> Image.Image:
    """The whole comparison as one picture: headline, the concept, a grid prompts × models, the first numbers."""
    side, gap, pad, label_width = 92, 6, 48, 300
    shown = min(4, len(next(iter(results[0].samples.values()))))
    cell = shown * side + (shown - 1) * gap
    width = 2 * pad + label_width + len(results) * cell + (len(results) - 1) * 32
    chosen = _spread(prompts, rows)
    lines = textwrap.wrap(headline, width=max(30, (width - 2 * pad) // 18))
    height = pad + len(lines) * 44 + 24 + (side + 56 if concept else 0) + 52 + len(chosen) * (side + 46) + pad
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    y = pad
    for line in lines:
        pen.text((pad, y), line, fill=INK, font=font(30, bold=True))
        y += 44
    y += 24
    if concept:
        pen.text((pad, y + side // 2 - 12), "The concept", fill=QUIET, font=font(20))
        sheet.paste(tiles(concept[:8], columns=len(concept[:8]), side=side, gap=gap), (pad + label_width, y))
        y += side + 28
        pen.line([(pad, y), (width - pad, y)], fill=RULE, width=2)
        y += 28
    columns = [pad + label_width + k * (cell + 32) for k in range(len(results))]
    for x, result, colour in zip(columns, results, colours_of(results), strict=True):
        pen.text((x, y), result.name, fill=colour, font=font(22, bold=True))
    y += 52
    for prompt in chosen:
        for k, line in enumerate(textwrap.wrap(prompt.text, width=24)[:3]):
            pen.text((pad, y + 8 + 28 * k), line, fill=INK, font=font(20))
        for x, result in zip(columns, results, strict=True):
            sheet.paste(tiles([to_image(picture) for picture in result.samples[prompt.text][:shown]], columns=shown, side=side, gap=gap), (x, y))
            note = reading_note(result, prompt, test)
            if note:
                pen.text((x, y + side + 6), note, fill=QUIET, font=font(16))
        y += side + 46
    return sheet


def _spread(prompts: Sequence[Prompt], rows: int) -> list[Prompt]:
    """At most `rows` prompts, every kind represented, in the order given."""
    chosen: list[Prompt] = []
    for kind in ("concept", "class", "edit", "unlike", "class", "edit", "unlike", "edit", "class", "concept"):
        candidate = next((prompt for prompt in prompts if prompt.kind == kind and prompt not in chosen), None)
        if candidate is not None and len(chosen) < rows:
            chosen.append(candidate)
    return [prompt for prompt in prompts if prompt in chosen]
