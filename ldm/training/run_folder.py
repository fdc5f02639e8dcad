"""Where a run lives: LOGDIR/<data><time><_name><postfix>/{checkpoints, configs, images, testtube}."""
from __future__ import annotations

import datetime
import glob
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

TIME_FORMAT = "%Y-%m-%dT%H-%M-%S"
STARTED = "LDM_RUN_STARTED"                                    # environment variable: TIME_FORMAT of the first process


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run; nothing is created before `create`."""

    path: Path
    stamp: str                                               # data and time of this start: names the configs that it saves
    resume_from: Path | None = None                          # checkpoint whose training state is restored
    saved_configs: tuple[str, ...] = field(default=())       # of the earlier starts of a resumed run, in their order

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def configs(self) -> Path:
        return self.path / "configs"

    @property
    def name(self) -> str:
        return self.path.name

    def create(self) -> None:
        """Makes the folders. Raises ValueError where they cannot be written, or where another run has taken this one's since it was named."""
        try:
            self.path.mkdir(parents=True, exist_ok=self.resume_from is not None or not is_first())
            for folder in (self.checkpoints, self.configs):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.checkpoints, os.W_OK):
                raise PermissionError(13, "Permission denied", str(self.checkpoints))
        except FileExistsError as error:
            if not self.path.is_dir():
                raise ValueError(f"the run folder {self.path} cannot be made: {error.filename} is a file. Choose another one with --logdir.") from error
            raise ValueError(f"the run folder {self.path} was taken by another run of this name a moment ago. Start this one again.") from error
        except OSError as error:
            raise ValueError(f"the run folder {self.path} cannot be written: {error.strerror} ({error.filename}). Choose another one with --logdir.") from error


def time_of_start(now: datetime.datetime | None) -> str:
    """When the run began; processes that it started itself are told by it, so that all name the same folder."""
    if not is_first() and STARTED in os.environ:
        return os.environ[STARTED]
    os.environ[STARTED] = (now or datetime.datetime.now()).strftime(TIME_FORMAT)
    return os.environ[STARTED]


def is_first() -> bool:
    """Whether this is the process that names and makes the folder: rank 0 of all, by whatever launched them."""
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def new_run(logdir: str, *, data_root: str | None, base: list[str], name: str | bool, postfix: str, datadir_in_name: bool,
            now: datetime.datetime | None = None) -> RunFolder:
    """A folder named after data, time and run. Without a name the first config file gives it."""
    if name and name is not True:
        suffix = f"_{name}"
    elif base and name is not True:
        suffix = f"_{Path(base[0]).stem}"
    else:
        suffix = ""
    data = os.path.basename(os.path.normpath(data_root)) if data_root and datadir_in_name else ""
    now = now or datetime.datetime.now()
    while (path := Path(logdir) / f"{data}{time_of_start(now)}{suffix}{postfix}").exists() and is_first():
        now += datetime.timedelta(seconds=1)  # another run of that name started in the same second: it keeps its folder
    return RunFolder(path, data + time_of_start(now))


def resumed_run(resume: str, now: datetime.datetime | None = None) -> RunFolder:
    """The folder of an earlier run, given as that folder or as a checkpoint two levels below it.

    Raises FileNotFoundError where there is nothing to go on with.
    """
    given = Path(resume)
    if not given.exists():
        raise FileNotFoundError(f"--resume: cannot find {resume} (looked from {Path.cwd()})")
    if given.is_file():
        path, checkpoint = given.resolve().parent.parent, given
    else:
        path, checkpoint = Path(os.path.normpath(given)), given / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise FileNotFoundError(f"--resume: {given} holds no checkpoints/last.ckpt: the run was stopped before its first checkpoint. Start it anew.")
    time = time_of_start(now)
    saved = tuple(sorted(glob.glob(os.path.join(glob.escape(str(path)), "configs", "*.yaml"))))
    return RunFolder(path, data_of(saved) + time, checkpoint, saved)


def data_of(saved: tuple[str, ...]) -> str:
    """The data's name with which the saved configs' names begin: the next ones begin so too, then sorting by name is sorting by time."""
    last = re.match(r"(.*?)\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-", os.path.basename(saved[-1])) if saved else None
    return last.group(1) if last else ""
