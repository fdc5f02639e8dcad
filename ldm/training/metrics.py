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


class JsonLinesLogger(Logger):
    """A Lightning logger that appends `{"step": …, "epoch": …, name: value, …}` to a file; a value that is not finite: null.

    What several callbacks log at one step becomes one line: the last line is written again until the next step comes.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        self.line: dict[str, float | int | None] = {}
        self.line_begins = 0

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

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drops the lines of steps that a resumed run is about to repeat."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if line and json.loads(line)["step"] < step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)
