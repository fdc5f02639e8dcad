"""Weights alone, without the optimiser's state: a file of about the base model's size that every tool loads.

    python scripts/export_weights.py logs/RUN model.safetensors --half
    python scripts/export_weights.py logs/LORA_RUN model.safetensors --adapter-strength 0.8
    python scripts/export_weights.py lora.safetensors model.safetensors --adapter-strength 0.8 --base-checkpoint sd-v1-4.ckpt

Low-rank adapters are merged into the model that they were trained on: W + strength · (alpha / rank) · B A, under the model's own keys.
"""
import argparse
import sys
from pathlib import Path

import torch

from ldm.checkpoints.export import export_weights


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="run folder, or one of its checkpoints; or a file of low-rank adapters (this project's or kohya's)")
    parser.add_argument("out", help="file to write, .safetensors or .ckpt")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="format of the weights; as they are unless given")
    formats.add_argument("--half", action="store_const", const="float16", dest="dtype", help="--dtype float16: half the size")
    parser.add_argument("--averaged", action="store_true", help="the averaged weights (use_ema) instead of the last ones")
    parser.add_argument("--adapter-strength", type=float, metavar="S", help="how much of the low-rank adapters is merged in; 1 unless given")
    parser.add_argument("--base-checkpoint", metavar="MODEL", help="the model that the adapters were trained on; a run names its own")
    parser.add_argument("--trust_pickle", action="store_true", help="read a checkpoint that holds more than weights: it can run code, so only your own")
    opt = parser.parse_args(argv)
    try:
        dtype = getattr(torch, opt.dtype) if opt.dtype else None
        count = export_weights(opt.source, opt.out, dtype=dtype, averaged=opt.averaged, trust_pickle=opt.trust_pickle,
                               adapter_strength=opt.adapter_strength, base=opt.base_checkpoint)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{opt.out}: {count} tensors, {Path(opt.out).stat().st_size / 2**20:,.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
