"""What the rivals share that add a term to the loss: L + λ · term, in training only, with θ₀ taken before the first step.

θ₀ is taken in `setup("fit")`: the base checkpoint is loaded by then, a resumed run's weights are not. It never enters the state dict.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import default


class HeldLatentDiffusion(LatentDiffusion):
    """LatentDiffusion plus a weighted term. A subclass calls `hold` in its constructor and writes `take_base` and `term`.

    With weight 0 nothing else happens: no base checkpoint is needed, nothing is drawn, copied or logged.
    """

    term_name = ""  # logged as train/loss_<term_name>, before its weight

    def hold(self, key: str, weight: float) -> None:
        """Weigh the term. Raises ValueError for a negative weight, or one above 0 where no network is tuned. key: the weight's in the yaml."""
        if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"model.params.{key} is {weight!r}; expected a number of at least 0")
        if weight > 0 and self.embedding_manager is not None and not self.tunes_networks:
            raise ValueError(f"model.params.{key} is {weight} but unfreeze_model is false: no network is tuned that it could hold. Set it to true, or {key}: 0")
        self._key, self._weight, self._base_taken = key, float(weight), False

    def take_base(self) -> None:
        """Keep what the term needs of θ₀; the model is still θ₀, and lies where it will train."""
        raise NotImplementedError

    def term(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What is added, a scalar, for latents x_start (B, C, h, w) with noise of that shape at t (B,)."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Takes θ₀, once: a second fit keeps the first one's. Raises ValueError without a base checkpoint."""
        super().setup(stage)
        if stage not in (None, "fit") or self._weight == 0 or self._base_taken:
            return
        if not self.base_checkpoint:
            raise ValueError(
                f"model.params.{self._key} is {self._weight}, which holds the model to a base checkpoint, but ckpt_path names none: "
                f"give one with --actual_resume, or set {self._key}: 0"
            )
        self.to(self.device if self._trainer is None else self._trainer.strategy.root_device)  # where Lightning will move it next
        cards = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cards), torch.no_grad():
            self.take_base()
        self._base_taken = True

    def p_losses(self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """LatentDiffusion's loss and logs, and in training the term."""
        if not self.training or self._weight == 0 or not any(p.requires_grad for module in self.tuned_modules().values() for p in module.parameters()):
            return super().p_losses(x_start, cond, t, noise=noise)
        assert self._base_taken, "θ₀ is not known: training begins with setup('fit'), as a Trainer's does"
        noise = default(noise, lambda: torch.randn_like(x_start))  # the draw that would come next anyway
        loss, logs = super().p_losses(x_start, cond, t, noise=noise)
        term = self.term(x_start, t, noise)
        total = loss + self._weight * term
        return total, {**logs, "train/loss_original": loss.detach(), f"train/loss_{self.term_name}": term.detach(), "train/loss": total.detach()}

    def tuned_modules(self) -> dict[str, nn.Module]:
        """θ by attribute name: the network, and the text encoder where that trains."""
        return {name: getattr(self, name) for name in ("model", *(("cond_stage_model",) if self.cond_stage_trainable else ()))}

    def encode_class(self, prompts: list[str]) -> Tensor:
        """τ (B, L, d) of prompts without learnt words, of which the words' manager takes no notice."""
        with nullcontext() if self.embedding_manager is None else self.embedding_manager.untouched():
            return self.get_learned_conditioning(prompts)

    def class_word(self, given: str | None, personalization_config: Mapping[str, Any] | None) -> str:
        """What the concept is one of: as given, else the first init word. Raises ValueError where there is neither, or no text condition."""
        if self.model.conditioning_key != "crossattn":
            raise ValueError(f"model.params.{self._key} needs a text condition: conditioning_key is {self.model.conditioning_key!r}; expected crossattn")
        words = ((personalization_config or {}).get("params") or {}).get("initializer_words") or [None]
        if not (given or words[0]):
            raise ValueError(f"model.params.class_word is {given!r}, and there is no init word; expected what the concept is one of (character, dog, …)")
        return given or words[0]


def frozen_copies(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies that no training reaches: in eval mode, without gradients."""
    return {name: copy.deepcopy(module).eval().requires_grad_(False) for name, module in modules.items()}


@contextmanager
def replaced(model: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, these stand in the places of the model's own parts."""
    own = {name: getattr(model, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(model, name, part)
        yield
    finally:
        for name, part in own.items():
            setattr(model, name, part)
