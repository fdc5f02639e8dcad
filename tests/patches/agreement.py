"""The locality term and its gradient on one small model: the same question to both stacks.

Today's libraries and those of the published repository each answer it, and keep the answer as `data/term_by_STACK.npz`; the tests of each
read what the other has kept. Weights, batch, noise and base checkpoint come from numpy's legacy generator, whose numbers never change.
What a stack must answer with its own means: who is read from the yaml, the base checkpoint and its hash, the prompts drawn, the bank sampled,
t, the term, the gradient.

    python -m tests.patches.agreement    # writes this stack's answer
"""
import copy
import functools
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
import pytorch_lightning as pl
import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regularized import RegularizedLatentDiffusion
from tests.regularization.tiny_runs import PARAMS, term_config

OLD, NEW = "torch-1.10_lightning-1.5.9", "torch-2_lightning-2"
THIS, OTHER = (NEW, OLD) if int(pl.__version__.split(".")[0]) >= 2 else (OLD, NEW)
ENTRIES = 32  # of each gradient tensor, evenly spaced; beside them its norm
CAPTIONS = ["a photo of a *", "a rendering of the cool *"]
ISLAND = "ldm.regularization"
EMPTY = {"target": f"{ISLAND}.conditioning.EmptyPrompt"}
CATS = {"target": f"{ISLAND}.conditioning.ClassPrompts", "params": {"class_word": "cat"}}
OTHERS = {"prompts": ["a photo of a house", "two dogs", "a painting"]}
COPY = {"teacher": "FrozenCopy"}
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
    "between tokens": {"conditioning": ("EmbeddingInterpolation", {"alpha": [0.2, 0.8]}), "latents": "TrainingLatents", **COPY},
    "between encodings": {"conditioning": ("EncodingInterpolation", {"kind": "slerp"}), **COPY},
    "sphere": {"conditioning": ("Hypersphere", OTHERS), "latents": "NoiseLatents", **COPY},
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


def answer(case: str, base: str, cache_dir: Path) -> Dict[str, np.ndarray]:
    """R, its gradient after θ has moved a step from θ₀, and what led there."""
    parts = {"weight": 1.0, **CASES[case]}
    loss, loss_params = parts.pop("loss", ("NoiseMSE", {}))
    config = term_config(cache_dir, **parts)
    config["params"]["loss_config"] = {"target": f"{ISLAND}.losses.{loss}", "params": loss_params}
    for part in ("latents_config", "teacher_config"):
        if config["params"][part]["target"].endswith(("PriorSamples", "Trajectories", "CachedTeacher")):
            config["params"][part]["params"]["cache_dir"] = str(cache_dir)
    params = {**copy.deepcopy(PARAMS), "l_simple_weight": 0.0}  # what is differentiated is the term alone
    model = RegularizedLatentDiffusion(**params, ckpt_path=base, regularization_config=config)
    model.setup("fit")
    model.train()
    tuned = [(name, p) for name, p in model.named_parameters() if name.startswith(("model.", "cond_stage_model."))]
    with torch.no_grad():
        for name, parameter in tuned:
            parameter.add_(0.02 * numbers("step " + name, tuple(parameter.shape)))
        model.embedding_manager.string_to_param_dict["*"].add_(numbers("word", (1, 32)))
    torch.manual_seed(11)
    total, logs = model(numbers("x_start", (2, 4, 8, 8)), CAPTIONS, noise=numbers("noise", (2, 4, 8, 8)))
    total.backward()
    gradients = [(name, p.grad) for name, p in tuned if p.grad is not None]
    return {
        "R": np.float64(logs["train/loss_locality"]),
        "loss_simple": np.float64(logs["train/loss_simple"].detach()),
        "theta_hash": np.array(model.regularizer.theta_hash),
        "names": np.array([name for name, _ in gradients]),
        "gradient": np.concatenate([grad.flatten()[:: max(1, grad.numel() // ENTRIES)][:ENTRIES].numpy() for _, grad in gradients]),
        "norms": np.array([float(grad.norm()) for _, grad in gradients]),
    }


def answers() -> Dict[str, np.ndarray]:
    """Every case of this stack, as `CASE/QUANTITY`."""
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base.ckpt")
        return {f"{case}/{key}": value for case in CASES for key, value in answer(case, base, Path(folder) / "banks").items()}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else path_of(THIS)
    np.savez_compressed(target, **answers())
