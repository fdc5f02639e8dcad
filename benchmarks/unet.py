"""Our networks beside diffusers', with the same weights: time and memory, ours over theirs.

python benchmarks/unet.py [--size sd-v1|small] [--only unet,memory,decoder,sampler] [--threads 2] [--rounds 7]

Stable Diffusion v1's UNet (configs/stable-diffusion/v1-inference.yaml) against diffusers' UNet2DConditionModel with its default attention, its
first stage's decoder against AutoencoderKL's, and DDIMSampler on a LatentDiffusion against a loop of diffusers' UNet and DDIMScheduler, both
with guidance from one batch. Weights are random, the output layers that begin at zero too. The two take turns, and each round begins with the
other one, so that whatever else the machine does meets both; a ratio is the median of the rounds' ratios. The last line is one JSON object:
    forward_ratio, train_ratio   a forward pass, a forward and backward pass; the largest of the batch sizes
    memory_ratio                 peak memory above the weights of a forward and backward pass, each in a process of its own; likewise
    max_abs_diff                 between the two predictions, the largest
    decoder_ratio, decoder_memory_ratio, decoder_max_abs_diff    latents to a picture, batch 1
    sampler_ratio, sampler_max_abs_diff                          --steps steps of DDIM, one sample
and beside them what was measured: threads, sizes, seconds of our median, and the same ratios of processor time (…_cpu_ratio), which does not
count what other programs took away (but counts waiting threads). A GPU, where there is one, adds the UNet's and decoder's in float16 and
bfloat16 under keys that begin with the format's name. Memory is null where the system does not tell peaks (it is read from /proc).
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers_keys import first_stage_twin, unet_twin
from omegaconf import OmegaConf
from torch import Tensor, nn

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.util import instantiate_from_config

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "configs/stable-diffusion/v1-inference.yaml"
PARTS = ("unet", "memory", "decoder", "sampler")
SIDES = ("ours", "theirs")
# What a size changes in the yaml, and the sides of the latents: of the UNet's and decoder's, and of the sampler's.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], int, int]] = {
    "sd-v1": ({}, {}, 64, 32),
    "small": ({"model_channels": 64, "context_dim": 96}, {"ch": 32}, 32, 16),
}
TOKENS = 77
GUIDANCE = 7.5
FORGET_PEAK = Path("/proc/self/clear_refs")


def model_config(options: argparse.Namespace) -> dict[str, Any]:
    """The yaml's model at the size asked for."""
    params = OmegaConf.to_container(OmegaConf.load(CONFIG).model.params)
    unet, first_stage, *_ = SIZES[options.size]
    params["unet_config"]["params"].update(unet, use_checkpoint=options.checkpoint)
    params["first_stage_config"]["params"]["ddconfig"].update(first_stage)
    return params


