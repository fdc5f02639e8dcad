"""Texts: templates filled with a word, placeholders found and replaced, prompts read from a file."""
import re
from pathlib import Path
from typing import List, Sequence


class Placeholders:
    """The strings that stand for what is learnt, in captions: as whole words if they are words, anywhere if they are signs such as *."""

    def __init__(self, strings: Sequence[str]):
        self.strings = tuple(strings)
        self._patterns = [_pattern(string) for string in self.strings]

    def occur_in(self, text: str) -> bool:
        return any(pattern.search(text) for pattern in self._patterns)

    def replaced(self, text: str, words: Sequence[str]) -> str:
        """`text` with a word in the place of each placeholder, in their order."""
        for pattern, word in zip(self._patterns, words):
            text = pattern.sub(lambda _, word=word: word, text)
        return text


def filled(templates: Sequence[str], word: str, whose: str) -> List[str]:
    """The templates with `word` in their {}. Raises ValueError for a template without exactly one, or for no templates."""
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"{whose}: templates need one {{}} each for the class word, got {wrong or 'none'}")
    return [template.format(word) for template in templates]


def lines_of(path: str, whose: str) -> List[str]:
    """The lines of a text file that are not blank. Raises FileNotFoundError, or ValueError where there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{whose}: prompts: no file {path} (looked from {Path.cwd()}); expected a text file with one prompt a line, or a list")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{whose}: prompts: {path} is no text in UTF-8 ({error.reason} at byte {error.start}); expected one prompt a line") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{whose}: the file of prompts {path} is empty; expected one prompt a line")
    return prompts


def _pattern(placeholder: str) -> "re.Pattern":
    before = r"\b" if placeholder[:1].isalnum() else ""
    after = r"\b" if placeholder[-1:].isalnum() else ""
    return re.compile(before + re.escape(placeholder) + after)
