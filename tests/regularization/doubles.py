"""A model small enough to compute by hand, with all that the regulariser asks of one."""
import torch
from torch import Tensor, nn

from ldm.regularization import (
    ClassPrompts,
    ConstantWeight,
    FrozenCopy,
    LocalityRegularizer,
    NoisyLatents,
    Start,
    TrainingBatch,
    TrainingLatents,
    Words,
)
from ldm.regularization.scopes import replaced

WORDS = Words(("*",), "cat", ("a photo of a {}", "a picture of the {}", "one {}"))
ALPHABET = 64


class ToyEncoder(nn.Module):
    """Letters to vectors: (B, 6, 3). `device` is where ids go, as in the real encoders."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(ALPHABET, 3)
        self.device = "cpu"

    def forward(self, prompts) -> Tensor:
        ids = torch.tensor([[ord(letter) % ALPHABET for letter in prompt[-6:].ljust(6)] for prompt in prompts], device=self.device)
        return self.table(ids)


class ToyNetwork(nn.Module):
    """z_t (B, 2, 4, 4), t (B,), c (B, 6, 3) -> (B, 2, 4, 4)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.word = nn.Linear(3, 2)

    def forward(self, z_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(self.conv(z_t) + self.word(c.mean(1))[:, :, None, None]) + 0.01 * t.view(-1, 1, 1, 1)


class ToyModel(nn.Module):
    num_timesteps, channels, image_size, parameterization = 20, 2, 4, "eps"

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model, self.cond_stage_model = ToyNetwork(), ToyEncoder()
        self.register_buffer("alphas_cumprod", torch.linspace(0.99, 0.01, self.num_timesteps), persistent=False)
        self.evaluations = 0
        self.priors = 0

    def q_sample(self, x_start, t, noise):
        abar = self.alphas_cumprod[t.long()].view(-1, 1, 1, 1)
        return abar.sqrt() * x_start + (1 - abar).sqrt() * noise

    def encode(self, prompts, edit_tokens=None):
        c = self.cond_stage_model(prompts)
        return c if edit_tokens is None else edit_tokens(c)

    encode_prompts = encode

    def denoise(self, probes: NoisyLatents, theta=None) -> Tensor:
        self.evaluations += 1
        with replaced(self, theta or {}):
            f = self.model(probes.z_t, probes.t, probes.choice.encode(self.encode))
            if not probes.unconditional:
                return f
            return torch.stack([f, self.model(probes.z_t, probes.t, self.encode([""] * len(f)))], dim=1)

    def draw_prior(self, prompts, x_T, ddim_steps, guidance_scale):
        self.priors += len(prompts)
        torch.randn(7)  # a real sampler draws from the global generator
        return 0.5 * x_T + self.encode(prompts).mean(dim=(1, 2)).view(-1, 1, 1, 1)

    def draw_trajectories(self, prompts, x_T, ddim_steps, guidance_scale):
        self.priors += len(prompts)
        t = torch.arange(1, self.num_timesteps, self.num_timesteps // ddim_steps).flip(0)
        return torch.stack([x_T * 0.9**number for number in range(len(t))], dim=1), t

    def tuned_modules(self):
        return {"model": self.model, "cond_stage_model": self.cond_stage_model}

    def take_a_step(self):
        """One optimiser step in an arbitrary direction."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.ones_like(parameter))


def start_of(model: ToyModel, **changes) -> Start:
    settings = {"theta_hash": "of the toy", "facts": {}, "seed": 1, "device": torch.device("cpu"), **changes}
    return Start(model, **settings)


def batch_of(size: int, seed: int = 5, captions=None) -> TrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    return TrainingBatch(torch.randn(size, 2, 4, 4, generator=generator), torch.randint(0, 20, (size,), generator=generator), captions)


def regularizer_of(model: ToyModel, *, words: Words = WORDS, start=None, **parts) -> LocalityRegularizer:
    """A prepared term; every part that is not given is the simplest one."""
    simplest = {"weight": ConstantWeight(2.0), "conditioning": ClassPrompts(), "latents": TrainingLatents(), "teacher": FrozenCopy()}
    regularizer = LocalityRegularizer(**{**simplest, **parts})
    regularizer.bind(words)
    regularizer.prepare(start or start_of(model))
    return regularizer
