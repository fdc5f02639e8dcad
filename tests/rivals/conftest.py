"""One base checkpoint for all tests of this folder."""
import pytest

from tests.regularization.tiny_runs import write_base


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    return write_base(tmp_path_factory.mktemp("base") / "base.safetensors")
