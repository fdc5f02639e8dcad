"""The locality term and its gradient on one small model: the same question to both stacks.

Today's libraries and those of the published repository each answer it, and keep the answer as `data/term_by_STACK.npz`; the tests of each
read what the other has kept. Weights, batch, noise and base checkpoint come from numpy's legacy generator, whose numbers never change.
What a stack must answer with its own means: who is read from the yaml, the base checkpoint and its hash, the prompts drawn, the bank sampled,
t, the term, the gradient. Every case is asked twice: as users run it, in single precision, where the order of additions shows; and with everything
that is computed in double precision, where it no longer does, and any other difference would.

    python -m tests.patches.agreement    # writes this stack's answer
"""
import contextlib
import copy
import functools
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Dict, List, Tuple
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regularized import PriorSampler, RegularizedLatentDiffusion
from tests.regularization.tiny_runs import PARAMS, term_config

OLD, NEW = "torch-1.10_lightning-1.5.9", "torch-2_lightning-2"
THIS, OTHER = (NEW, OLD) if int(pl.__version__.split(".")[0]) >= 2 else (OLD, NEW)
PRECISIONS = ("single", "double")
ENTRIES = 8  # of each gradient tensor, evenly spaced; beside them its norm
CAPTIONS = ["a photo of a *", "a rendering of the cool *"]
ISLAND = "ldm.regularization"
EMPTY = {"target": f"{ISLAND}.conditioning.EmptyPrompt"}
CATS = {"target": f"{ISLAND}.conditioning.ClassPrompts", "params": {"class_word": "cat"}}
OTHERS = {"prompts": ["a photo of a house", "two dogs", "a painting"]}
COPY = {"teacher": "FrozenCopy"}
PRIOR = {"target": f"{ISLAND}.latents.PriorSamples", "params": {"samples": 2, "ddim_steps": 2}}
PATHS = {"target": f"{ISLAND}.latents.Trajectories", "params": {"samples": 3, "ddim_steps": 4}}
CASES = {
    "class prompts, prior samples, cached": {},
    "class prompts, training latents, copy": {"latents": "TrainingLatents", **COPY},
    "empty prompt, noise at any t, cached": {"conditioning": "EmptyPrompt", "latents": ("NoiseLatents", {"any_t": True})},
    "mixture, guided prior samples, copy": {
        "conditioning": ("Mixture", {"parts": [EMPTY, CATS], "weights": [1, 3]}),
        "latents": ("PriorSamples", {"guidance_scale": 3.0}),
        "batch_size": 3,
        **COPY,
    },
    "trajectories, cached, Huber by min-SNR": {
        "latents": ("Trajectories", {"samples": 4, "ddim_steps": 4}),
        "loss": ("NoiseHuber", {"t_weights_config": {"target": f"{ISLAND}.losses.MinSNRWeights"}}),
    },
    "relative, by the bound's weights": {"loss": ("RelativeMSE", {"t_weights_config": {"target": f"{ISLAND}.losses.VLBWeights"}})},
    "two banks, guided outputs, cached": {"latents": ("MixedLatents", {"parts": [PRIOR, PATHS]}), "loss": "GuidedMSE"},
    "what pictures show": {"latents": "TrainingLatents", "loss": ("ImageSpace", {"lpips_weight": 0.0}), **COPY},
    "between tokens": {"conditioning": ("EmbeddingInterpolation", {"alpha": [0.2, 0.8]}), "latents": "TrainingLatents", **COPY},
    "between encodings": {"conditioning": ("EncodingInterpolation", {"kind": "slerp"}), **COPY},
    "sphere": {"conditioning": ("Hypersphere", OTHERS), "latents": "NoiseLatents", **COPY},
    "sphere, in the span": {"conditioning": ("Hypersphere", {"directions": "span", "centre": "midpoint", **OTHERS}), "latents": "TrainingLatents", **COPY},
    "sphere, isotropic": {"conditioning": ("Hypersphere", {"directions": "isotropic", "per_token": True}), "latents": "TrainingLatents", **COPY},
    "morphing": {"conditioning": ("PTIMorphing", OTHERS), "latents": "TrainingLatents", **COPY},
}


def path_of(stack: str) -> Path:
    return Path(__file__).parent / "data" / f"term_by_{stack}.npz"


