"""Embedding files joined into one, and taken apart for programs that want one word a file.

In a file a word is three things: its string, the token of that string in the text encoder's vocabulary, and its vectors. Two files often use the same
string (`*`); joined, the later one gets another string that is one token too.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.checkpoints import atomic_write
from ldm.checkpoints.embeddings import KEYS, read_embeddings, write_embeddings
from ldm.modules.encoder_words import SINGLE_TOKENS, bert_pieces, clip_pieces
from ldm.modules.encoders.clip_tokenizer import clip_tokenizer
from ldm.modules.encoders.modules import BERTTokenizer

logger = logging.getLogger(__name__)

Pieces = Callable[[str], list[int]]
Ask = Callable[[str, str], str]
FOREIGN_WORD = "*"  # the only word of a file as other programs read it; the file's name is what calls it there


class Word(NamedTuple):
    """A learnt word in a file. vectors: (n, width)."""

    file: str
    string: str
    token: int
    vectors: Tensor


class Joined(NamedTuple):
    """A word and the string that it had in its own file."""

    word: Word
    before: str


def words_in(path: str | Path) -> list[Word]:
    """The words of an embedding file. Raises as `read_embeddings`."""
    tokens, vectors = read_embeddings(path)
    return [Word(str(path), string, int(tokens[string]), vectors[string]) for string in tokens]


def merge_files(paths: Sequence[str | Path], out: str | Path, *, clip: bool = False, vocabulary: str | None = None, ask: Ask | None = None) -> list[Joined]:
    """Writes the words of all files to `out`, which must be new; returns them in order.

    clip: the words are CLIP's, where the files do not show it. vocabulary: BERT's, needed where words of a BERT encoder clash.
    ask(question, suggestion): the new string of a word that clashes; without it the suggestion is taken.
    Raises ValueError for words of unlike widths or encoders, and where `out` exists.
    """
    if Path(out).exists():
        raise ValueError(f"--output_path: {out} exists, and nothing is overwritten: name another file")
    words = [word for path in paths for word in words_in(path)]
    check_widths(words)
    joined: list[Joined] = []
    pieces: Pieces | None = None
    for number, word in enumerate(words):
        same = next((other for other, _ in joined if word.string == other.string or word.token == other.token), None)
        if same is None:
            joined.append(Joined(word, word.string))
            continue
        pieces = pieces or vocabulary_of(words, clip, vocabulary)
        taken = [other.string for other, _ in joined] + [other.string for other in words[number + 1 :]]
        new = new_string(word, same, taken, pieces, ask)
        joined.append(Joined(word._replace(string=new, token=pieces(new)[0]), word.string))
    write_embeddings(out, {word.string: torch.tensor(word.token) for word, _ in joined}, {word.string: word.vectors for word, _ in joined})
    return joined


def check_widths(words: Sequence[Word]) -> None:
    """Raises ValueError unless all vectors are of one width."""
    first = words[0]
    for word in words:
        width, other = first.vectors.shape[1], word.vectors.shape[1]
        if width != other:
            raise ValueError(
                f"{first.file}: {first.string!r} is {width} wide, and {word.file}: {word.string!r} is {other}: they were learnt with different text encoders, "
                "and one model cannot read both. Merge files of one width."
            )


def vocabulary_of(words: Sequence[Word], clip: bool, vocabulary: str | None) -> Pieces:
    """The tokens of a string for the text encoder that these words belong to, told by their own tokens.

    Raises ValueError where the words are not CLIP's and it is said that they are, or no BERT vocabulary is given.
    """
    of_clip: Pieces = lambda string: clip_pieces(clip_tokenizer(), string)  # noqa: E731
    stranger = next((word for word in words if of_clip(word.string) != [word.token]), None)
    if stranger is None:
        return of_clip
    if clip:
        raise ValueError(
            f"--stable_diffusion: {stranger.file} has token {stranger.token} for {stranger.string!r}, and CLIP's is {of_clip(stranger.string)}: "
            "it was not learnt with CLIP's text encoder. Leave the flag out."
        )
    if vocabulary is None:
        raise ValueError(
            f"{stranger.file}: {stranger.string!r} is token {stranger.token}, which is not CLIP's. For another string in the place of one that clashes "
            "the vocabulary of the BERT text encoder is needed: --vocabulary vocab.txt"
        )
    tokenizer = BERTTokenizer(vocabulary=vocabulary, vq_interface=False)
    of_bert: Pieces = lambda string: bert_pieces(tokenizer, string)  # noqa: E731
    stranger = next((word for word in words if of_bert(word.string) != [word.token]), None)
    if stranger is not None:
        raise ValueError(f"{stranger.file}: {stranger.string!r} is token {stranger.token}, and {vocabulary} has {of_bert(stranger.string)} for it")
    return of_bert


def new_string(word: Word, same: Word, taken: Sequence[str], pieces: Pieces, ask: Ask | None) -> str:
    """Another string for `word`, which `same` has already: one token, and free."""
    tokens_taken = {token for string in taken for token in pieces(string)[:1]}
    free = [string for string in SINGLE_TOKENS if string not in taken and len(pieces(string)) == 1 and pieces(string)[0] not in tokens_taken]
    if ask is None:
        if not free:
            raise ValueError(f"{word.file}: {word.string!r} is taken by {same.file}, and no free string of one token is left to suggest: merge fewer files")
        return free[0]
    question = f"{word.file}: {word.string!r} is taken by {same.file}. Another string for it"
    while True:
        given = ask(question, free[0] if free else "")
        found = pieces(given)
        if len(found) == 1 and given not in taken and found[0] not in tokens_taken and "." not in given:
            return given
        reason = "is taken" if given in taken or len(found) == 1 else f"is {len(found)} tokens, and a placeholder must be one"
        question = f"{given!r} {reason}. Another string"


def take_apart(path: str | Path, folder: str | Path) -> list[tuple[Path, Word]]:
    """Writes a file for each word, as web interfaces and diffusers read them: there the file's name, and its entry `name`, calls the word.

    Raises ValueError, and writes nothing, where one of the files exists.
    """
    words = words_in(path)
    stem = Path(path).stem
    planned = [(Path(folder) / f"{stem if len(words) == 1 else f'{stem}-{number}'}.pt", word) for number, word in enumerate(words, start=1)]
    there = next((target for target, _ in planned if target.exists()), None)
    if there is not None:
        raise ValueError(f"{there} exists, and nothing is overwritten: name another folder with --outdir")
    for target, word in planned:
        content: dict[str, Any] = {
            KEYS[0]: {FOREIGN_WORD: torch.tensor(word.token)}, KEYS[1]: {FOREIGN_WORD: word.vectors}, "name": target.stem,
        }  # fmt: skip
        with atomic_write(target) as temporary:
            torch.save(content, temporary)
    return planned
