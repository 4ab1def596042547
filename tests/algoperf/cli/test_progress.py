"""What the line of a trial says of its devices."""

import subprocess
import sys
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


def test_a_point_is_short():
    point = {"learning_rate": 0.0025199113871, "clip": 1.0, "recipe": "fp8", "n": 2}
    words = "learning_rate 0.00252, clip 1, recipe fp8, n 2"
    assert progress._point(point) == words


def test_a_reader_that_leaves_ends_no_trial():
    """As in `algoperf run ... | head -1`."""
    script = (
        "import os, sys\n"
        "from algoperf.cli.progress import ProgressReport\n"
        "report = ProgressReport()\n"
        "for line in range(3):\n"
        "    report._console.print(line)\n"
        "print('the trial ended', file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # before anything is written
        assert process.stderr.read().decode() == "the trial ended\n"
    assert process.returncode == 0