def filled(network: nn.Module) -> nn.Module:
    """`network` with every layer at its class's own initialisation: those that begin at zero would hide what lies before them."""
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def unets(options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    config = model_config(options)["unet_config"]
    torch.manual_seed(0)
    ours = filled(instantiate_from_config(config)).to(options.device, dtype)
    theirs = unet_twin(ours, config["params"])
    if options.checkpoint:
        theirs.enable_gradient_checkpointing()
    return {"ours": ours, "theirs": theirs}


def first_stages(options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    config = model_config(options)["first_stage_config"]
    torch.manual_seed(0)
    ours = instantiate_from_config(config).to(options.device, dtype).eval()
    return {"ours": ours, "theirs": first_stage_twin(ours, config["params"]["ddconfig"]).eval()}


def unet_inputs(options: argparse.Namespace, batch: int, dtype: torch.dtype = torch.float32, side: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and context of a batch, the same for both."""
    draw = torch.Generator().manual_seed(batch)
    params = model_config(options)["unet_config"]["params"]
    side = side or SIZES[options.size][2]
    z = torch.randn(batch, params["in_channels"], side, side, generator=draw)
    c = torch.randn(batch, TOKENS, params["context_dim"], generator=draw)
    t = torch.randint(0, 1000, (batch,), generator=draw)
    return z.to(options.device, dtype), t.to(options.device), c.to(options.device, dtype)


def predict(side: str, network: nn.Module, z: Tensor, t: Tensor, c: Tensor) -> Tensor:
    return network(z, t, context=c) if side == "ours" else network(z, t, encoder_hidden_states=c).sample


def decode(side: str, first_stage: nn.Module, z: Tensor) -> Tensor:
    return first_stage.decode(z) if side == "ours" else first_stage.decode(z).sample


def train_pass(side: str, network: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """A forward and a backward pass, with the gradients of all weights."""
    prediction = predict(side, network, *inputs)
    F.mse_loss(prediction.float(), torch.zeros_like(prediction, dtype=torch.float32)).backward()
    network.zero_grad(set_to_none=True)


@contextmanager
def timed(seconds: list[tuple[float, float]], device: torch.device) -> Iterator[None]:
    """Appends what the body takes, by the clock and of the processor; waits for a GPU to have done it."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    start = time.perf_counter(), time.process_time()
    yield
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))


def take_turns(action: Callable[[str], Any], options: argparse.Namespace, name: str) -> dict[str, float]:
    """`action(side)` by both sides in turn, after a round to warm up: {ratio, cpu_ratio: medians of ours / theirs, seconds: our median}."""
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for k in range(options.rounds + 1):
        for side in SIDES if k % 2 else reversed(SIDES):
            with timed(seconds[side], options.device):
                action(side)
    ours, theirs = (seconds[side][1:] for side in SIDES)
    ratio, cpu_ratio = (round(statistics.median(a[clock] / b[clock] for a, b in zip(ours, theirs, strict=True)), 4) for clock in (0, 1))
    our_median, their_median = (statistics.median(wall for wall, _ in each) for each in (ours, theirs))
    print(f"{name}: ours {our_median:.4g} s, theirs {their_median:.4g} s, ratio {ratio:.4f}, of processor time {cpu_ratio:.4f}", flush=True)
    return {"ratio": ratio, "cpu_ratio": cpu_ratio, "seconds": round(our_median, 4)}


def difference(answer: Callable[[str], Tensor]) -> float:
    with torch.no_grad():
        ours, theirs = (answer(side).float() for side in SIDES)
    print(f"    the answers' standard deviation is {float(ours.std()):.3g}, their largest difference {float((ours - theirs).abs().max()):.2e}", flush=True)
    return float((ours - theirs).abs().max())


def measure_unet(options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    networks, found = unets(options, dtype), {"forward": [], "train": [], "difference": []}
    for batch in options.batches:
        inputs = unet_inputs(options, batch, dtype)
        found["difference"].append(difference(lambda side, i=inputs: predict(side, networks[side], *i)))
        with torch.no_grad():
            forward = take_turns(lambda side, i=inputs: predict(side, networks[side], *i), options, f"UNet forward, batch {batch}")
        train = take_turns(lambda side, i=inputs: train_pass(side, networks[side], i), options, f"UNet forward and backward, batch {batch}")
        found["forward"].append(forward)
        found["train"].append(train)
    worst = {f"{name}_{ratio}": max(each[ratio] for each in found[name]) for name in ("forward", "train") for ratio in ("ratio", "cpu_ratio")}
    seconds = {f"{name}_seconds": [each["seconds"] for each in found[name]] for name in ("forward", "train")}
    return {**worst, "max_abs_diff": max(found["difference"]), **seconds}


def measure_decoder(options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    networks = first_stages(options, dtype)
    z = decoder_input(options, dtype)
    with torch.no_grad():
        far = difference(lambda side: decode(side, networks[side], z))
        found = take_turns(lambda side: decode(side, networks[side], z), options, f"decoder to {8 * z.shape[-1]} px")
    return {**prefixed("decoder", found), "decoder_max_abs_diff": far, "decoder_pixels": 8 * z.shape[-1]}


def prefixed(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_{key}": value for key, value in found.items()}


def decoder_input(options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> Tensor:
    side = options.decoder_pixels // 8 if options.decoder_pixels else SIZES[options.size][2]
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0)).to(options.device, dtype)


def measure_sampler(options: argparse.Namespace) -> dict[str, Any]:
    """Ours through LatentDiffusion, whose encoder and first stage are left out: both loops begin at encodings and end at latents."""
    networks, side = unets(options), options.sampler_side or SIZES[options.size][3]
    for network in networks.values():
        network.eval()
    x_T, _, c = unet_inputs(options, 1, side=side)
    empty = unet_inputs(options, 2)[2][1:]
    config = model_config(options)
    tiny = {**config["unet_config"], "params": {**config["unet_config"]["params"], **SIZES["small"][0]}}
    nothing = {"target": "torch.nn.Identity"}
    config.update(unet_config=tiny, first_stage_config=nothing, cond_stage_config=nothing, personalization_config=None)
    model = instantiate_from_config({"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": config}).to(options.device).eval()
    model.model.diffusion_model = networks["ours"]
    betas = {"beta_start": config["linear_start"], "beta_end": config["linear_end"], "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)

    def sample(by: str) -> Tensor:
        if by == "ours":
            guided = {"unconditional_guidance_scale": GUIDANCE, "unconditional_conditioning": empty}
            return DDIMSampler(model).sample(options.steps, 1, x_T.shape[1:], c, x_T=x_T, verbose=False, **guided)[0]
        scheduler.set_timesteps(options.steps, device=options.device)
        x, both = x_T, torch.cat([empty, c])
        for t in scheduler.timesteps:
            without, with_c = predict(by, networks[by], scheduler.scale_model_input(torch.cat([x, x]), t), t, both).chunk(2)
            x = scheduler.step(without + GUIDANCE * (with_c - without), t, x).prev_sample
        return x

    with torch.no_grad():
        far = difference(sample)
        found = take_turns(sample, options, f"{options.steps} steps of DDIM, latents {side}×{side}")
    return {**prefixed("sampler", found), "sampler_max_abs_diff": far, "sampler_latents": side}


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of fresh processes, ours over theirs; medians of a few, since what a system counts as resident wavers."""
    if options.device.type == "cpu" and not FORGET_PEAK.exists():
        return {"memory_ratio": None, "decoder_memory_ratio": None}
    ratios, mebibytes = {}, {}
    trained = [f"train-{batch}" for batch in options.batches]
    for what in (*trained, "decode-1"):
        turns = [[peak_bytes(what, side, options) for side in SIDES] for _ in range(options.memory_turns)]
        ours, theirs = (statistics.median(side) for side in zip(*turns, strict=True))
        ratios[what], mebibytes[what] = ours / theirs, round(ours / 2**20)
        print(f"peak memory above the weights, {what}: ours {ours / 2**20:.0f} MiB, theirs {theirs / 2**20:.0f} MiB, ratio {ours / theirs:.4f}", flush=True)
    return {
        "memory_ratio": round(max(ratios[what] for what in trained), 4),
        "decoder_memory_ratio": round(ratios["decode-1"], 4),
        "memory_mib": [mebibytes[what] for what in trained],
    }


def peak_bytes(what: str, side: str, options: argparse.Namespace) -> int:
    words = [sys.executable, __file__, "--peak-of", what, side, "--size", options.size, "--threads", str(options.threads), "--device", str(options.device)]
    words += ["--checkpoint"] * options.checkpoint + ["--decoder-pixels", str(options.decoder_pixels)]
    return int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def print_peak(options: argparse.Namespace) -> None:
    """Prints by how many bytes this process grows above the weights, at most, in one pass."""
    what, side = options.peak_of
    job, batch = what.split("-")
    if job == "train":
        network, inputs = unets(options)[side], unet_inputs(options, int(batch))
    else:
        network, inputs = first_stages(options)[side], decoder_input(options)
    if options.device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(options.device)
        before = torch.cuda.memory_allocated(options.device)
    else:
        FORGET_PEAK.write_text("5")
        before = memory("VmRSS")
    if job == "train":
        train_pass(side, network, inputs)
    else:
        with torch.no_grad():
            decode(side, network, inputs)
    print((memory("VmHWM") if options.device.type == "cpu" else torch.cuda.max_memory_allocated(options.device)) - before)


def memory(name: str) -> int:
    """A figure of this process's memory, in bytes; Linux only."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="sd-v1")
    parser.add_argument("--only", default=",".join(PARTS), help=f"what to measure, of {','.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="measured turns of each side")
    parser.add_argument("--memory-turns", type=int, default=3, help="processes of each side whose memory is measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--checkpoint", action="store_true", help="gradient checkpointing in both UNets")
    parser.add_argument("--decoder-pixels", type=int, default=0, help="side of the decoded picture; 0: the size's own, 512 of sd-v1")
    parser.add_argument("--sampler-side", type=int, default=0, help="side of the sampled latents; 0: the size's own, 32 of sd-v1")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="batch sizes of the UNet's passes")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--peak-of", nargs=2, metavar=("WHAT", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    unknown = sorted(set(options.only.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"--only {options.only}: {', '.join(unknown)} unknown; expected some of {','.join(PARTS)}")
    if options.peak_of:
        print_peak(options)
        return

    measures = {"unet": measure_unet, "memory": measure_memory, "decoder": measure_decoder, "sampler": measure_sampler}
    result: dict[str, Any] = {name: getattr(options, name) for name in ("size", "threads", "rounds", "batches")} | {"device": str(options.device)}
    for part in options.only.split(","):
        result |= measures[part](options)
        if options.device.type != "cpu" and part in ("unet", "decoder"):
            for dtype in (torch.float16, torch.bfloat16):
                name = str(dtype).removeprefix("torch.")
                result |= prefixed(name, measures[part](options, dtype))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
