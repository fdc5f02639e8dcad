"""Runs of the training command, made for a comparison: a process of its own each, found again if it was finished before."""
from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.checkpoints import atomic_write
from ldm.data.images import list_pictures

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
CHARACTER_CONFIGS = {
    "unregularized": Path("configs/characters/finetune_unfrozen.yaml"),
    "regularized": Path("configs/characters/finetune_unfrozen_reg.yaml"),
}
CHARACTER_BASE = Path("assets/characters/model.safetensors")
CLASS_WORD = "character"


def tune(
    config: Path,
    base: Path,
    pictures: Path,
    *,
    logdir: Path,
    name: str,
    seed: int,
    init_word: str = CLASS_WORD,
    overrides: Sequence[str] = (),
    reuse: bool = False,
    log: Path | None = None,
) -> Path:
    """Runs the training command as a user would, and returns its run folder.

    reuse: a finished run of that name is returned instead if config, base, pictures, seed, overrides and the code that trains are the same to the byte.
    log: a file that takes what the command says, in the place of the terminal.
    Raises FileNotFoundError for files that are missing, ValueError if the command failed (it has said why) or left no run folder.
    """
    fingerprint = fingerprint_of(config, base, pictures, f"code {training_code()}", f"seed {seed}", f"word {init_word}", *overrides)
    marker = logdir / f"{name}.json"
    if reuse and (finished := _finished(marker, fingerprint)) is not None:
        logger.info("%s: found finished in %s", name, finished)
        return finished
    logdir.mkdir(parents=True, exist_ok=True)
    before = set(logdir.iterdir())
    command = [sys.executable, str(REPOSITORY / "main.py"), "--base", str(config), "-t", "--actual_resume", str(base), "--data_root", str(pictures)]
    command += ["--init_word", init_word, "-n", name, "-l", str(logdir), "-s", str(seed), "--no-test", *overrides]
    if log is None:
        code = subprocess.run(command, check=False).returncode
    else:
        with open(log, "w", encoding="utf-8") as said:
            code = subprocess.run(command, check=False, stdout=said, stderr=subprocess.STDOUT).returncode
    if code != 0:
        raise ValueError(f"the training command ended with exit code {code}{'' if log is None else f' ({log} has what it said)'}: {' '.join(command)}")
    new = [path for path in set(logdir.iterdir()) - before if (path / "checkpoints" / "last.ckpt").is_file()]
    if len(new) != 1:
        raise ValueError(f"the training command ended well, but left {len(new)} new run folders with a last.ckpt in {logdir}; expected one")
    with atomic_write(marker) as temporary:
        temporary.write_text(json.dumps({"fingerprint": fingerprint, "run": new[0].name}) + "\n", encoding="utf-8")
    return new[0]


def fingerprint_of(config: Path, base: Path, pictures: Path, *words: str) -> str:
    """SHA-256 over the bytes of the config, the base and the pictures, and the words."""
    digest = hashlib.sha256()
    for path in (config, base, *list_pictures(pictures)):
        digest.update(file_hash(path).encode())
    for word in words:
        digest.update(b"\0" + word.encode())
    return digest.hexdigest()


def training_code(root: Path = REPOSITORY) -> str:
    """SHA-256 over what the training command would run now: main.py and ldm, without its evaluation."""
    digest = hashlib.sha256()
    for path in [root / "main.py", *sorted((root / "ldm").rglob("*.py"))]:
        name = path.relative_to(root).as_posix()
        if not name.startswith("ldm/evaluation/"):
            digest.update(f"{name}\0{file_hash(path)}\0".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file. Raises FileNotFoundError that says from where it was looked for."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} (looked from {Path.cwd()})")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()


def _finished(marker: Path, fingerprint: str) -> Path | None:
    if not marker.is_file():
        return None
    known = json.loads(marker.read_text(encoding="utf-8"))
    run = marker.parent / known["run"]
    return run if known["fingerprint"] == fingerprint and (run / "checkpoints" / "last.ckpt").is_file() else None
