"""Communication is what the formulas of docs/sharding.md say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SCALARS = 1024  # bytes at most: the loss, norms


@pytest.mark.slow
def test_scaling(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "scaling.py", "--devices=1,4", "--steps=2"]
    subprocess.run([*command, f"--json={file}"], check=True)
    one, four = json.loads(file.read_text())
    for kind in ("replicated", "fsdp"):
        assert one[kind]["sent"] == 0
        results, expected = four[kind]["results"], four[kind]["expected"]
        assert results["all-gather"] == expected["all-gather"]
        assert 0 <= results["all-reduce"] - expected["all-reduce"] < SCALARS
        assert results["reduce-scatter"] == results["all-to-all"] == 0
        assert four[kind]["seconds"] > 0
    assert four["replicated"]["expected"]["all-gather"] == 0
    assert four["fsdp"]["held"] < four["replicated"]["held"] / 3.5


@pytest.mark.slow
def test_sharding_equality(tmp_path):
    """A sample; the script takes all mini workloads and 50 steps by default."""
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "sharding_equality.py", "--devices=1,2"]
    options = ["--steps=2", "--submissions=adamw", "--workloads=criteo1tb"]
    subprocess.run([*command, *options, f"--json={file}"], check=True)
    (result,) = json.loads(file.read_text())
    assert result["arrays_split"] > 0
    assert max(result["differences"].values()) < 1e-5
