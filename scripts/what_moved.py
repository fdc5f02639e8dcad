"""Which weights two checkpoints of one model do not share, and how far they are apart: by group, and the largest of them by name.

    python scripts/what_moved.py BEFORE AFTER [--most 5]

For instance the base and the last.ckpt of a run. Of each group: how many of its tensors differ, the largest difference of a value, and
‖after − before‖ / ‖before‖. What only one of the two holds is counted apart: a run on a frozen base leaves that out of its checkpoints.
A word that only AFTER holds is compared with the vectors that it began with, where AFTER holds those.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ldm.checkpoints.reading import read_state_dict

GROUPS = {
    "learnt words": "embedding_manager.", "text encoder": "cond_stage_model.", "network": "model.diffusion_model.", "averages": "model_ema.",
    "first stage": "first_stage_model.",
}  # fmt: skip
OTHER = "tables and counters"
WORD, INITIAL = "embedding_manager.string_to_param_dict.", "embedding_manager.initial_embeddings."


class Moved(NamedTuple):
    """How far one tensor is from itself."""

    key: str
    largest: float                 # of the differences of its values
    distance: float                # ‖after − before‖²
    size: float                    # ‖before‖²
    since: str = ""                # with what it was compared, where not with the first checkpoint's


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


def learnt_since_the_start(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Moved]:
    """The words that only the second checkpoint holds, compared with the vectors that it says they began with."""
    starts = {WORD + key.removeprefix(INITIAL): start for key, start in after.items() if key.startswith(INITIAL)}
    alone = [word for word in starts if word in after and word not in before]
    return [moved(word, starts[word], after[word])._replace(since=" (from its initial vectors)") for word in alone]


def summary(rows: Sequence[Moved], what: str, since: str = "") -> str:
    """How many of these moved, and how far; empty for none at all."""
    differ = [row for row in rows if row.largest > 0]
    said = f"{len(differ)} of {len(rows)} {what} moved{since}" if rows else ""
    if differ:
        relative = (sum(row.distance for row in rows) / max(sum(row.size for row in rows), 1e-300)) ** 0.5
        said += f", a value by at most {max(row.largest for row in differ):.3g}, all by {relative:.3g} of their norm"
    return said


def report(before: Mapping[str, Tensor], after: Mapping[str, Tensor], most: int) -> list[str]:
    """The lines of the comparison."""
    lines = []
    for name in (*GROUPS, OTHER):
        keys = [key for key in {**before, **after} if group_of(key) == name]
        if not keys:
            continue
        rows = [moved(key, before[key], after[key]) for key in keys if key in before and key in after]
        words = learnt_since_the_start(before, after) if group_of(WORD) == name else []
        only = {"first": [key for key in keys if key not in after], "second": [key for key in keys if key not in before]}
        alone = [f"{len(lonely)} only in the {which}" for which, lonely in only.items() if lonely]
        since = f" from {'its' if len(words) == 1 else 'their'} initial vectors"
        lines.append(f"{name:<20} {'; '.join(filter(None, [summary(rows, 'tensors'), summary(words, 'words', since), *alone]))}")
        differ = sorted((row for row in [*rows, *words] if row.largest > 0), key=lambda row: -row.largest)
        lines += [f"    {row.largest:.3g}  {row.key}{row.since}" for row in differ[:most]]
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
