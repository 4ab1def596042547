"""Evaluates a small copy of a workload on all devices; run as a process of its own.

    python devices.py FILE

FILE, a module of tests, has `small_evaluation()`, which returns a workload and its
evaluation batches. Prints the metrics as JSON. `assert_agree(FILE)` compares one device
with eight.
"""

import json
import os
import subprocess
import sys

import jax
import scripts

from algoperf import sharding


def assert_agree(file, relative=1e-5):
    """Asserts that one and eight (virtual) devices give the same metrics."""
    one, eight = _run(file, 1), _run(file, 8)
    assert one.pop("devices") == 1
    assert eight.pop("devices") == 8
    assert one.keys() == eight.keys()
    for name, value in one.items():
        assert abs(value - eight[name]) <= relative * max(1, abs(value)), name


def _run(file, devices):
    flag = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, __file__, file],
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _main(file):
    from checks import evaluate

    workload, batches = scripts.load(file).small_evaluation()
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    placed = [sharding.shard_along_batch_dim(batch) for batch in batches]
    metrics = evaluate(workload, params, state, placed)
    print(json.dumps({**metrics, "devices": jax.device_count()}))


if __name__ == "__main__":
    _main(sys.argv[1])
