"""Choices of points near the concept: between it and its class, or around it.

p*, p_c: one template filled with the placeholder and with the class word, aligned token by token. c* = τ(p*), c_c = τ(p_c), (n, L, d).
What chance drew is one tensor with a row for each choice; each encoder builds its own points from it.
"""
import copy
from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor

from ldm.regularization.alignment import Alignment
from ldm.regularization.geometry import length, lerp, slerp, uniform_in_span, unit
from ldm.regularization.types import PromptEncoder


class NearConcept:
    """What all of these choices share.

    texts: p* of each; drawn: (n, ...), what chance decided.
    """

    def __init__(self, texts: Sequence[str], drawn: Tensor, alignment: Alignment):
        self.texts = tuple(texts)
        self.drawn = drawn
        self._alignment = alignment

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> "NearConcept":
        rows = list(rows)
        picked = copy.copy(self)
        picked.texts, picked.drawn = tuple(self.texts[row] for row in rows), self.drawn[rows]
        return picked

    def settled(self, encoder: PromptEncoder) -> "NearConcept":
        return self

    def encode(self, encoder: PromptEncoder) -> Tensor:
        c_star, c_class = self.ends(encoder)
        return self.point(c_star.float(), c_class.float(), encoder).to(c_star.dtype)

    def ends(self, encoder: PromptEncoder) -> Tuple[Tensor, Tensor]:
        """c*, c_c."""
        c = encoder([*self.texts, *self._alignment.class_prompts(self.texts, encoder)])
        return c[: len(self)], c[len(self) :]

    def point(self, c_star: Tensor, c_class: Tensor, encoder: PromptEncoder) -> Tensor:
        """c (n, L, d), fp32."""
        raise NotImplementedError

    def facts(self) -> List[Any]:
        return [type(self).__name__, self.settings(), self._alignment.facts(), list(self.texts), self.drawn.tolist()]

    def settings(self) -> List[Any]:
        """What else tells these choices from others: plain values."""
        return []


class BetweenTokens(NearConcept):
    """τ′(e(p*) + α·(e(p_c) − e(p*))): interpolated before positions are added and the text transformer runs. drawn: α (n,)."""

    def encode(self, encoder: PromptEncoder) -> Tensor:
        n = len(self)

        def between(e: Tensor) -> Tensor:
            # Encoders may go by the number of texts they were given, so the class prompts stay behind the points.
            return torch.cat([lerp(e[:n], e[n:], column(self.drawn, e)), e[n:]])

        return encoder([*self.texts, *self._alignment.class_prompts(self.texts, encoder)], edit_tokens=between)[:n]


class BetweenEncodings(NearConcept):
    """c* + α·(c_c − c*), or the same on the great circle of each token (`spherical`). drawn: α (n,)."""

    def __init__(self, texts: Sequence[str], drawn: Tensor, alignment: Alignment, spherical: bool):
        super().__init__(texts, drawn, alignment)
        self._between = slerp if spherical else lerp

    def point(self, c_star: Tensor, c_class: Tensor, encoder: PromptEncoder) -> Tensor:
        return self._between(c_star, c_class, column(self.drawn, c_star))

    def settings(self) -> List[Any]:
        return [self._between.__name__]


class OnSphere(NearConcept):
    """centre + r·u with r = factor · ‖c_c − c*‖: here all but u.

    midpoint: the centre is half-way from c* to c_c, else c*. per_token: r and ‖u‖ = 1 hold for each token, else for the whole sequence.
    """

    def __init__(self, texts: Sequence[str], drawn: Tensor, alignment: Alignment, prompts: Sequence[str], factor: float, midpoint: bool, per_token: bool):
        super().__init__(texts, drawn, alignment)
        self._prompts = tuple(prompts)
        self._factor = factor
        self._midpoint = midpoint
        self._per_token = per_token

    def point(self, c_star: Tensor, c_class: Tensor, encoder: PromptEncoder) -> Tensor:
        radius = self._factor * length(c_class - c_star, self._per_token)
        centre = (c_star + c_class) / 2 if self._midpoint else c_star
        return centre + radius * unit(self.direction(c_star, encoder), c_star, self._per_token)

    def direction(self, c_star: Tensor, encoder: PromptEncoder) -> Tensor:
        """Along u, at any length: (n, L, d)."""
        raise NotImplementedError

    def settings(self) -> List[Any]:
        return [list(self._prompts), self._factor, self._midpoint, self._per_token]


class Towards(OnSphere):
    """u ∝ Σ_p w_p (c_p − c*): the side of the sphere that faces the class. drawn: w (n, P), positive, adding up to 1."""

    def direction(self, c_star: Tensor, encoder: PromptEncoder) -> Tensor:
        differences = encoder(self._prompts).float() - c_star[:, None]  # (n, P, L, d)
        return torch.einsum("np,npld->nld", self.drawn.to(c_star), differences)


class InSpan(Towards):
    """Uniform in the span of the c_p − c*, on the whole sphere. drawn: g (n, P), normal; once settled, the w that makes the frozen point uniform."""

    is_settled = False

    @torch.no_grad()
    def settled(self, encoder: PromptEncoder) -> "InSpan":
        distinct = list(dict.fromkeys(self.texts))
        c_star, c_p = dict(zip(distinct, encoder(distinct).float())), encoder(self._prompts).float()
        settled = copy.copy(self)
        settled.drawn = torch.stack([uniform_in_span((c_p - c_star[text]).flatten(1), g) for text, g in zip(self.texts, self.drawn)]).cpu()
        settled.is_settled = True
        return settled

    def direction(self, c_star: Tensor, encoder: PromptEncoder) -> Tensor:
        assert self.is_settled, "the frozen encoder must settle the weights before the points are built from them"
        return super().direction(c_star, encoder)


class Isotropic(OnSphere):
    """u uniform in all L·d dimensions. drawn: a seed for each u (n,), since it is as large as c."""

    def direction(self, c_star: Tensor, encoder: PromptEncoder) -> Tensor:
        shape = c_star.shape[1:]
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in self.drawn.tolist()]).to(c_star)


class Morphed(NearConcept):
    """c* + α·(c_z − c*)/‖c_z − c*‖, c_z = τ of a prompt drawn from a list; α a distance, or a fraction of ‖c_c − c*‖. drawn: which prompt (n,)."""

    def __init__(self, texts: Sequence[str], drawn: Tensor, alignment: Alignment, prompts: Sequence[str], alpha: float, of_the_way: bool):
        super().__init__(texts, drawn, alignment)
        self._prompts = tuple(prompts)
        self._alpha = alpha
        self._of_the_way = of_the_way

    def point(self, c_star: Tensor, c_class: Tensor, encoder: PromptEncoder) -> Tensor:
        # PTI (arXiv 2106.05744) divides by the norm of a single w; c is a sequence, so the norm is over all (L, d).
        direction = unit(encoder([self._prompts[pick] for pick in self.drawn.tolist()]).float() - c_star, c_star)
        distance = self._alpha * length(c_class - c_star) if self._of_the_way else self._alpha
        return c_star + distance * direction

    def settings(self) -> List[Any]:
        return [list(self._prompts), self._alpha, self._of_the_way]


def column(numbers: Tensor, c: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1), with the device and dtype of c."""
    return numbers.to(c).view(-1, 1, 1)
