"""Words as a text encoder sees them: the tokens of a string, and the vector a token stands for. CLIP and BERT behind one face.

Used while an embedding manager is built, and not kept by it.
"""
from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

CLIP_END = 49407
BERT_PADDING = 0
SINGLE_TOKENS = ("*", "@", "#", "~", "^", "&", "sks")  # offered where a placeholder will not do


class EncoderWords(Protocol):
    """A text encoder's vocabulary.

    width: of a token's vector; length: places in a text, the two marks included.
    """

    width: int
    length: int

    def pieces(self, string: str) -> list[int]:
        """The tokens of `string`, without marks and padding; at most length - 2."""

    def names(self, tokens: Sequence[int]) -> list[str]:
        """The tokens as text."""

    def vector(self, token: int) -> Tensor:
        """The start vector that a placeholder gets from a token: (width,), no gradient."""

    def single_words(self) -> list[str]:
        """Every word that is one token."""

    def is_unknown(self, token: int) -> bool:
        """Whether the token stands for whatever the vocabulary lacks."""


class ClipWords:
    """The vocabulary of an embedder with a CLIP `tokenizer`."""

    def __init__(self, embedder: nn.Module):
        self.tokenizer = embedder.tokenizer
        self.embeddings = embedder.transformer.text_model.embeddings
        self.width = self.embeddings.token_embedding.weight.shape[1]
        self.length = getattr(embedder, "max_length", 77)

    def pieces(self, string: str) -> list[int]:
        return clip_pieces(self.tokenizer, string, self.length)

    def names(self, tokens: Sequence[int]) -> list[str]:
        return [name.removesuffix("</w>") for name in self.tokenizer.convert_ids_to_tokens(list(tokens))]

    @torch.no_grad()
    def vector(self, token: int) -> Tensor:
        # Position 0 is part of it: learnt words have always started there.
        return get_embedding_for_clip_token(self.embeddings, torch.tensor(token, device=self.embeddings.token_embedding.weight.device))

    def single_words(self) -> list[str]:
        return [name.removesuffix("</w>") for name in self.tokenizer.get_vocab() if name.endswith("</w>")]

    def is_unknown(self, token: int) -> bool:
        return False  # bytes spell everything


class BertWords:
    """The vocabulary of an embedder with a BERT tokenizer `tknz_fn`."""

    def __init__(self, embedder: nn.Module):
        self.tokenize = embedder.tknz_fn
        self.table = embedder.transformer.token_emb
        self.width = self.table.weight.shape[1]
        self.length = len(self._ids(""))

    def pieces(self, string: str) -> list[int]:
        return bert_pieces(self.tokenize, string)

    def names(self, tokens: Sequence[int]) -> list[str]:
        return self.tokenize.tokenizer.convert_ids_to_tokens(list(tokens))

    @torch.no_grad()
    def vector(self, token: int) -> Tensor:
        return self.table(torch.tensor(token, device=self.table.weight.device))

    def single_words(self) -> list[str]:
        return [name for name in self.tokenize.tokenizer.get_vocab() if not name.startswith(("##", "["))]

    def is_unknown(self, token: int) -> bool:
        return token == self.tokenize.tokenizer.unk_token_id

    def _ids(self, string: str) -> list[int]:
        return self.tokenize(string)[0].tolist()


def words_of(embedder: nn.Module) -> EncoderWords:
    """The vocabulary of a text encoder. Raises ValueError for an encoder without a tokenizer."""
    if hasattr(embedder, "tokenizer"):
        return ClipWords(embedder)
    if hasattr(embedder, "tknz_fn"):
        return BertWords(embedder)
    raise ValueError(
        f"personalization_config: {type(embedder).__name__} has no tokenizer, so a placeholder cannot be found in its input. "
        "Learnt words need a text encoder: FrozenCLIPEmbedder, or BERTEmbedder with use_tokenizer: true."
    )


def get_clip_token_for_string(tokenizer: Any, string: str) -> Tensor:
    """The one token of `string` in CLIP's vocabulary, a 0-dim int64 tensor. Raises ValueError where it is not one."""
    return _the_one(clip_pieces(tokenizer, string), string)


