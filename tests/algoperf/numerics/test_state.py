"""What recipes hand on: histories of magnitudes, and dynamic loss scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from algoperf import numerics
from algoperf.errors import UserError
from algoperf.numerics import FORMATS, RECIPES, DynamicLossScale, Recipe
from algoperf.numerics.state import next_scale

STEPS = 3
DELAYED = RECIPES["fp8_delayed"].replace(amax_history=STEPS)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _to_float8(x, largest, dtype, top):
    """What a scale from this largest magnitude makes of x, by a cast of ml_dtypes."""
    scale = np.float32(largest * np.float32(1 / top))
    scaled = np.clip(x * np.float32(1 / scale), -top, top).astype(dtype)
    return scaled.astype(np.float64) * np.float64(scale)


def _e4m3(x, largest):
    return _to_float8(x, largest, jnp.float8_e4m3fn, 448.0)


def _e5m2(x, largest):
    return _to_float8(x, largest, jnp.float8_e5m2, 57344.0)


def test_scales_are_those_of_the_steps_before():
    """Three steps with growing, then smaller operands, against NumPy."""

    def loss(params, x, g):
        return jnp.sum((x @ params["w"]) * g)

    step = jax.jit(numerics.value_and_grad(DELAYED, loss))
    w, x, g = _normal(0, 16, 8), _normal(1, 4, 16), _normal(2, 4, 8)
    state = numerics.init_state(DELAYED, loss, {"w": w}, x, g)
    assert [history.shape for history in state.histories] == [(6, STEPS)]
    seen = {"x": [], "w": [], "g": []}
    for factor in (1.0, 4.0, 0.5, 1.0, 1.0):
        now = {"x": factor * x, "w": w, "g": g / factor}
        largest = {}
        for name, array in now.items():
            own = np.abs(array).max()
            largest[name] = max(seen[name][-STEPS:], default=own)
            seen[name].append(own)
        value, gradient, state = step(state, {"w": now["w"]}, now["x"], now["g"])
        out = _e4m3(now["x"], largest["x"]) @ _e4m3(now["w"], largest["w"])
        np.testing.assert_allclose(value, np.sum(out * now["g"]), rtol=1e-4)
        of_w = _e4m3(now["x"], largest["x"]).T @ _e5m2(now["g"], largest["g"])
        error = np.abs(gradient["w"] - of_w).max()
        assert error < 2e-5 * np.abs(of_w).max()
    newest = state.histories[0]
    for slots, name in ((0, "x"), (1, "w"), (4, "g"), (5, "x")):
        np.testing.assert_array_equal(newest[slots], seen[name][: -STEPS - 1 : -1])


def test_each_iteration_of_a_scan_has_its_own_history():
    w = _normal(0, 3, 8, 8)

    def scanned(params, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0].sum()

    def unrolled(params, x):
        for i in range(3):
            x = jnp.tanh(x @ params["w"][i])
        return x.sum()

    x, found = _normal(1, 4, 8), []
    recipe = DELAYED.replace(weights_only=False)  # the scan's slices are no parameters
    for fn in (scanned, unrolled):
        step = jax.jit(numerics.value_and_grad(recipe, fn))
        state = numerics.init_state(recipe, fn, {"w": w}, x)
        for factor in (1.0, 3.0):
            value, gradient, state = step(state, {"w": w}, factor * x)
        histories = state.histories
        if fn is unrolled:
            histories = (jnp.stack(histories),)
        found.append((value, gradient["w"], histories[0]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert found[0][2].shape == (3, 6, STEPS)


def test_a_branch_that_is_not_taken_keeps_its_history():
    def fn(params, x, flag):
        return lax.cond(flag, lambda x: (x @ params["w"]).sum(), jnp.sum, x)

    step = jax.jit(numerics.value_and_grad(DELAYED, fn))
    params, x = {"w": _normal(0, 8, 8)}, _normal(1, 4, 8)
    state = numerics.init_state(DELAYED, fn, params, x, jnp.bool_(True))
    _, _, taken = step(state, params, x, jnp.bool_(True))
    assert (taken.histories[0][:, 0] > 0).all()
    _, _, after = step(taken, params, 2 * x, jnp.bool_(False))
    np.testing.assert_array_equal(after.histories[0], taken.histories[0])


def test_a_history_can_be_read_without_being_changed():
    def loss(params, x):
        return jnp.sum(jnp.square(x @ params["w"]))

    params, x = {"w": _normal(0, 8, 8)}, _normal(1, 4, 8)
    state = numerics.init_state(DELAYED, loss, params, x)
    value, gradient, state = numerics.value_and_grad(DELAYED, loss)(state, params, x)
    again = numerics.apply(DELAYED, loss, state=state)
    np.testing.assert_array_equal(again(params, x), value)
    for one, other in zip(
        jax.tree.leaves(jax.grad(again)(params, x)), [gradient["w"]], strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


SCALE = DynamicLossScale(initial=8.0, period=3, smallest=2.0, largest=32.0)


def test_a_dynamic_loss_scale_by_hand():
    outcomes = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    expected = [8, 8, 16, 16, 16, 32, 32, 32, 32, 16, 16, 16, 32, 16, 8, 4, 2, 2]
    rule = jax.jit(lambda *state: next_scale(SCALE, *state))
    scale, steps = jnp.float32(SCALE.initial), jnp.int32(0)
    seen = []
    for outcome in outcomes:
        scale, steps = rule(scale, steps, jnp.bool_(outcome))
        seen.append(float(scale))
    assert seen == expected


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_a_loss_scale_saves_small_gradients_of_fp16(scale):
    """Half precision ends at 2^-24; a gradient of 2^-26 is 0 there without a scale."""
    recipe = RECIPES["fp16"].replace(loss_scale=scale)

    def loss(params, x):
        return 2.0**-26 * jnp.sum(x @ params["w"])

    params, x = {"w": jnp.ones((4, 4))}, jnp.ones((2, 4))
    state = numerics.init_state(recipe, loss, params, x)
    value, gradient, state = numerics.value_and_grad(recipe, loss)(state, params, x)
    expected = 0.0 if scale == 1.0 else 2 * 2.0**-26
    np.testing.assert_array_equal(gradient["w"], np.full((4, 4), expected))
    np.testing.assert_allclose(value, 2.0**-26 * 32)
    assert state.is_finite


def test_a_gradient_that_overflows_is_told():
    recipe = RECIPES["fp16"].replace(loss_scale=SCALE)

    def loss(params, x):
        return 1e5 * jnp.sum(x @ params["w"])  # beyond 65504

    params, x = {"w": jnp.ones((4, 4))}, jnp.ones((2, 4))
    state = numerics.init_state(recipe, loss, params, x)
    _, _, state = numerics.value_and_grad(recipe, loss)(state, params, x)
    assert not state.is_finite
    assert float(state.loss_scale) == 4.0


def test_mistakes_are_told():
    params, x = {"w": jnp.ones((4, 4))}, jnp.ones((2, 4))

    def loss(params, x):
        return jnp.sum(x @ params["w"])

    with pytest.raises(UserError, match="value_and_grad"):
        numerics.apply("fp8_delayed", loss)(params, x)
    state = numerics.init_state("fp8_delayed", loss, params, x)

    def twice(params, x):
        return loss(params, x @ params["w"])

    with pytest.raises(UserError, match="init_state"):
        numerics.value_and_grad("fp8_delayed", twice)(state, params, x)
    with pytest.raises(UserError, match="one float32 scale"):
        Recipe("mine", forward_x=FORMATS["mxfp8"], amax_history=2)
    with pytest.raises(UserError, match="smallest"):
        DynamicLossScale(initial=0.5)


def test_the_words_that_adapt_begins_with():
    """Weights are k / 16 from -8 to 7.9375, rounded up with the right probability."""
    from algoperf.numerics import adapt, rounding

    x = np.abs(6 * _normal(0, 64, 64))
    key = jax.random.key(3)
    ours = numerics.quantize(x, "fixed_8_4", key=key)
    np.testing.assert_array_equal(
        ours, adapt.fixed_point(x, 8, 4, rounding.words_of(key))
    )
    ends = numerics.quantize(jnp.array([-20.0, 20.0]), "fixed_8_4", key=key)
    np.testing.assert_array_equal(ends, [-8.0, 7.9375])
    params = {"w": jnp.full((32, 32), 0.03)}

    def out(params, x):
        return x @ params["w"]

    many = [
        numerics.apply("adapt", out, key=jax.random.key(i))(params, jnp.eye(32))
        for i in range(8)
    ]
    values = np.stack(many)
    assert set(np.unique(values)) == {0.0, 1 / 16}
    assert abs(values.mean() - 0.03) < 5 * 0.03 / np.sqrt(values.size)
