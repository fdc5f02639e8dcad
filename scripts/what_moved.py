"""Which weights two checkpoints of one model do not share, and how far they are apart: by group, and the largest of them by name.

    python scripts/what_moved.py BEFORE AFTER [--most 5]

For instance the base and the last.ckpt of a run. Of each group: how many of its tensors differ, the largest difference of a value, and
‖after − before‖ / ‖before‖. What only one of the two holds is counted apart: a run on a frozen base leaves that out of its checkpoints.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ldm.checkpoints.reading import read_state_dict

GROUPS = {
    "learnt words": "embedding_manager.", "text encoder": "cond_stage_model.", "network": "model.diffusion_model.", "averages": "model_ema.",
    "first stage": "first_stage_model.",
}  # fmt: skip
OTHER = "tables and counters"


class Moved(NamedTuple):
    """How far one tensor is from itself."""

    key: str
    largest: float                 # of the differences of its values
    distance: float                # ‖after − before‖²
    size: float                    # ‖before‖²


def group_of(key: str) -> str:
    """The part of the model that a key belongs to."""
    return next((name for name, prefix in GROUPS.items() if key.startswith(prefix)), OTHER)


def moved(key: str, before: Tensor, after: Tensor) -> Moved:
    """One tensor compared, in double precision."""
    a, b = before.double(), after.double()
    if a.shape != b.shape:
        raise ValueError(f"{key} is {list(a.shape)} in the first and {list(b.shape)} in the second: these are not checkpoints of one model")
    difference = b - a
    return Moved(key, difference.abs().max().item() if a.numel() else 0.0, difference.square().sum().item(), a.square().sum().item())


def report(before: Mapping[str, Tensor], after: Mapping[str, Tensor], most: int) -> list[str]:
    """The lines of the comparison."""
    lines = []
    for name in (*GROUPS, OTHER):
        keys = [key for key in {**before, **after} if group_of(key) == name]
        if not keys:
            continue
        rows = [moved(key, before[key], after[key]) for key in keys if key in before and key in after]
        differ = [row for row in rows if row.largest > 0]
        only = {"first": [key for key in keys if key not in after], "second": [key for key in keys if key not in before]}
        alone = [f"{len(lonely)} only in the {which}" for which, lonely in only.items() if lonely]
        said = f"{len(differ)} of {len(rows)} tensors moved" if rows else ""
        if differ:
            relative = (sum(row.distance for row in rows) / max(sum(row.size for row in rows), 1e-300)) ** 0.5
            said += f", a value by at most {max(row.largest for row in differ):.3g}, all by {relative:.3g} of their norm"
        lines.append(f"{name:<20} {'; '.join(filter(None, [said, *alone]))}")
        lines += [f"    {row.largest:.3g}  {row.key}" for row in sorted(differ, key=lambda row: -row.largest)[:most]]
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="checkpoint, .ckpt or .safetensors")
    parser.add_argument("after", help="checkpoint of the same model")
    parser.add_argument("--most", type=int, default=3, help="how many tensors of each group are named (3)")
    options = parser.parse_args(argv)
    try:
        lines = report(read_state_dict(options.before), read_state_dict(options.after), options.most)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
