"""How fast this machine is, beside the one that mini budgets were measured on.

A budget in seconds means something on one machine only. So a run at mini scale first
times a fixed piece of training, and its budget is stretched by the ratio to what the
reference machine took. The ratio stands in the record.
"""

import functools
import time

import jax
import jax.numpy as jnp

# Of one probe step on the reference machine, 2 cores of an AMD EPYC with nothing else
# to do: 2.12 to 2.41 ms in 30 probes (tests/benchmarks/speed_probe.py).
REFERENCE_STEP_SEC = 0.0022
# Compilation does not get faster with the accelerator, nor do small steps by as much as
# the probe's, so a budget shrinks only to this share of itself. On an H100 the
# conformer compiled for 16 of its 61 s and would take about 29 s to its target, by the
# rate of deepspeech there (5.3 ms a step); 1.5 times that is 0.72 of its budget.
SMALLEST_RATIO = 0.75
WINDOWS = 12
STEPS_PER_WINDOW = 4


def budget_ratio() -> float:
    """Returns what budgets are multiplied by here: 1 on the reference machine."""
    return max(SMALLEST_RATIO, probe_step_sec() / REFERENCE_STEP_SEC)


def probe_step_sec() -> float:
    """Returns seconds of a probe step: of the calmest of a dozen short windows."""
    params = _probe_params()
    jax.block_until_ready(params)
    params = jax.block_until_ready(_probe_step(params))  # compiles
    windows = []
    for _ in range(WINDOWS):
        start = time.perf_counter()
        for _ in range(STEPS_PER_WINDOW):
            params = _probe_step(params)
        jax.block_until_ready(params)
        windows.append(time.perf_counter() - start)
    return min(windows) / STEPS_PER_WINDOW


def _probe_params() -> dict[str, jax.Array]:
    shapes = {"kernel": (3, 3, 16, 16), "first": (256, 1024), "second": (1024, 256)}
    return {name: 0.02 * jnp.ones(shape) for name, shape in shapes.items()}


@functools.partial(jax.jit, donate_argnums=0)
def _probe_step(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Takes a step of gradient descent on a convolution, an MLP and a softmax."""

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        images = jnp.ones((8, 14, 14, 16))
        images = jax.lax.conv_general_dilated(
            images,
            params["kernel"],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        rows = jnp.tanh(images).reshape(-1, 256)  # (98, 256)
        rows = jax.nn.gelu(rows @ params["first"]) @ params["second"]
        return -jax.nn.log_softmax(rows)[:, 0].mean()

    gradients = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)