@functools.lru_cache(maxsize=None)
def numbers(name: str, shape: Tuple[int, ...]) -> torch.Tensor:
    """Standard normal, fixed by the name. All callers share them: not to be changed."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32))


@torch.no_grad()
def write_base(path: Path) -> str:
    """A base checkpoint in which nothing is zero, so that everything depends on everything."""
    model = LatentDiffusion(**copy.deepcopy(PARAMS))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(numbers(name, tuple(parameter.shape)) / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(float(name.endswith("weight")) + 0.1 * numbers(name, tuple(parameter.shape)))  # norms scale by about 1
    torch.save({"state_dict": {key: value for key, value in model.state_dict().items() if not key.startswith("embedding_manager")}}, path)
    return str(path)


@contextlib.contextmanager
def everything_double():
    """Inside, what is single precision on purpose is double: what asks for float() (distances, points between encodings, norms), and a sampler's tables."""

    def register_buffer(self, name, attr):
        setattr(self, name, attr.double() if isinstance(attr, torch.Tensor) else attr)

    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double), mock.patch.object(PriorSampler, "register_buffer", register_buffer):
        yield


class InDouble(RegularizedLatentDiffusion):
    """The network in double precision; what chance draws in single precision reaches it as it is."""

    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        return super().apply_model(x_noisy.double(), t, cond, *args, **kwargs)


def model_of(case: str, base: str, cache_dir: Path, double: bool) -> RegularizedLatentDiffusion:
    """The case's model, θ a step away from θ₀."""
    parts = {"weight": 1.0, "loss": "NoiseMSE", **CASES[case]}
    if double and "teacher" not in parts:
        parts["teacher"] = ("CachedTeacher", {"dtype": "float64"})
    config = term_config(cache_dir, **parts)
    for part in ("latents_config", "teacher_config"):
        for source in [config["params"][part], *config["params"][part]["params"].get("parts", [])]:
            if source["target"].endswith(("PriorSamples", "Trajectories", "CachedTeacher")):
                source["params"]["cache_dir"] = str(cache_dir)
    params = {**copy.deepcopy(PARAMS), "l_simple_weight": 0.0}  # what is differentiated is the term alone
    model = (InDouble if double else RegularizedLatentDiffusion)(**params, ckpt_path=base, regularization_config=config)
    model = model.double() if double else model
    model.setup("fit")
    model.train()
    with torch.no_grad():
        for name, parameter in tuned(model):
            parameter.add_(0.02 * numbers("step " + name, tuple(parameter.shape)))
        model.embedding_manager.string_to_param_dict["*"].add_(numbers("word", (1, 32)))
    return model


def tuned(model: RegularizedLatentDiffusion) -> List[Tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if name.startswith(("model.", "cond_stage_model."))]


def answer(case: str, base: str, cache_dir: Path, double: bool) -> Dict[str, np.ndarray]:
    """R, its gradient after θ has moved a step from θ₀, and what led there."""
    model = model_of(case, base, cache_dir, double)
    torch.manual_seed(11)
    x_start, noise = (numbers(name, (2, 4, 8, 8)).to(model.betas) for name in ("x_start", "noise"))
    total, logs = model(x_start, CAPTIONS, noise=noise)
    total.backward()
    gradients = [(name, p.grad) for name, p in tuned(model) if p.grad is not None]
    return {
        "R": np.float64(logs["train/loss_locality"]),
        "loss_simple": np.float64(logs["train/loss_simple"].detach()),
        "theta_hash": np.array(model.regularizer.theta_hash),
        "names": np.array([name for name, _ in gradients]),
        "gradient": np.concatenate([grad.flatten()[:: max(1, grad.numel() // ENTRIES)][:ENTRIES].numpy() for _, grad in gradients]),
        "norms": np.array([float(grad.norm()) for _, grad in gradients]),
    }


def answers() -> Dict[str, np.ndarray]:
    """Every case of this stack in both precisions, as `PRECISION/CASE/QUANTITY`."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base.ckpt")
        for precision in PRECISIONS:
            with everything_double() if precision == "double" else contextlib.nullcontext():
                for case in CASES:
                    quantities = answer(case, base, Path(folder) / precision, double=precision == "double")
                    found.update({f"{precision}/{case}/{name}": value for name, value in quantities.items()})
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else path_of(THIS)
    np.savez_compressed(target, **answers())
