"""The words in which the parts of the regulariser speak to each other, and to the model.

Letters, for the whole package: z_t noisy latent (B, C, h, w) · t timestep (B,) · c = τ(p) encoding of a prompt p (B, L, d) ·
e token embeddings before the text transformer (B, L, d) · f a network's output, f0 the frozen one's · θ the tuned, θ₀ the frozen network.
"""
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import torch
from torch import Tensor, nn


class PromptEncoder(Protocol):
    """τ of one of the two networks; whoever holds a choice calls it, once for each network."""

    def __call__(self, prompts: Sequence[str], edit_tokens: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """c of shape (B, L, d). `edit_tokens` may change e (B, L, d) once the placeholders' vectors are in, before positions are added."""


class Choice(Protocol):
    """What chance decided for n probes (a prompt, a point of a sphere): drawn once, encoded by both networks."""

    def __len__(self) -> int:
        """n."""

    def select(self, rows: Sequence[int]) -> "Choice":
        """The choices of these rows, in this order, repeats allowed."""

    def settled(self, encoder: PromptEncoder) -> "Choice":
        """These choices with what the frozen model's encoder must say written into them: asked for once, before either network encodes them."""

    def encode(self, encoder: PromptEncoder) -> Tensor:
        """c of shape (n, L, d)."""

    def facts(self) -> Any:
        """Plain values that tell this choice from any other: they enter the keys of caches."""


class Words(NamedTuple):
    """What the training run calls things."""

    placeholders: Tuple[str, ...]
    class_word: Optional[str]  # the first placeholder's init word
    templates: Tuple[str, ...]  # of the training captions; each has one {}


class TrainingBatch(NamedTuple):
    """The batch that the step trains on; other parts take device and dtype from it."""

    z_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,), int64
    captions: Optional[Tuple[str, ...]] = None  # B, where the condition is text
    c_concat: Optional[List[Tensor]] = None  # (B, ·, h, w) each, where the network takes such a condition too


class NoisyLatents(NamedTuple):
    """Probes: the points at which the two networks must agree."""

    z_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,), int64
    choice: Choice  # B of them
    c_concat: Optional[List[Tensor]] = None
    frozen: Optional[Tensor] = None  # f0 (B, C, h, w), where it was stored
    unconditional: bool = False  # whether the output for the empty prompt is asked for too: f and f0 are (B, 2, C, h, w) then

    def to(self, device: torch.device) -> "NoisyLatents":
        """The same probes with their tensors on `device`."""
        concat = None if self.c_concat is None else [part.to(device) for part in self.c_concat]
        frozen = None if self.frozen is None else self.frozen.to(device)
        return self._replace(z_t=self.z_t.to(device), t=self.t.to(device), c_concat=concat, frozen=frozen)


class Term(NamedTuple):
    """What one step adds."""

    loss: Tensor  # (), what is differentiated
    logs: Dict[str, Any]  # without train/ or val/


class Adapters(Protocol):
    """Low-rank adapters beside the layers of a model whose own weights stand still."""

    def off(self) -> ContextManager[None]:
        """Inside, the model computes what it would without them."""


class Model(Protocol):
    """What the parts ask of the model: `LatentDiffusion`'s own names, and those that `RegularizedLatentDiffusion` adds."""

    num_timesteps: int
    channels: int
    image_size: int
    parameterization: str  # what f is: "eps" or "x0"
    alphas_cumprod: Tensor  # (T,)
    adapters: Optional[Adapters]  # None, or no such attribute, where θ itself is tuned

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t of shape (B, C, h, w)."""

    def differentiable_decode_first_stage(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in about [-1, 1] of latents (B, C, h, w); with a graph to them, and none to the decoder's own weights."""

    def denoise(self, probes: NoisyLatents, theta: Optional[Dict[str, nn.Module]] = None) -> Tensor:
        """f at the probes (B, C, h, w), through `apply_model`; with the modules of `theta` in place of the model's own if given.

        Where the probes ask for the unconditional output too: (B, 2, C, h, w), f(z_t, t, τ("")) second.
        """

    def draw_prior(self, prompts: Sequence[str], x_T: Tensor, ddim_steps: int, guidance_scale: float) -> Tensor:
        """z_0 (B, C, h, w), sampled from x_T (B, C, h, w) by the model as it stands."""

    def draw_trajectories(self, prompts: Sequence[str], x_T: Tensor, ddim_steps: int, guidance_scale: float) -> Tuple[Tensor, Tensor]:
        """The states (B, S, C, h, w) that it meets on the way, x_T the first, and the timesteps (S,) with which it meets them."""

    def encode_prompts(self, prompts: Sequence[str], edit_tokens: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """τ of the encoder in place (`PromptEncoder`)."""

    def encode_training_pictures(self, n: int, seed: int) -> Tensor:
        """z_0 (n, C, h, w) of items of the training set, whatever the state of the run's own generators."""

    def tuned_modules(self) -> Dict[str, nn.Module]:
        """The modules that tuning may change, by attribute name."""


class Start(NamedTuple):
    """What is known when a run starts: θ is still θ₀, and lies on the device where it will train."""

    model: Model
    theta_hash: str  # SHA-256 over θ₀
    facts: Dict[str, Any]  # what else decides θ₀'s outputs; plain values
    seed: int
    device: torch.device
    rank: int = 0
    wait: Callable[[], Any] = lambda: None  # returns when every rank has come here
    hybrid: bool = False  # the network needs a c_concat beside the text
    concept_moves: bool = True  # the placeholder's vectors are being trained, or their number grows
    concept_hash: str = ""  # SHA-256 over the placeholder's vectors
    words_grow: bool = False  # a placeholder gets more vectors as training goes on


class Part:
    """A part of the regulariser. Each subclass states its default behaviour in its own few methods."""

    def describe(self) -> str:
        """Name and settings, for the log and for the keys of caches."""
        plain = (int, float, str)
        settings = (f"{name}={value}" for name, value in vars(self).items() if isinstance(value, plain) and not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(settings)})"
