"""What loading a checkpoint costs, time and memory, beside diffusers' single-file loader on the same file.

python benchmarks/load.py [FILE] [--config configs/stable-diffusion/v1-inference.yaml] [--rounds 5] [--ours-only]

FILE: a Stable Diffusion 1 checkpoint, .ckpt or .safetensors, of any precision; without one a random fp32 .safetensors of full size is made in a
temporary folder. Every load is measured in a process of its own, with the libraries imported and the file in the page cache; the two loaders
alternate, diffusers with a local config folder, so that it asks no hub. Both end with a float32 model on the CPU. The last line is one JSON object:
    time_ratio         our seconds over diffusers', medians
    peak_over_size     peak of anonymous memory (pages of the mapped file do not count) that the load added, over the model's size; ours
    process_peak_over_size   the same of the whole process, libraries included
    read_time_ratio    as time_ratio, with every weight read once after the load: what is put off counts here
    ours_s, diffusers_s, ours_read_s, diffusers_read_s, diffusers_peak_over_size
Linux only: memory is read from /proc.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
STATUS = Path("/proc/self/status")
BETWEEN_SAMPLES_S = 0.002
LOADERS = ("ours", "diffusers")


def anonymous_bytes() -> int:
    """Private memory of this process that no file backs."""
    return int(STATUS.read_text().split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Anonymous memory at the start and at its peak, read by a thread while the block runs."""
    seen = {"start": anonymous_bytes(), "peak": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(BETWEEN_SAMPLES_S):
            seen["peak"] = max(seen["peak"], anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen["peak"] = max(seen["peak"], anonymous_bytes())


def our_loader(path: Path, config: Path) -> Callable[[], dict[str, Tensor]]:
    """Loads the config's model; returns its tensors."""
    import ldm.models.autoencoder
    import ldm.modules.diffusionmodules.openaimodel
    import ldm.modules.embedding_manager
    import ldm.modules.encoders.modules  # noqa: F401 (what the yaml names is imported before the clock runs)
    from ldm.training.model import load_model_from_config

    return lambda: load_model_from_config(OmegaConf.load(config), str(path)).state_dict()


def diffusers_loader(path: Path, config_folder: Path) -> Callable[[], dict[str, Tensor]]:
    """Loads diffusers' pipeline; returns its tensors."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401 (imported before the clock runs)
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    def load() -> dict[str, Tensor]:
        pipeline = StableDiffusionPipeline.from_single_file(str(path), config=str(config_folder), local_files_only=True, torch_dtype=torch.float32)
        parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}

    return load


def write_diffusers_config(folder: Path) -> Path:
    """The config folder of Stable Diffusion 1 in diffusers' layout: its published numbers, and CLIP's vocabulary."""
    from ldm.modules.encoders.clip_text import VIT_L_14
    from ldm.modules.encoders.clip_tokenizer import clip_tokenizer

    widths = [320, 640, 1280, 1280]
    unet = {
        "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": widths,
        "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32, "act_fn": "silu",
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }  # fmt: skip
    vae = {
        "_class_name": "AutoencoderKL", "sample_size": 512, "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "act_fn": "silu", "scaling_factor": 0.18215,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False,
    }  # fmt: skip
    text = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **VIT_L_14}
    files = {
        "model_index.json": index, "unet/config.json": unet, "vae/config.json": vae, "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": scheduler,
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1))
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def measure(loader: str, path: Path, config: Path) -> dict[str, float]:
    """One load in this process: seconds, seconds with all weights read, bytes."""
    load = our_loader(path, config) if loader == "ours" else diffusers_loader(path, config)
    with watched() as memory:
        start = time.perf_counter()
        tensors = load()
        seconds = time.perf_counter() - start
    for tensor in tensors.values():
        tensor.sum()
    read = time.perf_counter() - start
    size = sum(tensor.nbytes for tensor in tensors.values())
    return {"seconds": seconds, "read": read, "added": memory["peak"] - memory["start"], "peak": memory["peak"], "size": size}


def in_a_process_of_its_own(loader: str, path: Path, config: Path) -> dict[str, Any]:
    words = [sys.executable, __file__, str(path), "--config", str(config), "--measure", loader]
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY).stdout
    return json.loads(printed.strip().split("\n")[-1])


def warm(path: Path) -> None:
    """Reads the file into the page cache."""
    with open(path, "rb") as file:
        while file.read(2**24):
            pass


def compare(path: Path, config: Path, config_folder: Path, rounds: int, ours_only: bool) -> dict[str, Any]:
    """Medians over the rounds."""
    configs = {"ours": config, "diffusers": write_diffusers_config(config_folder)}
    loaders = LOADERS[:1] if ours_only else LOADERS
    warm(path)
    runs: dict[str, list[dict[str, Any]]] = {loader: [] for loader in loaders}
    for k in range(rounds):
        for loader in loaders if k % 2 == 0 else loaders[::-1]:
            runs[loader].append(in_a_process_of_its_own(loader, path, configs[loader]))
            print(f"round {k + 1} {loader}: {runs[loader][-1]}", file=sys.stderr)
    middle = {loader: {key: statistics.median(run[key] for run in taken) for key in taken[0]} for loader, taken in runs.items()}
    ours = middle["ours"]
    result = {"peak_over_size": ours["added"] / ours["size"], "process_peak_over_size": ours["peak"] / ours["size"],
              "ours_s": ours["seconds"], "ours_read_s": ours["read"]}  # fmt: skip
    if not ours_only:
        theirs = middle["diffusers"]
        result |= {
            "time_ratio": ours["seconds"] / theirs["seconds"], "read_time_ratio": ours["read"] / theirs["read"],
            "diffusers_s": theirs["seconds"], "diffusers_read_s": theirs["read"], "diffusers_peak_over_size": theirs["added"] / theirs["size"],
        }  # fmt: skip
    return {key: round(value, 4) for key, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/stable-diffusion/v1-inference.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ours-only", action="store_true", help="without diffusers, for models that it does not know")
    parser.add_argument("--measure", choices=LOADERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.file, options.config)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            path = Path(folder) / "sd-v1.safetensors"
            maker = [sys.executable, str(REPOSITORY / "benchmarks/full_size.py"), str(path), "--config", str(options.config)]
            subprocess.run(maker, check=True, stdout=sys.stderr, cwd=REPOSITORY)
        print(json.dumps(compare(path.resolve(), options.config.resolve(), Path(folder) / "config", options.rounds, options.ours_only)))


if __name__ == "__main__":
    main()
