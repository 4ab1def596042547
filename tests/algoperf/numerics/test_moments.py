"""Packed Adam against optax, and where rounding a moment to 0 would be fatal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algoperf.numerics import Format
from algoperf.numerics.moments import scale_by_packed_adam
from algoperf.numerics.packed import Packed, unpack

SHAPES = {"bias": (7,), "kernel": (64, 80)}


def _gradients(seed, steps):
    generator = np.random.default_rng(seed)
    scales = {k: np.exp(generator.normal(size=s)) for k, s in SHAPES.items()}
    return [
        {
            k: (generator.normal(size=s) * scales[k]).astype(np.float32)
            for k, s in SHAPES.items()
        }
        for _ in range(steps)
    ]


def _updates(transformation, gradients):
    params = {k: jnp.zeros(s) for k, s in SHAPES.items()}
    state = transformation.init(params)
    step = jax.jit(transformation.update)
    updates = []
    for gradient in gradients:
        update, state = step(gradient, state)
        updates.append(update)
    return updates, state


def test_unpacked_it_is_optax():
    gradients = _gradients(0, 5)
    ours, _ = _updates(scale_by_packed_adam(0.9, 0.99, min_size=10**9), gradients)
    theirs, _ = _updates(optax.scale_by_adam(0.9, 0.99), gradients)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a["kernel"], b["kernel"], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(a["bias"], b["bias"], rtol=2e-5, atol=1e-6)


def test_packed_it_is_near_and_small():
    gradients = _gradients(0, 30)
    ours, state = _updates(scale_by_packed_adam(0.9, 0.99), gradients)
    theirs, _ = _updates(optax.scale_by_adam(0.9, 0.99), gradients)
    one, other = ours[-1]["kernel"], theirs[-1]["kernel"]
    cosine = jnp.vdot(one, other) / jnp.linalg.norm(one) / jnp.linalg.norm(other)
    assert cosine > 0.99
    assert abs(jnp.linalg.norm(one) / jnp.linalg.norm(other) - 1) < 0.03
    assert isinstance(state.mu["kernel"], Packed)
    assert not isinstance(state.mu["bias"], Packed)
    small, full = state.mu["kernel"].nbytes, 4 * one.size
    assert small < 0.26 * full
    np.testing.assert_allclose(
        ours[-1]["bias"], theirs[-1]["bias"], rtol=1e-4, atol=1e-6
    )


def test_a_second_moment_that_is_rounded_away_does_not_explode():
    """In a block, one gradient is large; the others' v are rounded to 0."""
    coarse = Format("int4", 32, "float32")
    kernel = np.full(SHAPES["kernel"], 0.05, np.float32)
    kernel[:, ::16] = 1.0
    first = {"kernel": kernel, "bias": np.zeros(7, np.float32)}
    then = {"kernel": 1e-12 * kernel, "bias": np.zeros(7, np.float32)}
    b1, b2 = 0.9, 0.999
    updates, state = _updates(
        scale_by_packed_adam(b1, b2, fmt=coarse), [first, *[then] * 5]
    )
    limit = (1 - b1) / (1 - b2) ** 0.5 / (1 - b1**2 / b2) ** 0.5
    for number, update in enumerate(updates, start=1):
        correction = (1 - b2**number) ** 0.5 / (1 - b1**number)
        assert jnp.abs(update["kernel"]).max() <= limit * correction * (1 + 1e-5)
    del state


def test_where_nothing_bounds_adam_it_does_not_explode_either():
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-4, 0, SHAPES["kernel"]).astype(np.float32)
    gradients = [
        {
            "kernel": scale * rng.standard_normal(SHAPES["kernel"]).astype(np.float32),
            "bias": np.zeros(7, np.float32),
        }
        for _ in range(60)
    ]
    coarse = Format("int4", 32, "float32")
    ours, _ = _updates(scale_by_packed_adam(0.98, 0.95, fmt=coarse), gradients)
    assert max(float(jnp.abs(u["kernel"]).max()) for u in ours) == 10.0


def test_the_limit_is_no_limit_to_adam():
    """What Adam can do at most: gradients that grow by b2 / b1 each step."""
    b1, b2, steps = 0.9, 0.99, 60
    gradients = [
        {k: np.full(s, 1e-3 * (b2 / b1) ** t, np.float32) for k, s in SHAPES.items()}
        for t in range(steps)
    ]
    ours, _ = _updates(scale_by_packed_adam(b1, b2, min_size=10**9), gradients)
    theirs, _ = _updates(optax.scale_by_adam(b1, b2), gradients)
    np.testing.assert_allclose(ours[-1]["bias"], theirs[-1]["bias"], rtol=1e-4)
    limit = (1 - b1) / (1 - b2) ** 0.5 / (1 - b1**2 / b2) ** 0.5
    largest = limit * (1 - b2**steps) ** 0.5 / (1 - b1**steps)
    assert 0.98 * largest < ours[-1]["bias"][0] <= largest


def test_a_moment_follows_in_steps_smaller_than_the_formats():
    """b2 = 0.999 moves v by 0.1 % a step, E4M3 has steps of 6 %: it decays."""
    b2, after = 0.999, 400
    one = {k: np.ones(s, np.float32) for k, s in SHAPES.items()}
    none = {k: np.zeros(s, np.float32) for k, s in SHAPES.items()}
    transformation = scale_by_packed_adam(0.9, b2)
    step = jax.jit(transformation.update)
    state = transformation.init({k: jnp.zeros(s) for k, s in SHAPES.items()})
    _, state = step(one, state)
    for _ in range(after):
        _, state = step(none, state)
    left = np.asarray(unpack(state.nu["kernel"])).mean() / (1 - b2)
    np.testing.assert_allclose(left, b2**after, rtol=0.05)
