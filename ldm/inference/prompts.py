"""Prompts: read from a file, and what of them reaches the model: how many tokens its text encoder reads, and which learnt words they hold."""
from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger(__name__)

SHOWN_PROMPTS = 3


def read_prompt_lines(path: str | Path) -> list[str]:
    """The prompts of a text file, one a line, in order; blank lines are left out, and said.

    Raises FileNotFoundError without the file, ValueError where it holds no prompt or is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--from-file: no file {path} (looked from {Path.cwd()})")
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--from-file: {path} is no UTF-8 text; expected one prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--from-file: {path} holds no prompt; expected one a line")
    if len(prompts) < len(lines):
        logger.warning("%s: %d prompts; blank lines left out: %d", path, len(prompts), len(lines) - len(prompts))
    return prompts


class Reading(NamedTuple):
    """What a text encoder makes of a prompt. tokens: of the whole prompt, marks not counted; read: those that it reads; unread: the text of the others."""

    tokens: list[int]
    read: list[int]
    unread: str


def tokenizer_of(model: LatentDiffusion) -> tuple[Any, int]:
    """The tokenizer of the model's text encoder, and how many places a text has, two of them for marks.

    Raises ValueError for a model whose condition is no text.
    """
    encoder = model.cond_stage_model
    if hasattr(encoder, "tokenizer"):
        return encoder.tokenizer, encoder.max_length
    if hasattr(encoder, "tknz_fn"):
        return encoder.tknz_fn.tokenizer, encoder.tknz_fn.max_length
    found = "it has no condition" if encoder is None else f"its condition is encoded by {type(encoder).__name__}"
    raise ValueError(f"this model draws no prompts: {found} (cond_stage_config). Models without a text are drawn by scripts/sample_diffusion.py")


def reading_of(model: LatentDiffusion, prompt: str) -> Reading:
    """How much of the prompt the model reads: a learnt word of k vectors takes k places, and pushes what follows towards the end."""
    tokenizer, length = tokenizer_of(model)
    found = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens, places = found["input_ids"], [start for start, _ in found["offset_mapping"]]
    manager = model.embedding_manager
    vectors = {} if manager is None else {int(token): len(manager.string_to_param_dict[word]) for word, token in manager.string_to_token_dict.items()}
    used, kept = 1, 0  # the start mark
    for token in tokens[: length - 2]:
        used += vectors.get(token, 1)
        if used > length:
            break
        kept += 1
    return Reading(tokens, tokens[:kept], prompt[places[kept] :] if kept < len(tokens) else "")


def warn_of_unread(model: LatentDiffusion, prompts: Sequence[str]) -> None:
    """Logs which part of a prompt the text encoder does not read."""
    for prompt in dict.fromkeys(prompts):
        reading = reading_of(model, prompt)
        if reading.unread:
            logger.warning(
                "the prompt has %d tokens, and the text encoder reads %d of them; not read: “%s”", len(reading.tokens), len(reading.read), reading.unread
            )


def warn_of_absent_words(model: LatentDiffusion, prompts: Sequence[str], source: str) -> None:
    """Logs the prompts that hold none of the model's learnt words, which therefore change nothing there. source: where the words come from."""
    if model.embedding_manager is None:
        return
    words = {word: int(token) for word, token in model.embedding_manager.string_to_token_dict.items()}
    different = list(dict.fromkeys(prompts))
    without = [prompt for prompt in different if not set(words.values()) & set(reading_of(model, prompt).read)]
    if not without:
        return
    shown = ", ".join(f"“{prompt}”" for prompt in without[:SHOWN_PROMPTS]) + (" …" if len(without) > SHOWN_PROMPTS else "")
    glued = [word for word in words if any(word in prompt for prompt in without)]
    hint = f"; {_listed(glued)} is in the text, but not as a token of its own that is read: put spaces round it, near the beginning" if glued else ""
    many = f"{len(without)} of {len(different)} prompts hold" if len(different) > 1 else "the prompt holds"
    logger.warning("%s none of the learnt words of %s, which are %s, and so they change nothing in %s%s", many, source, _listed(list(words)), shown, hint)


def without_words(model: LatentDiffusion, prompt: str) -> str:
    """The prompt without the model's learnt words, for encoders that do not know them."""
    words = {} if model.embedding_manager is None else model.embedding_manager.string_to_token_dict
    for word in words:
        prompt = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", prompt)
    return " ".join(prompt.split())


def _listed(words: Sequence[str]) -> str:
    return ", ".join(map(repr, words))
