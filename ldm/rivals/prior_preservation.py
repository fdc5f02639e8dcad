"""Prior preservation: beside the concept's pictures the network goes on learning pictures of the class that it drew itself before tuning.

L + λ · E ‖ε − ε_θ(z_t, t, τ_θ(p_c))‖², z_0 drawn by θ₀ for p_c: Ruiz et al. 2022, DreamBooth (arXiv 2208.12242), section 3.2. There p_c is one
prompt; here it is every training caption with the class word. Latents are kept as drawn: decoded and encoded again they would gain only error.
The target is true noise, not θ₀'s answer: the term teaches the class, and is no distance to θ₀; it does not vanish where θ = θ₀.
"""
from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.objective import target_of
from ldm.prompts import imagenet_templates_small
from ldm.rivals.held import HeldLatentDiffusion, frozen_copies, replaced

STATE_KEY = "prior_preservation"  # of the generator's state, beside the state dict
SAMPLES_AT_A_TIME = 8


class PriorPreservation(HeldLatentDiffusion):
    """LatentDiffusion that also trains on the frozen base's own pictures of the class.

    prior_weight: λ; batch_size: class pictures a step; class_word: the first init word unless given. samples: how many pictures θ₀ draws before
    training, by DDIM in ddim_steps at guidance_scale; seed: of these, and with the rank added of the steps' draws. A resumed run draws the same again.
    """

    term_name = "prior"

    def __init__(
        self, *args: Any, prior_weight: float = 1.0, batch_size: int = 1, class_word: str | None = None, samples: int = 64, ddim_steps: int = 50,
        guidance_scale: float = 1.0, seed: int = 23, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(*args, **kwargs)
        self.hold("prior_weight", prior_weight)
        for key, number in (("batch_size", batch_size), ("samples", samples), ("ddim_steps", ddim_steps)):
            if int(number) != number or number < 1:
                raise ValueError(f"model.params.{key} is {number}; expected a whole number of at least 1")
        self._batch_size, self._ddim_steps, self._guidance_scale, self._seed = batch_size, ddim_steps, guidance_scale, seed
        if prior_weight > 0:
            word = self.class_word(class_word, kwargs.get("personalization_config"))
            self._prompts = list(islice(cycle(template.format(word) for template in imagenet_templates_small), samples))

    def take_base(self) -> None:
        generator = torch.Generator().manual_seed(self._seed)
        x_T = torch.randn(len(self._prompts), self.channels, self.image_size, self.image_size, generator=generator)
        parts = tqdm(torch.arange(len(x_T)).split(SAMPLES_AT_A_TIME), desc="the base draws its class", unit="batch", disable=self.global_rank > 0)
        with replaced(self, frozen_copies(self.tuned_modules())):  # as the network will be asked: in eval mode
            z_0 = [self._drawn([self._prompts[row] for row in part], x_T[part]) for part in parts]
        self._z_0 = torch.cat(z_0).cpu()  # (samples, C, h, w)
        self._generator = generator.manual_seed(self._seed + 1 + self.global_rank)

    def _drawn(self, prompts: list[str], x_T: Tensor) -> Tensor:
        c, empty = self.encode_class(prompts), self.encode_class([""] * len(prompts))  # (B, L, d)
        guidance = {"unconditional_guidance_scale": self._guidance_scale, "unconditional_conditioning": empty}
        return DDIMSampler(self).sample(self._ddim_steps, len(x_T), x_T.shape[1:], c, x_T=x_T.to(self.device), verbose=False, **guidance)[0]

    def term(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The simple loss of batch_size class pictures; the batch itself gives only device and dtype."""
        rows = torch.randint(len(self._z_0), (self._batch_size,), generator=self._generator)
        steps = torch.randint(self.num_timesteps, (self._batch_size,), generator=self._generator).to(t)
        z_0 = self._z_0[rows].to(x_start)
        eps = torch.randn(z_0.shape, generator=self._generator).to(x_start)
        output = self.apply_model(self.q_sample(z_0, steps, eps), steps, self.encode_class([self._prompts[row] for row in rows]))  # (B, C, h, w)
        return self.get_loss(output, target_of(self.parameterization, z_0, eps))

    def state_at_step(self) -> dict[str, Any]:
        return super().state_at_step() | ({STATE_KEY: self._generator.get_state()} if self._base_taken else {})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self._base_taken and STATE_KEY in checkpoint:
            self._generator.set_state(checkpoint[STATE_KEY].cpu())
            if self.global_rank:  # the state is rank 0's: the others go on apart from it
                self._generator.manual_seed(int(torch.randint(2**62, (), generator=self._generator)) + self.global_rank)
