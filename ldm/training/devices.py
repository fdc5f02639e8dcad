"""What `--gpus`, `--accelerator` and `--devices` mean, which device a run then uses, and whether it can compute in the `--precision` asked for."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# What Lightning 1 called accelerators, and configs saved then still do.
STRATEGIES = ("ddp", "ddp_spawn")
# Lightning's names of precisions, those of before version 2 among them.
FLOAT16, BFLOAT16 = ("16", "16-mixed"), ("bf16", "bf16-mixed")
NOT_FLOAT32 = ("16-true", "bf16-true", "64-true", "64")        # of the weights themselves
NO_GPU = (None, "", 0, "0", [], False)


def chosen_devices(trainer_config: dict[str, Any]) -> dict[str, Any]:
    """The Trainer arguments with `gpus` translated to `accelerator` and `devices`; without any of them: the CPU, as in the original.

    `"0,"` card 0 · `"0,1"` cards 0 and 1 · `2` two cards · `0` none · `-1` all. Raises ValueError for what cannot be had.
    """
    config = dict(trainer_config)
    if config.get("accelerator") in STRATEGIES:
        config.setdefault("strategy", config.pop("accelerator"))
    if "gpus" not in config:
        if "accelerator" not in config:
            config["accelerator"] = "cpu"
        if config["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(f"--accelerator {config['accelerator']}: this machine has no GPU that torch can use. Leave the flag out to train on the CPU.")
        if config["accelerator"] == "cpu":
            config.setdefault("devices", 1)
        return config
    clash = [name for name in ("accelerator", "devices") if name in config]
    if clash:
        raise ValueError(f"--gpus and --{clash[0]} both choose the device: give one of them")
    gpus = config.pop("gpus")
    if gpus in NO_GPU:
        return {**config, "accelerator": "cpu", "devices": 1}
    return {**config, "accelerator": "gpu", "devices": checked_cards(gpus)}


def check_precision(trainer_config: Mapping[str, Any]) -> None:
    """The model and the chosen device compute in the precision asked for. Raises ValueError; Lightning would quietly take another one, or stop in the first
    step: pictures come to the networks in float32 whatever their weights are in.

    trainer_config: with `accelerator`, as `chosen_devices` returns it, and `precision`, if given. Names that Lightning does not know are left to it.
    """
    given = trainer_config.get("precision")
    precision = str(given)
    if precision in NOT_FLOAT32:
        raise ValueError(f"--precision {given}: the networks keep their weights in float32, in which pictures, noise tables and learnt words are too. "
                         "Take --precision bf16-mixed, 16-mixed (on a GPU) or 32-true, or leave the flag out.")
    if trainer_config.get("accelerator") == "cpu" and precision in FLOAT16:
        raise ValueError(f"--precision {given}: a CPU trains in float32 or bfloat16, not in float16. Take --precision bf16-mixed, leave the flag out, "
                         "or train on a GPU (--gpus 0,).")
    if trainer_config.get("accelerator") in ("gpu", "cuda") and precision in BFLOAT16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"--precision {given}: this GPU does not compute in bfloat16. Take --precision 16-mixed, or leave the flag out.")


def checked_cards(gpus: Any) -> list[int] | int:
    """Card numbers, or how many cards. Raises ValueError where this machine lacks one."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = parsed_cards(gpus)
    if cards == -1:
        cards = list(range(there))
    wanted = cards if isinstance(cards, list) else list(range(cards))
    if not there:
        raise ValueError(f"--gpus {gpus} asks for {described(cards)}: this machine has no GPU that torch can use. "
                         "Leave --gpus out, or write --gpus 0, to train on the CPU.")
    missing = [card for card in wanted if card >= there]
    if missing:
        raise ValueError(f"--gpus {gpus} asks for {described(cards)}: this machine has {there} (numbers 0 to {there - 1})")
    return cards


def parsed_cards(gpus: Any) -> list[int] | int:
    """A list of card numbers where there is a comma (or a list), a count otherwise."""
    try:
        if isinstance(gpus, str) and "," in gpus:
            return [int(part) for part in gpus.split(",") if part.strip()]
        return [int(card) for card in gpus] if isinstance(gpus, (list, tuple)) else int(gpus)
    except (TypeError, ValueError):
        raise ValueError(f"--gpus {gpus}: expected `0,` (card 0), `0,1` (two cards), `2` (any two), `0` (none) or `-1` (all)") from None


def described(cards: list[int] | int) -> str:
    """In words, which cards are meant."""
    if isinstance(cards, list):
        return ("card " if len(cards) == 1 else "cards ") + ", ".join(map(str, cards))
    return f"{cards} card{'s' if cards > 1 else ''}"


def device_name(device: torch.device, count: int = 1) -> str:
    """The device in words, for the first lines of a run."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"{count} × {name}" if count > 1 else f"{name} ({device})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        unused = " (a GPU is there and not used: --gpus 0, takes it)" if torch.cuda.is_available() else ""
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}{unused}"
    return str(device)
