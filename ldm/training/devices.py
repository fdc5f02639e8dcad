"""What `--gpus`, `--accelerator` and `--devices` mean, and which device a run then uses."""
from __future__ import annotations

from typing import Any

import torch

# What Lightning 1 called accelerators, and configs saved then still do.
STRATEGIES = ("ddp", "ddp_spawn")
BFLOAT16_SINCE = 8                                             # compute capability of Ampere
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


def check_precision(trainer_config: dict[str, Any]) -> None:
    """Raises ValueError for a precision that the chosen device cannot compute in; whether it is one at all, the Trainer says."""
    precision, accelerator = str(trainer_config.get("precision")), trainer_config.get("accelerator")
    if accelerator == "cpu" and precision in ("16", "16-mixed"):
        raise ValueError(f"--precision {precision}: a CPU does not train in half precision (fp16). Take --precision bf16-mixed, or leave the flag out (fp32)")
    if accelerator in ("gpu", "cuda") and precision.startswith("bf16"):
        devices = trainer_config.get("devices")
        cards = devices if isinstance(devices, list) else range(devices if isinstance(devices, int) and devices > 0 else torch.cuda.device_count())
        for card in cards:
            major, minor = torch.cuda.get_device_capability(card)
            if major < BFLOAT16_SINCE:
                raise ValueError(f"--precision {precision}: card {card} ({torch.cuda.get_device_name(card)}) has compute capability {major}.{minor} and "
                                 f"computes in bfloat16 only from {BFLOAT16_SINCE}.0 on. Take --precision 16-mixed, or leave the flag out (fp32)")


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
