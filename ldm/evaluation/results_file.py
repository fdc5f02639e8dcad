"""The rows of the study: one a character, seed and model, kept in a JSON file that can be gone on with.

Numbers come from the functions of `comparison` and `metrics`; what the rows say together is in `bars`.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.checkpoints import atomic_write
from ldm.data.characters import NEW_CHARACTERS, Character
from ldm.evaluation.bars import summary_of
from ldm.evaluation.comparison import CLASS_PROMPT, Counts, character_numbers
from ldm.evaluation.metrics import Reading, attribute_frequencies
from ldm.evaluation.sampling import Sampling

Row = dict[str, Any]
Key = tuple[str, int, str]  # concept, seed, model


def named_character(name: str) -> Character:
    """The new character "SPLIT/NUMBER", as "dev/0".

    Raises ValueError for a name that is none.
    """
    split, _, number = name.partition("/")
    if split not in NEW_CHARACTERS:
        raise ValueError(f"character {name!r}: no split {split!r}; there are {', '.join(NEW_CHARACTERS)}")
    known = NEW_CHARACTERS[split]
    if not number.isdigit() or int(number) >= len(known):
        raise ValueError(f"character {name!r}: expected {split}/0 … {split}/{len(known) - 1}")
    return known[int(number)]


def concept_name(character: Character) -> str:
    """What a row calls it, as "pink-star-boxy-open": no two new characters share their eyes and colour."""
    return "-".join((character.colour, character.eyes, character.body, character.mouth))


def make_row(
    character: Character, split: str, seed: int, model: str, *, network: Mapping[str, float], readings: Mapping[str, Sequence[Reading]], counts: Counts
) -> Row:
    """One row, its keys in the order of the file. network: drift on both groups of prompts, and the denoising loss."""
    read = character_numbers(readings, character)
    return {
        "concept": concept_name(character),
        "seed": seed,
        "model": model,
        "trait_rate_class": read["trait_rate_class"],
        "trait_rate_concept": read["trait_rate_concept"],
        "drift_class": network["drift_class"],
        "drift_heldout": network["drift_heldout"],
        "denoising_loss": network["denoising_loss"],
        "edit_hat": read["edit_hat"],
        "edit_background": read["edit_background"],
        "attribute_frequencies_class": attribute_frequencies(readings[CLASS_PROMPT]),
        "samples_per_prompt": counts.samples,
        "loss_draws": counts.loss_draws,
        "split": split,
    }


def key_of(row: Row) -> Key:
    """What tells rows apart."""
    return row["concept"], row["seed"], row["model"]


class ResultsFile:
    """`{"rows": […], "summary": {split: …}}` on disk; written anew, whole, with every row that is added."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = []
        self.settings: dict[str, dict[str, str]] = {}

    def read(self) -> None:
        """Takes what is in the file; nothing where there is none. Raises ValueError for a file of another kind."""
        if not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.rows = list(content["rows"])
            self.settings = {split: dict(about["settings"]) for split, about in content["summary"].items()}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.path} is no results file of this study ({cause}); move it away, or name another with --out") from error

    def go_on_with(self, split: str, settings: Mapping[str, str]) -> None:
        """Rows of a split may be added to if they were measured in the same way.

        Raises ValueError that names what differs.
        """
        had = self.settings.get(split)
        differing = [name for name in settings if had is not None and had.get(name) != settings[name]]
        if differing and any(row["split"] == split for row in self.rows):
            raise ValueError(
                f"{self.path} holds rows of split {split} that were measured otherwise: {', '.join(differing)} differ. "
                "Rows of one split must be comparable: measure all of them again with --fresh, or name another file with --out."
            )
        self.settings[split] = dict(settings)

    def forget(self, split: str) -> None:
        """Drops the rows of a split."""
        self.rows = [row for row in self.rows if row["split"] != split]
        self.settings.pop(split, None)

    def has(self, key: Key) -> bool:
        return any(key_of(row) == key for row in self.rows)

    def add(self, row: Row) -> None:
        """Keeps a row, on disk too."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Writes rows and summaries, whole or not at all."""
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps({"rows": self.rows, "summary": self.summary()}, indent=1) + "\n", encoding="utf-8")

    def summary(self) -> dict[str, Any]:
        """What the rows of each split say together."""
        splits = list(dict.fromkeys(row["split"] for row in self.rows))
        return {split: summary_of([row for row in self.rows if row["split"] == split], self.settings.get(split, {})) for split in splits}


def settings_of_study(
    *, base_hash: str, config_hashes: Mapping[str, str], classifier_hash: str, sampling: Sampling, counts: Counts, prompts: Sequence[str]
) -> dict[str, str]:
    """Everything beside character and seed that decides about a row."""
    return {
        "base_sha256": base_hash,
        **{f"config_{role}_sha256": digest for role, digest in config_hashes.items()},
        "classifier_sha256": classifier_hash,
        "sampling": f"DDIM {sampling.steps} steps, eta 0, guidance {sampling.guidance_scale:g}",
        "counts": f"{counts.samples} samples a prompt, {counts.drift_draws} drift draws a prompt, {counts.loss_draws} loss draws",
        "drift_prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
    }
