"""The commands under scripts/, imported as modules."""
from __future__ import annotations

import importlib.util
from types import ModuleType

from tests.golden.case import REPOSITORY


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
