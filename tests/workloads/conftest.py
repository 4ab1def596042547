"""Makes the helpers of this folder importable; watches dropout."""

import sys
from pathlib import Path

import pytest

from workloads.common.dropout import Dropout

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def dropouts(monkeypatch):
    """The (rate, train) of every dropout that is called, in order."""
    seen = []
    original = Dropout.__call__

    def spy(self, x, train, rate):
        seen.append((rate, train))
        return original(self, x, train, rate)

    monkeypatch.setattr(Dropout, "__call__", spy)
    return seen
