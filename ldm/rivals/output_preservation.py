"""Differential output preservation: where the concept's pictures are captioned with its class, the tuned network says what the frozen one says.

L + λ · mean ‖f_θ(z_t, t, τ_θ(p_c)) − f_θ₀(z_t, t, τ_θ₀(p_c))‖² at the batch's own z_t and t; p_c is its caption with the class word in the place
of the placeholder. Known from practice (ostris/ai-toolkit, `diff_output_preservation`).
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.pixels import Batch
from ldm.rivals.held import HeldLatentDiffusion, frozen_copies, replaced


class OutputPreservation(HeldLatentDiffusion):
    """LatentDiffusion that keeps the base's answers to the class on the training pictures.

    output_weight: λ; class_word: the first init word unless given. θ₀ is a second network, and text encoder where that trains.
    """

    term_name = "output"

    def __init__(self, *args: Any, output_weight: float = 1.0, class_word: str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.hold("output_weight", output_weight)
        if output_weight > 0:
            self._word = self.class_word(class_word, kwargs.get("personalization_config"))
            if self.embedding_manager is None:
                raise ValueError(f"model.params.output_weight is {output_weight}, but without personalization_config no caption has a placeholder to replace")
        self._captions: list[str] = []

    def take_base(self) -> None:
        self._frozen = frozen_copies(self.tuned_modules())

    def shared_step(self, batch: Batch, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """LatentDiffusion's; the captions are remembered, for they may be encoded before `forward`."""
        if self._weight > 0:
            self._captions = list(batch[self.cond_stage_key])
        return super().shared_step(batch, **kwargs)

    def term(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        z_t = self.q_sample(x_start, t, noise)  # (B, C, h, w)
        prompts = [with_word(caption, self.embedding_manager.string_to_token_dict, self._word) for caption in self._captions]
        output = self.apply_model(z_t, t, self.encode_class(prompts))  # (B, C, h, w)
        with torch.no_grad(), replaced(self, self._frozen):
            frozen = self.apply_model(z_t, t, self.encode_class(prompts))
        return (output - frozen).square().mean()


def with_word(caption: str, placeholders: Iterable[str], word: str) -> str:
    """The caption with `word` for each placeholder: for whole words only where it is one, anywhere where it is a sign such as *."""
    for placeholder in placeholders:
        before, after = (r"\b" if end.isalnum() else "" for end in (placeholder[0], placeholder[-1]))
        caption = re.sub(before + re.escape(placeholder) + after, lambda _: word, caption)
    return caption
