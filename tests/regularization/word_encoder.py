"""A text encoder small enough to compute by hand, with a placeholder, marks, padding and words of several tokens."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LENGTH, WIDTH = 8, 3
START, END = "<s>", "</s>"


class WordEncoder(nn.Module):
    """Causal, like CLIP's: c of a token depends on it and on those before it. A word of n tokens is written with n - 1 hyphens.

    vectors: how many `*` stands for. Called with prompts, and as the model's own with `edit_tokens`; c is (B, 8, 3).
    """

    def __init__(self, vectors: int = 1, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.table, self.mix = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.concept = nn.Parameter(torch.randn(vectors, WIDTH))
        self.vocabulary: dict[str, int] = {}
        self.calls: list[list[str]] = []
        self.seen: list[Tensor] = []

    def embed(self, prompt: str) -> Tensor:
        """e (L, d); the concept's vectors need no gradient, as the model sees to."""
        rows = [self._row(START)]
        for piece in prompt.replace("-", " ").split():
            rows += list(self.concept.detach()) if piece == "*" else [self._row(piece)]
        return torch.stack((rows + [self._row(END)] * LENGTH)[:LENGTH])

    def transform(self, e: Tensor) -> Tensor:
        """What comes after the embeddings: (B, L, d) -> (B, L, d)."""
        h = e.cumsum(dim=1) / torch.arange(1, LENGTH + 1, dtype=e.dtype)[:, None]
        return h + torch.tanh(self.mix(h))

    def forward(self, prompts: Sequence[str], edit_tokens: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        self.calls.append(list(prompts))
        e = torch.stack([self.embed(prompt) for prompt in prompts])
        e = e if edit_tokens is None else edit_tokens(e)
        self.seen.append(e)
        return self.transform(e)

    def _row(self, word: str) -> Tensor:
        return self.table.weight[self.vocabulary.setdefault(word, len(self.vocabulary))]
