"""`metrics.jsonl`: what a run logs, one JSON object a logged step."""
from __future__ import annotations

import json
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.checkpoints import atomic_write


class JsonLinesLogger(Logger):
    """A Lightning logger that appends `{"step": …, "epoch": …, name: value, …}` to a file; a value that is not finite: null.

    What several callbacks log at one step becomes one line: the last line is written again until the next step comes.
    A resumed run drops the lines of the steps that it repeats.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        self.line: dict[str, float | int | None] = {}
        self.line_begins = 0
        self.opened = False

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        return self.path

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.opened:
            self.forget_from(step)
            self.opened = True
        values = {name: value if math.isfinite(value := float(number)) else None for name, number in metrics.items()}
        with open(self.path, "a+b") as file:
            if self.line.get("step") == step:
                file.truncate(self.line_begins)
            else:
                self.line = {"step": step}
                self.line_begins = file.seek(0, os.SEEK_END)
            self.line |= values
            file.write(json.dumps(self.line).encode() + b"\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configs of the run are saved as yaml; nothing to add."""

    def forget_from(self, step: int | None) -> None:
        """Drops the lines of this step and later ones, which an earlier start wrote after its last checkpoint (the last may be cut short)."""
        if not self.path.exists() or step is None:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and (json.loads(line)["step"] or 0) < step]
        if len(kept) < len(lines):
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
