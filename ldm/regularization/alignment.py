"""The class prompt p_c written so that it has as many tokens as the concept's prompt p*, token by token in the same places.

A class word of one token is repeated as often as its placeholder has active vectors; one of as many tokens stays as it is.
"""
from typing import Callable, List, Optional, Sequence

import torch
from torch import Tensor

from ldm.regularization.types import PromptEncoder
from ldm.regularization.wording import Placeholders


class Alignment:
    """How often the class word stands in the place of each placeholder."""

    def __init__(self, placeholders: Sequence[str], class_word: str):
        self.placeholders = Placeholders(placeholders)
        self.class_word = class_word
        self._grows = False
        self._counts: Optional[List[int]] = None  # of the class word, and of each placeholder

    def prepare(self, encoder: PromptEncoder, grows: bool) -> Optional[str]:
        """Count tokens. grows: placeholders get more vectors as training goes on. Returns what does not align, as a sentence; None if all does."""
        self._grows = grows
        self._counts = count_tokens(encoder, [self.class_word, *self.placeholders.strings])
        pieces, *vectors = self._counts
        if pieces == 1 or (not grows and all(count == pieces for count in vectors)):
            return None
        stands_for = "a number of vectors that grows (progressive_words)" if grows else f"{vectors[0]} vector{'s' * (vectors[0] != 1)}"
        return (
            f"the class word {self.class_word!r} is {pieces} tokens of the text encoder, and {self.placeholders.strings[0]!r} stands for {stands_for}; "
            f"they align where the class word is one token{'' if grows else f', or num_vectors_per_token is {pieces}'}"
        )

    def class_prompts(self, prompts: Sequence[str], encoder: PromptEncoder) -> List[str]:
        """p_c for each p*."""
        if self._counts is None or self._grows:
            self._counts = count_tokens(encoder, [self.class_word, *self.placeholders.strings])
        pieces, *vectors = self._counts
        words = [" ".join([self.class_word] * (count if pieces == 1 else 1)) for count in vectors]
        return [self.placeholders.replaced(prompt, words) for prompt in prompts]

    def facts(self) -> List[str]:
        """Plain values, for the keys of caches."""
        return [*self.placeholders.strings, self.class_word]


@torch.no_grad()
def count_tokens(encoder: PromptEncoder, texts: Sequence[str]) -> List[int]:
    """How many tokens each text is, a placeholder's active vectors counted, marks and padding not."""
    seen: List[Tensor] = []
    encoder(["", *texts], edit_tokens=_looking(seen.append))
    frame = seen[0][0].unique(dim=0)  # marks and padding are all that an empty text has
    return [int((e[:, None] != frame).any(dim=-1).all(dim=-1).sum()) for e in seen[0][1:]]


def _looking(at: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
    def look(e: Tensor) -> Tensor:
        at(e)
        return e

    return look
