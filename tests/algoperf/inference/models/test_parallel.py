"""Tensor parallelism: the rule, and the same tokens on two devices."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from jax.sharding import Mesh, PartitionSpec

from algoperf.errors import UserError
from algoperf.inference.models import parallel
from algoperf.inference.models.shapes import find_shape

WHOLE, ROWS = PartitionSpec(), PartitionSpec("model")
COLUMNS = PartitionSpec(None, "model")


@pytest.mark.parametrize(
    ("path", "devices", "want"),
    [
        (("layers", "0", "query", "kernel"), 8, COLUMNS),
        (("layers", "0", "key", "kernel"), 8, COLUMNS),
        (("layers", "0", "key", "kernel"), 16, WHOLE),  # it has 8 heads of keys
        (("layers", "0", "gate", "kernel"), 16, COLUMNS),
        (("layers", "0", "up", "bias"), 2, ROWS),
        (("layers", "0", "out", "kernel"), 2, ROWS),
        (("layers", "0", "down", "kernel"), 2, ROWS),
        (("layers", "0", "down", "bias"), 2, WHOLE),
        (("layers", "0", "mlp_norm", "scale"), 2, WHOLE),
        (("embedding",), 2, ROWS),
        (("embedding",), 5, WHOLE),  # 128,256 tokens are no multiple of 5
    ],
)
def test_rule(path, devices, want):
    assert parallel.partition(find_shape("llama-3.2-1b"), path, devices) == want


def test_heads_that_cannot_be_split_are_an_error():
    three = types.SimpleNamespace(shape={"model": 3})
    with pytest.raises(UserError, match="no multiple of 3"):
        parallel.param_shardings(find_shape("gpt2-medium"), {}, three)
    assert isinstance(parallel.model_mesh(), Mesh)


@pytest.mark.slow
def test_two_devices_give_the_tokens_of_one():
    helpers = Path(__file__).resolve().parents[3] / "helpers"
    done = subprocess.run(
        [sys.executable, helpers / "on_two_devices.py"],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, heads in (("like llama", 1), ("like gpt2", 2)):
        assert found[name]["devices"] == 2
        assert found[name]["same_tokens"]
        assert found[name]["difference"] < 1e-5
        assert found[name]["heads_of_cache_per_device"] == heads
        assert found[name]["up_columns_per_device"] == 20
