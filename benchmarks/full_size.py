"""Random checkpoints of a model's full size: its keys, shapes and formats, for trials where the published weights are not at hand.

python benchmarks/full_size.py OUT [--config configs/stable-diffusion/v1-inference.yaml | --manifest MANIFEST.json] [--dtype float32|float16|bfloat16]
    [--part first_stage_model] [--strip] [--averages] [--position-ids] [--words] [--lightning] [--bare] [--seed 0]

    python benchmarks/full_size.py sd-v1.safetensors                                     as the published ones: no learnt words, no averages
    python benchmarks/full_size.py sd-v1.ckpt --position-ids --averages --lightning      with all that a training run of the original leaves in a file
    python benchmarks/full_size.py vae.ckpt --part first_stage_model --strip             the first stage alone, under its own names

OUT is .safetensors, .ckpt or .pt. A config's model is laid out without memory for it; its noise tables are the real ones. A matrix is drawn
from N(0, 1 / columns), a norm's scale is 1, a bias 0.02 · N(0, 1): outputs stay finite. Takes memory of the file's size.
"""
from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm.checkpoints import atomic_write, save_weights
from ldm.checkpoints.construction import weights_to_come
from ldm.checkpoints.keys import EMA
from ldm.models.diffusion.noise_schedule import make_tables
from ldm.modules.diffusionmodules.util import make_beta_schedule
from ldm.util import instantiate_from_config

REPOSITORY = Path(__file__).resolve().parents[1]
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
NO_PART_OF_A_BASE = ("personalization_config", "adapter_config", "regularization_config", "ckpt_path", "ignore_keys", "unfreeze_model")
# Of a run of the published code; plain values, as they stand in its files beside the weights.
BAGGAGE = {"epoch": 6, "global_step": 470000, "pytorch-lightning_version": "1.4.2", "callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
SD_BETAS = {"linear_start": 0.00085, "linear_end": 0.012}


def layout_of_config(path: str | Path) -> dict[str, Tensor]:
    """The state dict of the yaml's model, without learnt words: parameters on the meta device, buffers with their values."""
    model = OmegaConf.to_container(OmegaConf.load(path).model)
    params = {key: value for key, value in model["params"].items() if key not in NO_PART_OF_A_BASE}
    for part in ("first_stage_config", "cond_stage_config"):
        if isinstance(params.get(part), dict):
            params[part] = without_files(params[part])
    target = model["target"].replace("regularized.RegularizedLatentDiffusion", "ddpm.LatentDiffusion")
    with weights_to_come():
        return instantiate_from_config({"target": target, "params": params}).state_dict()


def without_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config without weights and vocabulary of its own, which its layout does not depend on."""
    params = {key: value for key, value in (config.get("params") or {}).items() if key != "ckpt_path"}
    if config["target"].endswith(".BERTEmbedder"):
        params["use_tokenizer"] = False
    return {"target": config["target"], "params": params}


def layout_of_manifest(path: str | Path) -> dict[str, Tensor]:
    """The tensors that a manifest lists (`keys`: name → shape, dtype), on the meta device; noise tables with the values of Stable Diffusion."""
    content = json.loads(Path(path).read_text())
    keys = content.get("keys", content)
    layout = {key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta") for key, entry in keys.items()}
    if "betas" in layout:
        tables = make_tables(make_beta_schedule("linear", len(layout["betas"]), **SD_BETAS))
        layout |= {key: table for key, table in tables._asdict().items() if key in layout}
    return {key: positions(value.shape[-1]) if key.endswith("position_ids") else value for key, value in layout.items()}


def positions(length: int) -> Tensor:
    """0 … length - 1 as (1, length), which older text towers keep."""
    return torch.arange(length)[None]


def drawn(key: str, like: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A tensor of that shape; floats of `dtype`."""
    if like.ndim >= 2:
        value = torch.empty(like.shape).normal_(generator=generator).div_(math.sqrt(like[0].numel()))
    elif key.endswith("weight"):
        value = torch.ones(like.shape)
    else:
        value = 0.02 * torch.empty(like.shape).normal_(generator=generator)
    return value.to(dtype if like.is_floating_point() else like.dtype)


def filled(layout: Mapping[str, Tensor], dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """The layout with data."""
    generator = torch.Generator().manual_seed(seed)
    formats = {key: dtype if value.is_floating_point() else value.dtype for key, value in layout.items()}
    return {key: drawn(key, value, generator, dtype) if value.is_meta else value.to(formats[key]) for key, value in layout.items()}


def with_extras(tensors: dict[str, Tensor], options: argparse.Namespace) -> dict[str, Tensor]:
    """The tensors, and what else was asked for."""
    if options.words:
        width = next(value.shape[1] for key, value in tensors.items() if key.endswith("attn2.to_k.weight"))
        tensors |= {f"embedding_manager.{name}.*": torch.zeros(1, width) for name in ("string_to_param_dict", "initial_embeddings")}
    if options.position_ids:
        tensors[POSITION_IDS] = positions(77)
    if options.averages:
        tensors |= {EMA + key.removeprefix("model.").replace(".", ""): value.clone() for key, value in tensors.items() if key.startswith("model.")}
        tensors |= {f"{EMA}decay": torch.tensor(0.9999), f"{EMA}num_updates": torch.tensor(470000, dtype=torch.int32)}
    return tensors


def write(tensors: Mapping[str, Tensor], out: Path, *, lightning: bool, bare: bool) -> None:
    """The file, in the form asked for."""
    if lightning or bare:
        with atomic_write(out) as temporary:
            torch.save(dict(tensors) if bare else {"state_dict": dict(tensors), **BAGGAGE}, temporary)
    else:
        save_weights(out, tensors)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/stable-diffusion/v1-inference.yaml")
    parser.add_argument("--manifest", type=Path, help="a list of keys, shapes and dtypes, in the place of a config")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--part", help="only keys below this name, e.g. first_stage_model")
    parser.add_argument("--strip", action="store_true", help="without the part's name")
    parser.add_argument("--averages", action="store_true", help="with model_ema.*")
    parser.add_argument("--position-ids", action="store_true", help="with the text tower's position_ids, as older libraries store them")
    parser.add_argument("--words", action="store_true", help="with embedding_manager.*, as the original's fine-tuned checkpoints")
    parser.add_argument("--lightning", action="store_true", help="with what Lightning writes beside the weights (not .safetensors)")
    parser.add_argument("--bare", action="store_true", help="without `state_dict` around the tensors (not .safetensors)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.out.suffix == ".safetensors" and (options.lightning or options.bare):
        parser.error("--lightning and --bare are forms of a .ckpt or .pt")
    layout = layout_of_manifest(options.manifest) if options.manifest else layout_of_config(options.config)
    if options.part:
        prefix = options.part.rstrip(".") + "."
        layout = {key.removeprefix(prefix) if options.strip else key: value for key, value in layout.items() if key.startswith(prefix)}
        if not layout:
            parser.error(f"no key begins with {prefix}")
    tensors = with_extras(filled(layout, getattr(torch, options.dtype), options.seed), options)
    write(tensors, options.out, lightning=options.lightning, bare=options.bare)
    numbers = sum(value.numel() for value in tensors.values())
    print(f"{options.out}: {len(tensors)} tensors, {numbers:,} numbers, {options.out.stat().st_size / 2**20:,.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
