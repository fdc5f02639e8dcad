"""Write patches/0001-locality-regularizer.patch: the regulariser for those who stay on the published repository (`make patch`).

In `git am` form, from this repository's own files as they are, and byte for byte the same whoever runs it: author and date are fixed.
It adds files and changes none.

    python scripts/make_patch.py
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PATCH = REPOSITORY / "patches" / "0001-locality-regularizer.patch"
CARRIED = (
    "configs/latent-diffusion/txt2img-1p4B-finetune_unfrozen.yaml",
    "configs/latent-diffusion/txt2img-1p4B-finetune_unfrozen_reg.yaml",
    "configs/stable-diffusion/v1-finetune_unfrozen_reg.yaml",
    "ldm/models/diffusion/regularized.py",
    "ldm/prompts.py",
)
CARRIED_FOLDER = "ldm/regularization"

HEADER = """\
From {name} Mon Sep 17 00:00:00 2001
From: Latent diffusion with a locality regulariser <locality@example.invalid>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] Add RegularizedLatentDiffusion: tune on a concept, hold the rest
MIME-Version: 1.0
Content-Type: text/plain; charset=UTF-8
Content-Transfer-Encoding: 8bit

A term asks the tuned and the frozen network to agree away from the concept.
It is switched on by a yaml file's model.target and regularization_config;
configurations without them run as before. Only new files; MIT licence.
---
"""
FOOTER = "-- \nlatent-diffusion-locality\n\n"


def carried_files() -> list[str]:
    """Paths in the order of the patch, relative to the repository."""
    package = (path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / CARRIED_FOLDER).rglob("*.py"))
    return sorted([*CARRIED, *package])


def blob_id(content: bytes) -> str:
    """Git's name for a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def addition(path: str, content: bytes) -> str:
    """The part of a patch that makes this file. Raises ValueError for what a mailed patch cannot carry unchanged."""
    if not content.endswith(b"\n") or b"\r" in content or b"\0" in content:
        raise ValueError(f"{path}: expected text with \\n at the end of every line, the last included, and no other line ends")
    lines = content.decode("utf-8").split("\n")[:-1]
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\nindex {'0' * 40}..{blob_id(content)}\n--- /dev/null\n+++ b/{path}\n"
    return head + f"@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)


def patch_of(paths: Sequence[str]) -> str:
    """The whole patch of the files at these paths, as they are now."""
    additions = "".join(addition(path, (REPOSITORY / path).read_bytes()) for path in paths)
    return HEADER.format(name=hashlib.sha1(additions.encode()).hexdigest()) + "\n" + additions + FOOTER


def main() -> None:
    PATCH.write_bytes(patch_of(carried_files()).encode("utf-8"))
    print(f"{PATCH.relative_to(REPOSITORY)}: {len(carried_files())} new files")


if __name__ == "__main__":
    main()