def get_bert_token_for_string(tokenizer: Any, string: str) -> Tensor:
    """The one token of `string` for a BERTTokenizer, a 0-dim int64 tensor. Raises ValueError where it is not one."""
    return _the_one(bert_pieces(tokenizer, string), string)


def get_embedding_for_clip_token(embedder: nn.Module, token: Tensor) -> Tensor:
    """What CLIP's embeddings (table and positions) make of a text of this token (0-dim) alone: its vector plus position 0, (d,)."""
    return embedder(token.reshape(1, 1))[0, 0]


def clip_pieces(tokenizer: Any, string: str, length: int = 77) -> list[int]:
    """The tokens between the start mark and the first end mark."""
    ids = tokenizer(string, truncation=True, max_length=length, padding="max_length")["input_ids"]
    end = getattr(tokenizer, "eos_token_id", CLIP_END)
    return ids[1 : ids.index(end)]


def bert_pieces(tokenizer: Any, string: str) -> list[int]:
    """The tokens between the two marks."""
    padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", BERT_PADDING)
    return [token for token in tokenizer(string)[0].tolist() if token != padding][1:-1]


def single_token(words: EncoderWords, placeholder: str, taken: Sequence[str]) -> int:
    """The token of a placeholder. Raises ValueError, with an alternative that is none of `taken`, where it is not exactly one known token."""
    pieces = words.pieces(placeholder)
    if len(pieces) == 1 and not words.is_unknown(pieces[0]):
        return pieces[0]
    if len(pieces) == 1:
        found = "is not in the text encoder's vocabulary"
    else:
        found = f"is {len(pieces)} tokens of the text encoder ({_quoted(words.names(pieces))})" if pieces else "has no token"
    raise ValueError(f"placeholder_strings: {placeholder!r} {found}; a placeholder must be exactly one token.{alternative(words, taken)}")


def alternative(words: EncoderWords, taken: Sequence[str]) -> str:
    """` Use X instead.`, with an X that is one token and none of `taken`."""
    for string in SINGLE_TOKENS:
        pieces = words.pieces(string)
        if string not in taken and len(pieces) == 1 and not words.is_unknown(pieces[0]):
            return f" Use {string!r} instead (--placeholder_string {string!r})."
    return ""


def start_vector(words: EncoderWords, word: str, *, mean: bool) -> Tensor:
    """The vector that a placeholder starts from: its init word's, (width,).

    mean: a word of several tokens starts from the mean of theirs. Raises ValueError, with the tokens and words of one token that are spelt
    alike, for such a word without `mean`; and for one that the vocabulary lacks.
    """
    pieces = words.pieces(word)
    if not pieces or any(words.is_unknown(token) for token in pieces):
        raise ValueError(f"initializer_words: {word!r} {'is not in the vocabulary of the text encoder' if pieces else 'has no token'}; use another word")
    if len(pieces) > 1 and not mean:
        near = difflib.get_close_matches(word.lower(), words.single_words(), n=3)
        alike = f" (spelt alike: {_quoted(near)})" if near else ""
        raise ValueError(
            f"initializer_words: {word!r} is {len(pieces)} tokens of the text encoder ({_quoted(words.names(pieces))}), and a placeholder starts from one. "
            f"Use a word that is one token, such as a more general one{alike}, or start from the mean of their vectors: "
            "model.params.personalization_config.params.init_word_mean=true"
        )
    return torch.stack([words.vector(token) for token in pieces]).mean(dim=0)


def largest_count(words: EncoderWords, placeholder: str, templates: Sequence[str]) -> int:
    """How many vectors the placeholder may have so that all of them, the caption's other words and the end mark fit; at least 1."""
    counts = []
    for template in templates:
        slots = template.count("{}")
        others = len(words.pieces(template.format(*[placeholder] * slots))) - slots
        counts.append((words.length - 2 - others) // slots)
    return max(1, min(counts))


def _the_one(pieces: list[int], string: str) -> Tensor:
    if len(pieces) != 1:
        raise ValueError(f"{string!r} is {len(pieces)} tokens of the text encoder, expected exactly one; use another string")
    return torch.tensor(pieces[0])


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
