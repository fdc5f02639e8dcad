"""Who trains, and at what rate: said once, as data, and applied from there.

The order of the groups and of the parameters in them is part of the format of saved optimiser states.
"""
from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm.util import instantiate_from_config

DEFAULT_OPTIMIZER: Mapping[str, Any] = {"target": "torch.optim.AdamW", "params": {"weight_decay": 0.01}}


def disabled_train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for `train` of a frozen module: its mode stays as it is."""
    return self


def freeze(module: nn.Module) -> None:
    """No gradients, evaluation mode, and `train()` without effect until `thaw`."""
    module.eval()
    module.requires_grad_(False)
    module.train = types.MethodType(disabled_train, module)


def thaw(module: nn.Module) -> None:
    """Undo what `freeze` did to the mode: training mode, and `train()` works again. Who needs a gradient is said apart."""
    vars(module).pop("train", None)
    module.train()


@dataclass(frozen=True)
class Group:
    """Parameters that learn at one rate.

    modules: what they belong to, put into training mode; parameters: in the order of the optimiser; lr: learning rate, None if not set yet.
    """

    name: str
    modules: Sequence[nn.Module]
    parameters: Sequence[nn.Parameter]
    lr: float | None


@dataclass(frozen=True)
class ParameterPlan:
    """Which groups train, in the optimiser's order, and which modules stand still."""

    train: Sequence[Group]
    frozen: Sequence[nn.Module]

    def apply(self) -> None:
        """Set modes and `requires_grad` as planned."""
        for module in self.frozen:
            freeze(module)
        for group in self.train:
            for module in group.modules:
                thaw(module)
            for parameter in group.parameters:
                parameter.requires_grad_(True)

    def optimizer(self, config: Mapping[str, Any] | None = None) -> Optimizer:
        """The optimiser of all groups. config: `target` and `params`; AdamW with weight decay 0.01 if None.

        Raises ValueError where nothing trains or a rate is not known.
        """
        groups = [group for group in self.train if group.parameters]
        if not groups:
            raise ValueError(
                "no parameter is left to train: train_embeddings, unfreeze_model and cond_stage_trainable are all off, and there is no adapter_config. "
                "Switch on what should be learnt"
            )
        unset = [group.name for group in groups if group.lr is None]
        if unset:
            raise ValueError(f"no learning rate for {', '.join(unset)}: set the model's learning_rate (main.py takes it from model.base_learning_rate)")
        # plain values: they are saved with the optimiser's state
        plain = OmegaConf.to_container(OmegaConf.create(config or DEFAULT_OPTIMIZER), resolve=True)
        return instantiate_from_config(plain, params=[{"params": list(group.parameters), "lr": group.lr} for group in groups])


class Parts(NamedTuple):
    """What a latent diffusion model consists of; encoder (tuned with the network or not) and words (a manager of learnt ones) may be absent.

    tunable: which parameters of network and encoder are ever tuned, by default all.
    """

    network: nn.Module
    encoder: nn.Module | None
    encoder_trains: bool
    first_stage: nn.Module
    words: nn.Module | None
    logvar: Sequence[nn.Parameter]
    tunable: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters

    def plan(self, *, words: bool, networks: bool, learning_rate: float | None, model_lr: float) -> ParameterPlan:
        """Who trains when the words or the networks do. A model without words trains its networks in any case, at learning_rate."""
        encoders = [] if self.encoder is None else [self.encoder]
        trainable, still = (encoders, []) if self.encoder_trains else ([], encoders)
        if self.words is None:
            group = Group("model", [self.network, *trainable], [*self._parameters(self.network, *trainable), *self.logvar], learning_rate)
            return ParameterPlan([group], frozen=[self.first_stage, *still])
        choices = [
            (words, Group("embeddings", [self.words], list(self.words.embedding_parameters()), learning_rate)),
            (networks, Group("model", [*trainable, self.network], self._parameters(*trainable, self.network), model_lr)),
            (bool(self.logvar), Group("logvar", [], self.logvar, learning_rate)),
        ]
        standing = [module for trains, group in choices if not trains for module in group.modules]
        return ParameterPlan([group for trains, group in choices if trains], frozen=[self.first_stage, *still, *standing])

    def _parameters(self, *modules: nn.Module) -> list[nn.Parameter]:
        return [parameter for module in modules for parameter in self.tunable(module)]


def with_schedule(optimizer: Optimizer, scheduler_config: Mapping[str, Any] | None) -> Any:
    """What Lightning's `configure_optimizers` returns: the optimiser, with a factor of its rates for each step where a schedule is configured.

    scheduler_config: `target` and `params` of an object with `schedule(step) -> factor`.
    """
    if scheduler_config is None:
        return optimizer
    schedule = instantiate_from_config(scheduler_config)
    # The bound method, not the object: LambdaLR would pickle the object's attributes into every checkpoint.
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule.schedule), "interval": "step", "frequency": 1}}
