"""LatentDiffusion with a term that keeps the network, away from the concept, where the base checkpoint had it.

    L = L_original + λ · R,    R = E w(t) ‖f_θ(z_t, t, τ_θ(choice)) − sg f_θ₀(z_t, t, τ_θ₀(choice))‖²    (`ldm.regularization`)

The original's hooks do the original's work; `p_losses` adds the term. With weight 0 nothing else happens at all. θ₀ is taken in
`setup("fit")`: the base checkpoint is loaded by then, a resumed run's weights are not. It never enters the state dict.
"""
import logging
import random
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import default_collate

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.prompts import imagenet_templates_small
from ldm.regularization import LocalityRegularizer, NoisyLatents, Start, TrainingBatch, Words, hash_tensors
from ldm.regularization.configuration import as_texts, build, plain
from ldm.regularization.scopes import in_eval_mode, method_replaced, replaced, undisturbed
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

STATE_KEY = "regularization"  # in the training checkpoint, beside the state dict
WAITS = "waits_for_word"  # in it, in the first of two phases
THETA = ("model.", "cond_stage_model.")


class RegularizedLatentDiffusion(LatentDiffusion):
    """LatentDiffusion plus the locality term.

    regularization_config: `target` and `params` of a LocalityRegularizer; its `X_config` entries are built and become the argument `X`.
    All other parameters are LatentDiffusion's. Raises ValueError where the term is on and could not do anything.
    """

    def __init__(self, first_stage_config: Any, cond_stage_config: Any, personalization_config: Any = None, *args: Any,
                 regularization_config: Any = None, **kwargs: Any):  # fmt: skip
        regularizer = build_regularizer(regularization_config)
        if regularizer.on:
            if personalization_config is not None and not kwargs.get("unfreeze_model", False) and not kwargs.get("adapter_config"):
                raise ValueError(
                    f"weight_config.params.weight is {regularizer.weight.weight} but model.params.unfreeze_model is false: nothing that the term could "
                    "hold still is being tuned. Set unfreeze_model: true (or give an adapter_config), or weight: 0."
                )
            if personalization_config is None and regularizer.conditioning.needs_concept:
                raise ValueError(f"{regularizer.conditioning.describe()} needs a concept to be near to, and there is no personalization_config")
            regularizer.bind(words_of(personalization_config))
        super().__init__(first_stage_config, cond_stage_config, personalization_config, *args, **kwargs)
        if regularizer.on and self.model.conditioning_key not in ("crossattn", "hybrid"):
            raise ValueError(f"the locality term needs a text condition: conditioning_key is {self.model.conditioning_key!r}; expected crossattn or hybrid")
        self.regularizer = regularizer
        self._base = kwargs.get("ckpt_path")
        self._networks = {"unet_config": plain(kwargs.get("unet_config")), "cond_stage_config": plain(cond_stage_config)}
        self._captions: Optional[List[str]] = None
        self._waits_for_word = False

    # -- a run starts ----------------------------------------------------------------------------------------------------------------

    def setup(self, stage: Optional[str] = None) -> None:
        super().setup(stage)
        if stage not in (None, "fit"):
            return
        if self.regularizer.on and not self.regularizer.ready:  # a second fit keeps the first one's θ₀
            self._waits_for_word = self.regularizer.needs_fixed_word and self._word_is_fixed_later()
            if self._waits_for_word:
                self.regularizer.theta_hash = self._theta_hash()
                logger.info("locality term: what it stores near the concept is made when the word is fixed, at the start of the second phase")
            else:
                self._take_theta_0(self._concept_moves())
        if self.global_rank == 0:
            logger.info(self.describe())

    def _word_is_fixed_later(self) -> bool:
        """Whether the run has a first phase for the word alone, after which it no longer learns (`main.ModeSwapCallback`)."""
        swaps = (getattr(callback, "train_embeddings_after", None) is False for callback in trainer_part(self, "callbacks") or ())
        return self._concept_moves() and not self._words_grow() and any(swaps)

    def _concept_moves(self) -> bool:
        return self._words_grow() or any(p.requires_grad for p in self._concept().parameters())

    def _words_grow(self) -> bool:
        return bool(getattr(self._concept(), "progressive_words", False)) and self._concept().max_vectors_per_token > 1

    def _concept(self) -> nn.Module:
        return getattr(self, "embedding_manager", None) or nn.Module()

    def _theta_hash(self) -> str:
        if not self._base:
            raise ValueError("the locality term holds a network to its base checkpoint, and none was given: name it with --actual_resume, or set weight: 0")
        apart = getattr(getattr(self, "adapters", None), "keys", ())  # zero now, and random in part
        named = {key: value for key, value in self.state_dict().items() if key.startswith(THETA) and not key.endswith("position_ids") and key not in apart}
        return hash_tensors(named)

    def _take_theta_0(self, concept_moves: bool) -> None:
        theta_hash = self._theta_hash()
        if self._waits_for_word and theta_hash != self.regularizer.theta_hash:
            raise ValueError(
                "the networks are no longer those of the base checkpoint, so what the locality term stores near the concept cannot be made: the run that was "
                "resumed had no such term in its first phase. Start a new run, or take teacher_config: FrozenCopy."
            )
        strategy = trainer_part(self, "strategy", "training_type_plugin")
        device = torch.device(getattr(strategy, "root_device", self.device))
        self.to(device)  # where Lightning will move it next
        cards = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cards), in_eval_mode(self), torch.no_grad(), torch.autocast(device.type, enabled=False):
            self._require_text()
            wait = getattr(strategy, "barrier", lambda: None)
            facts = {
                **self._networks, "parameterization": self.parameterization, "latent": [self.channels, self.image_size],
                "schedule": hash_tensors({"alphas_cumprod": self.alphas_cumprod}),
            }  # fmt: skip
            start = Start(
                self, theta_hash, facts, self.regularizer.seed, device, self.global_rank, wait,
                hybrid=self.model.conditioning_key == "hybrid", concept_moves=concept_moves,
                concept_hash=hash_tensors(dict(self._concept().named_parameters())), words_grow=self._words_grow(),
            )  # fmt: skip
            self.regularizer.prepare(start)
        self._waits_for_word = False

    def _require_text(self) -> None:
        try:
            c = self.encode_prompts([""])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the locality term needs a text condition: cond_stage_key {self.cond_stage_key!r} cannot encode a prompt ({error})") from error
        if not isinstance(c, Tensor) or c.ndim != 3:
            raise ValueError(f"the locality term needs a text condition (B, L, d): a prompt is encoded as {getattr(c, 'shape', type(c).__name__)}")

    def describe(self) -> str:
        """One line: whether the term is on, what it asks, where and how often."""
        return self.regularizer.describe()

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.regularizer.on and self.global_rank == 0:
            acted = self.regularizer.acted
            logger.log(logging.INFO if acted else logging.WARNING, "locality term: it acted in %d of %d optimiser steps", acted, self.global_step)

    # -- a batch ---------------------------------------------------------------------------------------------------------------------

    def get_input(self, batch: Any, k: str, return_first_stage_outputs: bool = False, force_c_encode: bool = False, cond_key: Optional[str] = None,
                  return_original_cond: bool = False, bs: Optional[int] = None) -> Any:  # fmt: skip
        """LatentDiffusion's; where it encodes the captions itself, they are remembered."""
        ask = return_original_cond or (self.regularizer.on and not self.cond_stage_trainable)
        out = super().get_input(batch, k, return_first_stage_outputs, force_c_encode, cond_key, ask, bs)
        if ask:
            self._captions = as_texts(out[-1])
        return out if return_original_cond or not ask else out[:-1]

    def forward(self, x: Tensor, c: Any, *args: Any, **kwargs: Any) -> Any:
        """LatentDiffusion's; captions not yet encoded are remembered."""
        self._captions = as_texts(c) or self._captions
        try:
            return super().forward(x, c, *args, **kwargs)
        finally:
            self._captions = None

    def p_losses(self, x_start: Tensor, cond: Any, t: Tensor, noise: Optional[Tensor] = None) -> Any:
        """The original's loss and logs, and where it is due the term."""
        if not self._held():
            return super().p_losses(x_start, cond, t, noise=noise)
        noise = torch.randn_like(x_start) if noise is None else noise  # the draw that the original would make next
        split = "train" if self.training else "val"
        if not self.regularizer.due(self.global_step, self.training):
            loss, logs = super().p_losses(x_start, cond, t, noise=noise)
            logs.update({f"{split}/loss_original": loss.detach(), f"{split}/loss": loss.detach()})
            return loss, logs
        captions = self._captions if self._captions and len(self._captions) == len(t) else None
        batch = TrainingBatch(self.q_sample(x_start, t, noise), t, captions, cond.get("c_concat") if isinstance(cond, Mapping) else None)
        if self.training and self.regularizer.share_forward:
            probes = self.regularizer.draw(self, batch)
            with self.taking_along(*self._inputs(probes)) as answers:
                loss, logs = super().p_losses(x_start, cond, t, noise=noise)
            evaluated = probes, self._outputs(answers[0], probes)
        else:
            (loss, logs), evaluated = super().p_losses(x_start, cond, t, noise=noise), None
        term = self.regularizer(self, batch, self.global_step, self.training, evaluated)
        logs[f"{split}/loss_original"] = loss.detach()
        loss = loss + term.loss
        logs.update({f"{split}/{name}": value for name, value in term.logs.items()})
        logs[f"{split}/loss"] = loss.detach()
        return loss, logs

    @contextmanager
    def taking_along(self, z_t: Tensor, t_probes: Tensor, of_probes: Any) -> Iterator[List[Tensor]]:
        """Inside, the next call of `apply_model`, whatever a subclass makes of it, takes these along, and the list gets its answer to them.

        z_t (n, C, h, w), t_probes (n,) and their condition: as `apply_model` takes them. Raises RuntimeError where there was no such call, or no graph.
        """
        answers: List[Tensor] = []
        alone = self.apply_model

        def together(x_noisy: Tensor, t: Tensor, cond: Any, *args: Any, **kwargs: Any) -> Any:
            once.close()  # further calls are alone
            answer = alone(torch.cat([x_noisy, z_t]), torch.cat([t, t_probes]), conditions_joined(cond, of_probes), *args, **kwargs)
            answers.append(answer[len(t) :])
            return answer[: len(t)]

        with ExitStack() as once:
            once.enter_context(method_replaced(self, "apply_model", together))
            yield answers
        if not answers or (torch.is_grad_enabled() and not answers[0].requires_grad):
            raise RuntimeError(
                "share_forward: true needs a p_losses whose first call of apply_model is its pass with gradients, and this model's is not: the locality term's "
                "probes cannot go along. Set share_forward: false in regularization_config.params."
            )

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Lightning's; but that repeats a step's value until the next one comes, so the term's go to the loggers in their own steps only."""
        term = {key: value for key, value in dictionary.items() if key in ("train/loss_locality", "train/locality_weight", "train/drift")}
        super().log_dict({key: value for key, value in dictionary.items() if key not in term}, *args, **kwargs)
        if term:
            super().log_dict(term, *args, **{**kwargs, "prog_bar": False, "on_step": False, "on_epoch": True})
            interval = trainer_part(self, "log_every_n_steps") or 1
            if (self.global_step + 1) % interval < self.regularizer.weight.every:  # the first due step of each interval
                for log in trainer_part(self, "loggers") or filter(None, [trainer_part(self, "logger")]):
                    log.log_metrics({f"{key}_step": float(value) for key, value in term.items()}, step=self.global_step)

    def _held(self) -> bool:
        """Whether the term can do anything: it is on, θ₀ is known, and something of θ is being tuned."""
        if not self.regularizer.on:
            return False
        tuned = any(p.requires_grad for module in self.tuned_modules().values() for p in module.parameters())
        if self.training and not self.regularizer.ready:
            if not self._waits_for_word:
                raise RuntimeError("the locality term has no θ₀ yet: training must begin with setup('fit'), as a Trainer does")
            if tuned:  # the first step of the second phase: θ is θ₀ still
                self._take_theta_0(self._concept_moves())
        return self.regularizer.ready and tuned

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.regularizer.ready:
            self.regularizer.begin_validation(self.global_step)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """LatentDiffusion's; its two passes meet the same probes."""
        if not self.regularizer.ready:
            return super().validation_step(batch, batch_idx)
        with self.regularizer.equal_validation_draws():
            return super().validation_step(batch, batch_idx)

    # -- what the regulariser asks of the model --------------------------------------------------------------------------------------

    def denoise(self, probes: NoisyLatents, theta: Optional[Dict[str, nn.Module]] = None) -> Tensor:
        """The output at the probes (B, C, h, w) through `apply_model`; `theta`: modules to take the model's places meanwhile.

        Where the probes ask for the unconditional output too, both come from one pass: (B, 2, C, h, w).
        """
        with replaced(self, theta or {}):
            return self._outputs(self.apply_model(*self._inputs(probes)), probes)

    def _inputs(self, probes: NoisyLatents) -> Tuple[Tensor, Tensor, Any]:
        """What `apply_model` takes."""
        z_t, t, c = probes.z_t, probes.t, probes.choice.encode(self.encode_prompts).to(probes.z_t.device)  # c: (B, L, d)
        concat = probes.c_concat
        if probes.unconditional:
            z_t, t, c = torch.cat([z_t] * 2), torch.cat([t] * 2), torch.cat([c, self.encode_prompts([""]).to(c).expand_as(c)])
            concat = None if concat is None else [torch.cat([part] * 2) for part in concat]
        return z_t, t, c if concat is None else {"c_crossattn": [c], "c_concat": concat}

    def _outputs(self, answer: Tensor, probes: NoisyLatents) -> Tensor:
        return torch.stack(answer.chunk(2), dim=1) if probes.unconditional else answer

    def encode_prompts(self, prompts: Sequence[str], edit_tokens: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """τ(p) (B, L, d) by the encoder in place. The concept's vectors are detached, and its manager does not notice."""
        with undisturbed(getattr(self, "embedding_manager", None), edit_tokens):
            return self.get_learned_conditioning(list(prompts))

    def draw_prior(self, prompts: Sequence[str], x_T: Tensor, ddim_steps: int, guidance_scale: float) -> Tensor:
        """z_0 (B, C, h, w) by DDIM (eta 0) from x_T (B, C, h, w)."""
        z_0, _, _ = self._sample(prompts, x_T, ddim_steps, guidance_scale)
        return z_0

    def draw_trajectories(self, prompts: Sequence[str], x_T: Tensor, ddim_steps: int, guidance_scale: float) -> Tuple[Tensor, Tensor]:
        """The states (B, S, C, h, w) that DDIM hands to the network, x_T the first, and their timesteps (S,), falling."""
        _, sampler, passed = self._sample(prompts, x_T, ddim_steps, guidance_scale, log_every_t=1)
        t = torch.as_tensor(sampler.ddim_timesteps).flip(0)
        return torch.stack(passed["x_inter"][:-1], dim=1), t.to(x_T.device)

    def _sample(self, prompts: Sequence[str], x_T: Tensor, ddim_steps: int, guidance_scale: float, **options: Any) -> Tuple[Tensor, DDIMSampler, Any]:
        unconditional = self.encode_prompts([""] * len(prompts)) if guidance_scale != 1.0 else None
        sampler = PriorSampler(self)
        z_0, passed = sampler.sample(
            ddim_steps, len(prompts), tuple(x_T.shape[1:]), conditioning=self.encode_prompts(prompts), eta=0.0, verbose=False, x_T=x_T.to(self.device),
            unconditional_guidance_scale=guidance_scale, unconditional_conditioning=unconditional, **options,
        )  # fmt: skip
        return z_0, sampler, passed

    def encode_training_pictures(self, n: int, seed: int) -> Tensor:
        """z_0 (n, C, h, w) of the first n items of the training set, drawn and encoded by the chance of `seed` alone."""
        items = self.training_items()
        if n < len(items) and not self.global_rank:
            logger.warning("locality term: TrainingPictures takes %d samples of %d items of the training set", n, len(items))
        z_0 = []
        with seeded(seed, self.device):
            for number in range(n):
                pictures = super(LatentDiffusion, self).get_input(default_collate([items[number % len(items)]]), self.first_stage_key)
                z_0.append(self.get_first_stage_encoding(self.encode_first_stage(pictures.to(self.device))).detach())
        return torch.cat(z_0)

    def training_items(self) -> Any:
        """The training set of the run. Raises ValueError where it is not known, or cannot be gone through by number."""
        known = getattr(trainer_part(self, "datamodule"), "datasets", None)
        items = known.get("train") if isinstance(known, Mapping) else None
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__") or not len(items):
            found = "none" if items is None else f"{type(items).__name__}{' without items' if hasattr(items, '__len__') else ''}"
            raise ValueError(
                f"latents_config: TrainingPictures needs the run's training set, with items that have numbers, and found {found}. Train with a data module "
                "that keeps it as datasets['train'], as main.DataModuleFromConfig does, or leave TrainingPictures out."
            )
        return items

    def tuned_modules(self) -> Dict[str, nn.Module]:
        """The network; and the text encoder, where that is or will be tuned."""
        tuned = {"model": self.model}
        adapters = getattr(self, "adapters", None)
        if adapters is not None:
            return {**tuned, "cond_stage_model": self.cond_stage_model} if adapters.of_text else tuned
        if self.cond_stage_trainable or any(p.requires_grad for p in self.cond_stage_model.parameters()):
            tuned["cond_stage_model"] = self.cond_stage_model
        return tuned

    # -- checkpoints -----------------------------------------------------------------------------------------------------------------

    def state_at_step(self) -> Dict[str, Any]:
        """LatentDiffusion's, where it has one, and the term's: what moves with every batch, under its keys in a checkpoint."""
        return {**getattr(super(), "state_at_step", dict)(), **self._state_of_term()}

    def _state_of_term(self) -> Dict[str, Any]:
        if self._waits_for_word:
            return {STATE_KEY: {"theta_hash": self.regularizer.theta_hash, WAITS: True}}
        return {STATE_KEY: self.regularizer.state_dict()} if self.regularizer.ready else {}

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(self._state_of_term())

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if not self.regularizer.ready and not self._waits_for_word:
            return
        state = checkpoint.get(STATE_KEY)
        if state is None:
            if self.regularizer.ready:
                logger.warning("the run to be resumed had no locality term: it holds the network to the base checkpoint from here on")
            return
        self.regularizer.check_base(state)
        if WAITS in state:  # nothing was drawn yet
            return
        if self._waits_for_word:
            self._take_word(checkpoint["state_dict"])
            self._take_theta_0(concept_moves=False)
        self.regularizer.load_state_dict(state, self.global_rank)

    def _take_word(self, state_dict: Mapping[str, Tensor]) -> None:
        """The vectors of a checkpoint, into a model that is otherwise the base still."""
        prefix = "embedding_manager."
        self._concept().load_state_dict({key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}, strict=False)


class PriorSampler(DDIMSampler):
    """DDIM whose tables lie where the model does, and not wherever the sampler would send them: the published one names a device."""

    def register_buffer(self, name: str, attr: Any) -> None:
        setattr(self, name, attr.to(self.model.device) if isinstance(attr, Tensor) else attr)


def build_regularizer(config: Any) -> LocalityRegularizer:
    """The term that `regularization_config` describes. Raises ValueError for an empty or another one."""
    if not config:
        raise ValueError(
            "regularization_config is empty: RegularizedLatentDiffusion needs target and params of a LocalityRegularizer. "
            "For a run without the term set weight: 0 there, or take ldm.models.diffusion.ddpm.LatentDiffusion."
        )
    built = build(config, instantiate_from_config)
    if not isinstance(built, LocalityRegularizer):
        raise ValueError(f"regularization_config.target gives a {type(built).__name__}; expected ldm.regularization.regularizer.LocalityRegularizer")
    return built


def words_of(personalization_config: Any) -> Words:
    """What the run calls its concept: the class word is the first placeholder's init word."""
    params = (personalization_config or {}).get("params") or {}
    initial = params.get("initializer_words") or [None]
    return Words(tuple(params.get("placeholder_strings") or ("*",)), initial[0], tuple(imagenet_templates_small))


def conditions_joined(cond: Any, of_probes: Any) -> Any:
    """The condition of a batch with that of the probes behind it. Raises ValueError for unlike shapes.

    Both are as `apply_model` takes them: (B, L, d), a list of such, or a dict of lists.
    """
    own, behind = as_lists(cond), as_lists(of_probes)
    own_shapes, shapes = ({key: [tuple(part.shape[1:]) for part in parts] for key, parts in condition.items()} for condition in (own, behind))
    if own_shapes != shapes:
        raise ValueError(
            f"the batch's condition has the shapes {own_shapes} and that of the locality term's probes {shapes}: they cannot go through the network "
            "together. Set share_forward: false in regularization_config.params."
        )
    joined = {key: [torch.cat(pair) for pair in zip(parts, behind[key])] for key, parts in own.items()}
    return joined["c_crossattn"][0] if isinstance(cond, Tensor) else joined


def as_lists(cond: Any) -> Dict[str, List[Tensor]]:
    """A condition by the parts' names, without those that are None."""
    named = cond if isinstance(cond, Mapping) else {"c_crossattn": cond}
    return {key: list(parts) if isinstance(parts, (list, tuple)) else [parts] for key, parts in named.items() if parts is not None}


def trainer_part(module: nn.Module, *names: str) -> Any:
    """The first of these parts that the module's trainer has (their names differ between versions of Lightning); None without a trainer."""
    trainer = vars(module).get("_trainer") or vars(module).get("trainer")
    return next((getattr(trainer, name) for name in names if hasattr(trainer, name)), None)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the generators of Python, NumPy and torch start from `seed`; afterwards they go on as if nothing had been drawn."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
