"""Finding a placeholder in tokenised texts and putting vectors in its place: pure functions.

Nothing is changed in place: the ids are still needed by the backward pass of the token table, and callers keep what they handed in.
"""
from __future__ import annotations

import torch
from torch import Tensor


def insert_vectors(ids: Tensor, embeddings: Tensor, token: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Every occurrence of `token` becomes k vectors; what follows moves right, and each text is cut at its length.

    ids: (B, L) int64; embeddings: (B, L, d); vectors: (k, d), k >= 1, cast to the embeddings' dtype and device.
    Returns ids (B, L), in which the token stands k times for each occurrence, and embeddings (B, L, d). Gradients reach `embeddings` and `vectors`.
    """
    k, length = len(vectors), ids.shape[1]
    vectors = vectors.to(embeddings)
    found = ids == token  # (B, L)
    if k == 1:
        return ids, torch.where(found[..., None], vectors[0], embeddings)
    places = torch.where(found, k, 1)  # how many places each token takes
    ends = places.cumsum(dim=1)
    target = torch.arange(length, device=ids.device).expand_as(ids).contiguous()
    source = torch.searchsorted(ends, target, right=True)  # (B, L): which token each place of the result comes from
    nth = target - (ends - places).gather(1, source)  # and which of that token's places it is
    moved = embeddings.gather(1, source[..., None].expand_as(embeddings))
    from_placeholder = found.gather(1, source)
    chosen = vectors[nth.clamp(max=k - 1)]
    return ids.gather(1, source), torch.where(from_placeholder[..., None], chosen, moved)
