"""What chance may decide for a batch of probes; each knows how either network's encoder turns it into c."""
from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor

from ldm.regularization.configuration import plain
from ldm.regularization.types import Choice, PromptEncoder


class Prompts:
    """The choice that is a prompt."""

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> "Prompts":
        return Prompts([self.texts[row] for row in rows])

    def settled(self, encoder: PromptEncoder) -> "Prompts":
        return self

    def encode(self, encoder: PromptEncoder) -> Tensor:
        """Each text is encoded once, however often it was drawn."""
        texts = list(dict.fromkeys(self.texts))
        rows = encoder(texts).unbind()  # not by an index: its backward pass may add up in any order
        return torch.stack([rows[texts.index(text)] for text in self.texts])

    def facts(self) -> List[Any]:
        """The texts; what a subclass keeps beside them tells its choices apart too."""
        more = {name: value.tolist() if isinstance(value, Tensor) else plain(value) for name, value in sorted(vars(self).items()) if name != "texts"}
        return [type(self).__name__, list(self.texts), more] if more else list(self.texts)


class Joined:
    """Choices of several kinds in one batch."""

    def __init__(self, parts: Sequence[Choice], rows: Sequence[Tuple[int, int]]):
        self.parts = tuple(parts)
        self.rows = tuple(rows)  # (part, row in that part)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> "Joined":
        return Joined(self.parts, [self.rows[row] for row in rows])

    def settled(self, encoder: PromptEncoder) -> "Joined":
        return Joined([part.settled(encoder) for part in self.parts], self.rows)

    def encode(self, encoder: PromptEncoder) -> Tensor:
        encoded: List[Tensor] = []
        order: List[int] = []
        for number, part in enumerate(self.parts):
            places = [place for place, (owner, _) in enumerate(self.rows) if owner == number]
            if places:
                encoded.append(part.select([self.rows[place][1] for place in places]).encode(encoder))
                order += places
        return torch.cat(encoded)[torch.tensor(order).argsort().to(encoded[0].device)]

    def facts(self) -> List[Any]:
        return [[part.facts() for part in self.parts], [list(row) for row in self.rows]]
