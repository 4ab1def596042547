"""What all tests share."""

import os
from pathlib import Path

import pytest

# Many tests compile the same programs: what took longer is compiled once, for all test
# processes and for the next time. Before jax is imported, which reads this.
CACHE = Path(__file__).resolve().parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    """Keeps tests out of the user's cache folder, and of each other's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
