"""Watches dropout."""

import pytest

from workloads.common.dropout import Dropout


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
