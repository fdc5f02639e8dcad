"""Learnt words: which placeholders there are, their vectors, and how these enter a text encoder.

Textual inversion (Gal et al. 2022, arXiv 2208.01618): a placeholder is one token of the encoder's own vocabulary whose embedding is replaced
by one or several trained vectors, before positions are added.
"""
from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.embeddings import read_embeddings, write_embeddings
from ldm.modules.encoder_words import (
    ClipWords,
    EncoderWords,
    alternative,
    get_bert_token_for_string,
    get_clip_token_for_string,
    get_embedding_for_clip_token,
    largest_count,
    single_token,
    start_vector,
    words_of,
)
from ldm.modules.placeholders import insert_vectors
from ldm.prompts import (
    imagenet_dual_templates_small,
    imagenet_templates_small,
    per_img_token_list,
    style_dual_templates_small,
    style_templates_small,
)

__all__ = ["DEFAULT_PLACEHOLDER_TOKEN", "PROGRESSIVE_SCALE", "EmbeddingManager"]
__all__ += ["get_bert_token_for_string", "get_clip_token_for_string", "get_embedding_for_clip_token"]

logger = logging.getLogger(__name__)

DEFAULT_PLACEHOLDER_TOKEN = ["*"]
PROGRESSIVE_SCALE = 2000  # encodings after which progressive words use one vector more
# The command line sets it for every model; LatentDiffusion reads it.
KNOWN_BUT_UNUSED = ("embedding_manager_ckpt",)


