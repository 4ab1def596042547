"""What the line of a trial says of its devices."""

from types import SimpleNamespace

import jax
import pytest

from algoperf.cli import progress
from algoperf.sharding import Placement


@pytest.mark.parametrize(
    ("count", "placement", "expected"),
    [
        (1, Placement(), ""),
        (1, Placement(microbatches=2), ", 2 microbatches"),
        (4, Placement(), ", 4 devices, replicated"),
        (4, Placement("fsdp", microbatches=2), ", 4 devices, fsdp, 2 microbatches"),
    ],
)
def test_the_layout_is_named_where_it_is_not_plain(
    count, placement, expected, monkeypatch
):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    config = SimpleNamespace(workload=SimpleNamespace(placement=placement))
    assert progress._layout(config) == expected
