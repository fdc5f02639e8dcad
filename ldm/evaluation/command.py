"""What the commands of this package share: flags of sampling and counting, and how an error is told."""
from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from ldm.evaluation.comparison import Counts
from ldm.evaluation.sampling import Sampling


def add_run_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Flags that say which runs are looked at, and what they started from."""
    parser.add_argument("--base-checkpoint", type=Path, required=True, metavar="FILE", help="what the runs started from, .ckpt or .safetensors")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="FOLDER", help="run folders, in the order in which they are shown")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="one prompt a line; # begins a remark")
    parser.add_argument(
        "--trust-pickle", "--trust_pickle", action="store_true", help="read checkpoints that hold more than weights: they can run code, so only your own"
    )
    return parser


def add_device_flag(parser: argparse._ActionsContainer) -> None:
    """Where a command computes."""
    parser.add_argument("--device", metavar="NAME", help="by default the machine's accelerator, else cpu")


def add_measuring_flags(parser: argparse.ArgumentParser, defaults: Counts, *, first_seed: bool = True) -> argparse.ArgumentParser:
    """Flags that say how samples are drawn and how many of everything."""
    group = parser.add_argument_group("measuring")
    group.add_argument("--steps", type=int, metavar="N", help=f"DDIM steps ({Sampling.steps})")
    group.add_argument("--scale", type=float, metavar="S", help=f"guidance; by default that of the config's own previews, else {Sampling.guidance_scale:g}")
    group.add_argument("--batch-size", type=int, metavar="N", help=f"pictures at a time ({Sampling.batch_size}); changes rounding, not the pictures")
    if first_seed:
        group.add_argument("--seed", type=int, default=0, help="of the first sample of a prompt; the others follow")
    group.add_argument("--samples", type=int, default=defaults.samples, metavar="N", help=f"a prompt that classifiers read ({defaults.samples})")
    group.add_argument("--shown", type=int, default=defaults.shown, metavar="N", help=f"pictures a prompt on the page ({defaults.shown})")
    group.add_argument("--drift-draws", type=int, default=defaults.drift_draws, metavar="N", help=f"a prompt ({defaults.drift_draws})")
    group.add_argument("--loss-draws", type=int, default=defaults.loss_draws, metavar="N", help=f"for the denoising loss ({defaults.loss_draws})")
    add_device_flag(group)
    return parser


def counts_of(options: argparse.Namespace) -> Counts:
    """The counts asked for. Raises ValueError for one below 1."""
    counts = Counts(options.samples, options.shown, options.drift_draws, options.loss_draws)
    for name, count in vars(counts).items():
        if count < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {count}; it must be at least 1")
    return counts


def run_command(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> int:
    """Parses the words, runs the command, returns its exit code. One line on stderr says what went wrong; `--debug`, which every command has, shows where.

    A KeyboardInterrupt may carry words, which are shown.
    """
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        main(options)
    except KeyboardInterrupt as stop:
        sys.stderr.write("\n" + ": ".join(["stopped", *map(str, stop.args)]) + "\n")
        return 130
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0
