"""Who may know whom. Each file belongs to one part; a part imports itself, what is named for it here, and nothing else of ours."""
from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.golden.case import REPOSITORY

# A file belongs to the part with the longest matching beginning.
PARTS = {
    "main": "main",
    "merge_embeddings": "scripts",
    "scripts": "scripts",
    "benchmarks": "scripts",
    "ldm.util": "util",
    "ldm.prompts": "prompts",
    "ldm.lr_scheduler": "lr_scheduler",
    "ldm.data": "data",
    "ldm.modules": "modules",
    "ldm.models.autoencoder": "autoencoder",
    "ldm.models.first_stage": "autoencoder",
    "ldm.models.adapters": "adapters",
    "ldm.models.diffusion.noise_schedule": "noise_schedule",
    "ldm.models.diffusion.conditioning": "formulas",
    "ldm.models.diffusion.objective": "formulas",
    "ldm.models.diffusion.sampling": "formulas",
    "ldm.models.diffusion.ddim": "samplers",
    "ldm.models.diffusion.plms": "samplers",
    "ldm.models.diffusion.ancestral": "samplers",
    "ldm.models.diffusion.previews": "samplers",
    "ldm.models.diffusion.tiles": "samplers",
    "ldm.models.diffusion.optim": "samplers",
    "ldm.models.diffusion.frozen_base": "ddpm",
    "ldm.models.diffusion.own_files": "ddpm",
    "ldm.models.diffusion.pixels": "ddpm",
    "ldm.models.diffusion.ddpm": "ddpm",
    "ldm.models.diffusion.regularized": "regularized",
    "ldm.rivals": "rivals",
    "ldm.regularization": "regularization",
    "ldm.checkpoints": "checkpoints",
    "ldm.training": "training",
    "ldm.evaluation": "evaluation",
}

# The way down: a part may import any part that stands further right.
CHAIN = [
    ["scripts"], ["main"], ["evaluation", "training"], ["regularized", "rivals"], ["ddpm", "adapters"], ["samplers"], ["formulas"],
    ["noise_schedule"], ["autoencoder"], ["modules"], ["util", "prompts"],
]  # fmt: skip
BESIDE_THE_CHAIN = {
    "scripts": {"data", "checkpoints", "lr_scheduler", "regularization"},
    "main": {"data", "checkpoints", "lr_scheduler"},
    "evaluation": {"data", "checkpoints", "regularization"},
    "training": {"data", "checkpoints", "lr_scheduler"},
    "regularized": {"regularization"},
    "ddpm": {"checkpoints"},
    "data": {"util", "prompts"},
}
# (file, what it imports): why.
EXCEPTIONS = {
    ("ldm.modules.embedding_manager", "ldm.checkpoints"): "save and load are methods of the manager, the format of the file is not",
    ("ldm.models.first_stage", "ldm.checkpoints"): "a first stage is built with ckpt_path, like ddpm",
    ("ldm.models.autoencoder", "ldm.checkpoints.construction"): "and without weights where the file has them",
    ("ldm.evaluation", "ldm.training.compose"): "a report reads a run's yaml files as the run itself composed them",
    ("ldm.checkpoints", "ldm.regularization.bank"): "the one function that hashes tensors; the island may import nothing of ours",
}
ISLAND_LIBRARIES = {"torch", "torchmetrics", "tqdm"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(path): path
    for pattern in ("main.py", "merge_embeddings.py", "scripts/**/*.py", "benchmarks/**/*.py", "ldm/**/*.py")
    for path in sorted(REPOSITORY.glob(pattern))
}


def part_of(name: str) -> str | None:
    matching = [begin for begin in PARTS if name == begin or name.startswith(begin + ".")]
    return PARTS[max(matching, key=len)] if matching else None


def imported_by(path: Path) -> set[str]:
    """Full names of modules and of what is taken from them, wherever in the file the import stands."""
    names = set()
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            # `from package import module` imports the module, `from module import name` the module that it names.
            names |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in FILES else source for alias in node.names}
    return names


def allowed_for(part: str) -> set[str]:
    level = next((index for index, parts in enumerate(CHAIN) if part in parts), None)
    below = {other for parts in CHAIN[level + 1 :] for other in parts} if level is not None else set()
    return {part} | below | BESIDE_THE_CHAIN.get(part, set())


def is_exception(name: str, target: str) -> bool:
    return any(
        (name == source or name.startswith(source + ".")) and (target == allowed or target.startswith(allowed + "."))
        for source, allowed in EXCEPTIONS
    )


@pytest.mark.parametrize("name", sorted(FILES))
def test_file_imports_only_what_its_part_may_know(name):
    part = part_of(name)
    packages = {"ldm", "ldm.models", "ldm.models.diffusion"}
    assert part or name in packages, f"{name} belongs to no part: give it its place in PARTS"
    own = {target for target in imported_by(FILES[name]) if target.split(".")[0] in ("ldm", "main", "scripts", "benchmarks", "merge_embeddings")}
    if name in packages:
        assert not own, "these packages are only folders"
        return
    strangers = sorted(f"{target} ({part_of(target)})" for target in own if part_of(target) not in allowed_for(part) and not is_exception(name, target))
    assert not strangers, f"{part} may import {sorted(allowed_for(part))}, but {name} imports {strangers}"


@pytest.mark.parametrize("name", sorted(name for name in FILES if part_of(name) == "scripts") or ["none"])
def test_a_script_does_not_import_another(name):
    others = [target for target in imported_by(FILES[name]) if target in FILES and part_of(target) == "scripts"] if name in FILES else []
    assert not others, "what two scripts share lives in ldm"


def outside(name: str) -> set[str]:
    """Top-level packages from outside the project and the standard library."""
    tops = {target.split(".")[0] for target in imported_by(FILES[name])}
    return tops - set(sys.stdlib_module_names) - {"ldm", "main", "__future__"}


def files_of(*parts: str) -> list[str]:
    return sorted(name for name in FILES if part_of(name) in parts)


@pytest.mark.parametrize("name", files_of("regularization") or ["none"])
def test_the_regulariser_is_an_island(name):
    if name in FILES:
        assert outside(name) <= ISLAND_LIBRARIES


@pytest.mark.parametrize("name", files_of("modules", "data", "checkpoints"))
def test_building_blocks_know_no_lightning(name):
    assert not outside(name) & {"pytorch_lightning", "lightning", "lightning_fabric"}


def test_every_exception_is_used():
    used = {
        pair
        for pair in EXCEPTIONS
        for name in FILES
        if name == pair[0] or name.startswith(pair[0] + ".")
        if any(target == pair[1] or target.startswith(pair[1] + ".") for target in imported_by(FILES[name]))
    }
    assert used == set(EXCEPTIONS)
