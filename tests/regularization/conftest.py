"""One base checkpoint for all tests of this folder, and a cache of banks for each."""
import pytest

from tests.regularization.tiny_runs import write_base


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    return write_base(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(autouse=True)
def no_cache_but_the_tests_own(tmp_path, monkeypatch):
    """Nothing is found in, or left in, the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users-cache"))
