"""Only the keys and values of the cross-attention are tuned: the two layers through which text enters the network.

Kumari et al. 2022, Custom Diffusion (arXiv 2212.04488), section 3.2; their set of real pictures of the class is left out.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.optim import ParameterPlan

KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")  # attn1 is self-attention


class KVOnly(LatentDiffusion):
    """LatentDiffusion of whose networks only these layers train, beside the concept's vectors; the text encoder stands still.

    cond_stage_trainable stays true where words are learnt: it says that prompts are encoded with gradients.
    Raises ValueError where unfreeze_model is false, or the network has no cross-attention.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.embedding_manager is not None and not self.unfreeze_model:
            raise ValueError("model.params.unfreeze_model is false, so no keys and values would be tuned; expected true")
        if not keys_and_values(self.model):
            raise ValueError("model.params.unet_config has no cross-attention (attn2), whose keys and values are to be tuned; expected use_spatial_transformer")

    def parameter_plan(self, *, embeddings: bool, model: bool) -> ParameterPlan:
        """LatentDiffusion's, with all of the networks frozen before the layers that train are thawed."""
        plan = super().parameter_plan(embeddings=embeddings, model=model)
        networks = [module for module in (self.model, self.cond_stage_model) if module is not None]
        still = {parameter for module in networks for parameter in module.parameters()} - set(keys_and_values(self.model))
        groups = [replace(group, parameters=[parameter for parameter in group.parameters if parameter not in still]) for group in plan.train]
        groups = [replace(group, modules=[module for module in group.modules if module is not self.cond_stage_model]) for group in groups]
        return ParameterPlan(groups, frozen=[*plan.frozen, *networks])


def keys_and_values(network: nn.Module) -> list[nn.Parameter]:
    """The weights that make keys and values of what the network attends to."""
    return [parameter for name, parameter in network.named_parameters() if name.endswith(KEYS_AND_VALUES)]