class EmbeddingManager(nn.Module):
    """The learnt words of a model; a text encoder calls it with (token ids, token embeddings).

    embedder: the text encoder, read here and not kept. placeholder_strings: one token each, "*" by default. initializer_words: the first
    placeholders' start vectors come from these (CLIP: plus position 0); the others start uniform on [0, 1). per_image_tokens: one more
    placeholder for each picture, BERT only. num_vectors_per_token: of every placeholder. progressive_words: begin with one vector, one more
    every PROGRESSIVE_SCALE encodings. init_word_mean: an init word of several tokens starts from the mean of their vectors.
    Other keywords are accepted and ignored, with a warning.
    Raises ValueError for whatever of this the encoder cannot do.
    """

    def __init__(
        self,
        embedder: nn.Module,
        placeholder_strings: Sequence[str] | None = None,
        initializer_words: Sequence[str] | None = None,
        per_image_tokens: bool = False,
        num_vectors_per_token: int = 1,
        progressive_words: bool = False,
        *,
        init_word_mean: bool = False,
        **kwargs: Any,
    ):
        super().__init__()
        _warn_of_ignored(kwargs)
        words = words_of(embedder)
        self.is_clip = isinstance(words, ClipWords)
        placeholders = _strings(placeholder_strings) or list(DEFAULT_PLACEHOLDER_TOKEN)
        init_words = _strings(initializer_words)
        if len(init_words) > len(placeholders):
            raise ValueError(f"initializer_words: {len(init_words)} words for {len(placeholders)} placeholders ({_listed(placeholders)}); at most one each")
        if per_image_tokens:
            if self.is_clip:
                raise ValueError(
                    "per_image_tokens: its letters are two tokens each for CLIP, and a placeholder is one token. "
                    "Set per_image_tokens: false (here and in the data), or use a BERT text encoder."
                )
            placeholders += per_img_token_list
        self.width = words.width
        self.max_vectors_per_token = num_vectors_per_token
        self.progressive_words = progressive_words
        self.progressive_counter = 0
        self._counting = True
        self.string_to_token_dict = _tokens(words, placeholders)
        _check_count(words, placeholders[0], num_vectors_per_token, per_image_tokens)
        self.string_to_param_dict = nn.ParameterDict()
        self.initial_embeddings = nn.ParameterDict()
        for i, placeholder in enumerate(placeholders):
            if i < len(init_words):
                start = start_vector(words, init_words[i], mean=init_word_mean).repeat(num_vectors_per_token, 1)
                self.initial_embeddings[placeholder] = nn.Parameter(start.clone(), requires_grad=False)
            else:
                start = torch.rand(num_vectors_per_token, words.width)
            self.string_to_param_dict[placeholder] = nn.Parameter(start)

    @property
    def active_vectors(self) -> int:
        """How many vectors a placeholder stood for at the last encoding; inside `untouched` also what it stands for at the next."""
        return self._active(self.max_vectors_per_token)

    def forward(self, tokenized_text: Tensor, embedded_text: Tensor) -> Tensor:
        """The embeddings with every placeholder's vectors in its place, later tokens moved right, cut at L.

        tokenized_text: (B, L) int64; embedded_text: (B, L, d); neither is changed. With progressive words the counter goes up by one for each
        placeholder, occurring or not, in training or not.
        """
        ids, embeddings = tokenized_text, embedded_text
        for placeholder, token in self.string_to_token_dict.items():
            vectors = self.string_to_param_dict[placeholder]
            if self.progressive_words and self.max_vectors_per_token > 1 and self._counting:
                self.progressive_counter += 1
            ids, embeddings = insert_vectors(ids, embeddings, int(token), vectors[: self._active(len(vectors))])
        return embeddings

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Inside, encodings leave no trace: the counter of progressive words stands still."""
        before = self.progressive_counter, self._counting
        self._counting = False
        try:
            yield
        finally:
            self.progressive_counter, self._counting = before

    def save(self, ckpt_path: str) -> None:
        """Write the words to a file (`ldm.checkpoints.embeddings`), whole or not at all."""
        write_embeddings(ckpt_path, self.string_to_token_dict, self.string_to_param_dict)

    def load(self, ckpt_path: str, *, strict_counts: bool = False) -> None:
        """The file's placeholders and vectors take the place of all that are here; how many vectors each has is the file's affair.

        strict_counts: for training, where the number must be num_vectors_per_token. Raises ValueError, and changes nothing, where it is not or
        where the vectors are not as wide as the encoder's; and as `read_embeddings`.
        """
        tokens, vectors = read_embeddings(ckpt_path)
        for placeholder, found in vectors.items():
            if found.shape[1] != self.width:
                raise ValueError(
                    f"{ckpt_path}: the vectors of {placeholder!r} are {found.shape[1]} wide, expected {self.width}: "
                    "they were learnt with another text encoder than this model's"
                )
            if strict_counts and len(found) != self.max_vectors_per_token:
                raise ValueError(
                    f"{ckpt_path}: {placeholder!r} has {len(found)} vectors, but num_vectors_per_token is {self.max_vectors_per_token}. "
                    f"To train on from this file set model.params.personalization_config.params.num_vectors_per_token={len(found)}"
                )
        gone = [placeholder for placeholder in self.string_to_token_dict if placeholder not in tokens]
        if gone and strict_counts:
            logger.warning("%s has the placeholders %s; the config's %s are not among them and lose their vectors", ckpt_path, _listed(tokens), _listed(gone))
        device = next(self.string_to_param_dict.parameters()).device
        self.string_to_token_dict = tokens
        self.string_to_param_dict = nn.ParameterDict({placeholder: nn.Parameter(found.float().to(device)) for placeholder, found in vectors.items()})
        self.max_vectors_per_token = max(map(len, vectors.values()))

    def get_embedding_norms_squared(self) -> Tensor:
        """|v|^2 of every vector, the placeholders one after another: (all vectors,)."""
        return torch.cat(list(self.embedding_parameters())).pow(2).sum(dim=-1)

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """The trained vectors, (vectors, width) a placeholder."""
        return self.string_to_param_dict.parameters()

    def embedding_to_coarse_loss(self) -> Tensor:
        """Mean over the placeholders that have an init word of (v - v0)(v - v0)^T: (vectors, vectors), zero (1, 1) where none has.

        Raises ValueError for a placeholder that has another number of vectors than it started with.
        """
        matrices = []
        for placeholder, start in self.initial_embeddings.items():
            if placeholder not in self.string_to_param_dict:
                continue
            vectors = self.string_to_param_dict[placeholder]
            if vectors.shape != start.shape:
                raise ValueError(f"{placeholder!r} has {len(vectors)} vectors but started with {len(start)}; set num_vectors_per_token to {len(vectors)}")
            moved = vectors - start
            matrices.append(moved @ moved.T)
        return torch.stack(matrices).mean(dim=0) if matrices else next(self.embedding_parameters()).new_zeros(1, 1)

    def _active(self, count: int) -> int:
        return min(count, 1 + self.progressive_counter // PROGRESSIVE_SCALE) if self.progressive_words else count


def _strings(given: Sequence[str] | str | None) -> list[str]:
    """A list of its own: a single string is one entry, not its letters."""
    return [given] if isinstance(given, str) else [str(string) for string in given or ()]


def _tokens(words: EncoderWords, placeholders: Sequence[str]) -> dict[str, Tensor]:
    tokens: dict[str, Tensor] = {}
    for placeholder in placeholders:
        token = single_token(words, placeholder, placeholders)
        same = next((other for other, known in tokens.items() if int(known) == token), None)
        if same is not None:
            raise ValueError(f"placeholder_strings: {placeholder!r} and {same!r} are the same token.{alternative(words, placeholders)}")
        if "." in placeholder or hasattr(nn.ParameterDict, placeholder) or placeholder in vars(nn.ParameterDict()):
            raise ValueError(f"placeholder_strings: a vector cannot be stored under the name {placeholder!r}.{alternative(words, placeholders)}")
        tokens[placeholder] = torch.tensor(token, device="cpu")
    return tokens


def _check_count(words: EncoderWords, placeholder: str, count: Any, per_image_tokens: bool) -> None:
    templates = [*imagenet_templates_small, *style_templates_small]
    if per_image_tokens:
        templates += [*imagenet_dual_templates_small, *style_dual_templates_small]
    whole = isinstance(count, int) and not isinstance(count, bool)
    if whole and count == 1:
        return
    largest = largest_count(words, placeholder, templates)
    if not whole or not 1 <= count <= largest:
        raise ValueError(
            f"num_vectors_per_token is {count!r}; it must be a whole number from 1 to {largest}: a caption has {words.length} places, "
            "and the longest caption template needs the others"
        )


def _warn_of_ignored(kwargs: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(EmbeddingManager).parameters if name not in ("embedder", "kwargs")]
    for name in kwargs:
        if name not in KNOWN_BUT_UNUSED:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            logger.warning("personalization_config.params: %s is unknown and ignored%s", name, hint)


def _listed(strings: Sequence[str]) -> str:
    return ", ".join(map(repr, strings))
