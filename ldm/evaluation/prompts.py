"""Which prompts models are compared on: read from a text file, each told by what it says to be of one of four kinds."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from ldm.prompts import imagenet_templates_small

Kind = Literal["concept", "edit", "class", "unlike"]


class Prompt(NamedTuple):
    """A prompt and what it asks for.

    concept: the new word in a training caption, or alone. edit: the new word with something else. class: the class word without the new one.
    unlike: neither word.
    """

    text: str
    kind: Kind


def kind_of(text: str, *, placeholder: str, class_word: str | None) -> Kind:
    """What the prompt asks for, told by the words in it."""
    if _contains(text, placeholder):
        plain = {placeholder, f"a {placeholder}", *(template.format(placeholder) for template in imagenet_templates_small)}
        return "concept" if text in plain else "edit"
    return "class" if class_word and _contains(text, class_word) else "unlike"


def read_prompts(path: Path, *, placeholder: str = "*", class_word: str | None = "character") -> list[Prompt]:
    """The prompts of a text file, one a line; blank lines, repeated lines and lines that begin with # are left out.

    Raises FileNotFoundError without the file, ValueError where it holds no prompt or is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts: no file {path} (looked from {Path.cwd()})")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is no UTF-8 text; expected one prompt a line") from error
    texts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not texts:
        raise ValueError(f"prompts: {path} holds no prompt; expected one a line")
    return [Prompt(text, kind_of(text, placeholder=placeholder, class_word=class_word)) for text in texts]


def _contains(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE) is not None
