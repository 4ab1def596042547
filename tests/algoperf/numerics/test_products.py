"""One product, forward and backward, against NumPy written from the definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from algoperf import numerics
from algoperf.numerics import (
    FORMATS,
    Format,
    Recipe,
    Rotation,
    estimators,
    transforms,
    units,
)

# A format of its own in each slot, so that none can stand for another.
DIFFERENT = Recipe(
    "different",
    forward_x=FORMATS["mxfp8"],
    forward_w=FORMATS["mxfp6_e3m2"].replace(group=16),
    input_gradient_g=FORMATS["mxint8"],
    input_gradient_w=FORMATS["mxfp4"],
    weight_gradient_g=FORMATS["mxfp8_e5m2"],
    weight_gradient_x=FORMATS["mxint6"].replace(group=8),
)


_quantise = jax.jit(numerics.quantize, static_argnums=(1, 2))
_rotate = jax.jit(transforms.rotate, static_argnums=(1, 2))
_rotate_back = jax.jit(transforms.rotate_back, static_argnums=(1, 2))
_quest = jax.jit(transforms.quest, static_argnums=1)
_exact = jax.jit(estimators.exact, static_argnums=(2, 3))
_dge = jax.jit(estimators.dge, static_argnums=(2, 3))


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _q(x, slot, axis):
    """Quantises for a slot, in float64 from there on."""
    return np.asarray(_quantise(x, getattr(DIFFERENT, slot), axis), np.float64)


def _out_and_gradients(recipe, fn, x, w, g, **options):
    """Returns fn's result and what g becomes; w is in a dict, so is a parameter."""

    @jax.jit
    def run(w, x, g):
        quantised = numerics.apply(recipe, lambda p, x: fn(x, p["w"]), **options)
        out, pull = jax.vjp(quantised, {"w": w}, x)
        of_params, of_x = pull(g)
        return out, of_x, of_params["w"]

    return [np.asarray(a) for a in run(w, x, g)]


def _close(actual, expected):
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("weight_is_left", [False, True])
def test_each_operand_along_the_axis_that_its_product_contracts(weight_is_left):
    x, w, g = _normal(0, 40, 48), _normal(1, 48, 36), _normal(2, 40, 36)
    if weight_is_left:  # (w^T x^T)^T is the same product

        def fn(x, w):
            return (w.T @ x.T).T
    else:

        def fn(x, w):
            return x @ w

    out, of_x, of_w = _out_and_gradients(DIFFERENT, fn, x, w, g)
    _close(out, _q(x, "forward_x", 1) @ _q(w, "forward_w", 0))
    _close(of_x, _q(g, "input_gradient_g", 1) @ _q(w, "input_gradient_w", 1).T)
    _close(of_w, _q(x, "weight_gradient_x", 0).T @ _q(g, "weight_gradient_g", 0))


def test_several_axes_are_contracted_as_one():
    """A projection to heads: tokens (B, L), features D, out (H, K)."""
    x, w, g = _normal(0, 2, 20, 48), _normal(1, 48, 3, 8), _normal(2, 2, 20, 3, 8)
    out, of_x, of_w = _out_and_gradients(
        DIFFERENT, lambda x, w: jnp.einsum("bld,dhk->blhk", x, w), x, w, g
    )
    flat_x, flat_w, flat_g = x.reshape(40, 48), w.reshape(48, 24), g.reshape(40, 24)
    _close(out.reshape(40, 24), _q(flat_x, "forward_x", 1) @ _q(flat_w, "forward_w", 0))
    expected = _q(flat_g, "input_gradient_g", 1) @ _q(flat_w, "input_gradient_w", 1).T
    _close(of_x.reshape(40, 48), expected)
    expected = _q(flat_x, "weight_gradient_x", 0).T @ _q(flat_g, "weight_gradient_g", 0)
    _close(of_w.reshape(48, 24), expected)


def test_two_activations_are_x_and_w():
    """Attention scores: the batch and head axes are batch axes of the product."""
    q, k, g = (
        _normal(0, 2, 3, 10, 16),
        _normal(1, 2, 3, 12, 16),
        _normal(2, 2, 3, 10, 12),
    )

    @jax.jit
    def run(q, k, g):
        scores = numerics.apply(
            DIFFERENT, lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, k)
        )
        out, pull = jax.vjp(scores, q, k)
        return out, *pull(g)

    out, of_q, of_k = map(np.asarray, run(q, k, g))
    transposed = np.swapaxes(_q(k, "forward_w", 3), 2, 3)
    _close(out, _q(q, "forward_x", 3) @ transposed)
    _close(of_q, _q(g, "input_gradient_g", 3) @ _q(k, "input_gradient_w", 2))
    g_transposed = np.swapaxes(_q(g, "weight_gradient_g", 2), 2, 3)
    _close(of_k, g_transposed @ _q(q, "weight_gradient_x", 2))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_by_loops(stride):
    """Taps one by one; blocks along channels, output channels and the batch."""
    batch, size, channels, out_channels, kernel = 9, 8, 40, 36, 3
    x, w = (
        _normal(0, batch, size, size, channels),
        _normal(1, 3, 3, channels, out_channels),
    )
    length = (size - kernel) // stride + 1
    g = _normal(2, batch, length, length, out_channels)

    def fn(x, w):
        return lax.conv_general_dilated(
            x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    out, of_x, of_w = _out_and_gradients(DIFFERENT, fn, x, w, g)
    expected, expected_x = np.zeros(out.shape), np.zeros(x.shape)
    expected_w = np.zeros(w.shape)
    x_q, w_q = _q(x, "forward_x", 3), _q(w, "forward_w", 2)
    g_for_x, w_for_x = _q(g, "input_gradient_g", 3), _q(w, "input_gradient_w", 3)
    g_for_w, x_for_w = _q(g, "weight_gradient_g", 0), _q(x, "weight_gradient_x", 0)
    for i in range(kernel):
        for j in range(kernel):
            rows = slice(i, i + stride * length, stride)
            columns = slice(j, j + stride * length, stride)
            expected += x_q[:, rows, columns] @ w_q[i, j]
            expected_x[:, rows, columns] += g_for_x @ w_for_x[i, j].T
            expected_w[i, j] = np.einsum(
                "nhwc,nhwo->co", x_for_w[:, rows, columns], g_for_w
            )
    _close(out, expected)
    _close(of_x, expected_x)
    _close(of_w, expected_w)


@pytest.mark.parametrize("rotation", [None, Rotation(16, random=True)])
def test_groups_of_a_convolution_are_convolutions_of_their_own(rotation):
    x, w, g = _normal(0, 4, 9, 48), _normal(1, 3, 24, 40), _normal(2, 4, 9, 40)
    recipe = DIFFERENT.replace(
        forward_rotation=rotation,
        input_gradient_rotation=rotation,
        weight_gradient_rotation=rotation,
    )

    def convolve(x, w, groups):
        return lax.conv_general_dilated(
            x,
            w,
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )

    key = jax.random.key(0)
    whole = _out_and_gradients(recipe, lambda x, w: convolve(x, w, 2), x, w, g, key=key)
    halves = [
        _out_and_gradients(
            recipe,
            lambda x, w: convolve(x, w, 1),
            x[..., 24 * i : 24 * (i + 1)],
            w[..., 20 * i : 20 * (i + 1)],
            g[..., 20 * i : 20 * (i + 1)],
            key=key,
        )
        for i in range(2)
    ]
    for one, parts in zip(whole, zip(*halves, strict=True), strict=True):
        _close(one, np.concatenate(parts, axis=-1))


@pytest.mark.parametrize("backward_from", ["original", "quantised"])
@pytest.mark.parametrize("is_convolution", [False, True])
def test_rotations_alone_change_nothing(backward_from, is_convolution):
    """Sizes that no block divides: the padding must be kept to the end."""
    random = Rotation(32, random=True)
    recipe = Recipe(
        forward_rotation=Rotation(16, random=True),
        input_gradient_rotation=random,
        weight_gradient_rotation=random,
        backward_from=backward_from,
    )
    x, w, g = _normal(0, 6, 7, 20), _normal(1, 3, 20, 24), _normal(2, 6, 7, 24)

    def fn(x, w):
        if is_convolution:
            return lax.conv_general_dilated(
                x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
        return x @ w[0]

    rotated = _out_and_gradients(recipe, fn, x, w, g, key=jax.random.key(0))
    plain = _out_and_gradients(Recipe(), fn, x, w, g)
    for one, other in zip(rotated, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)


def _depthwise(x, w):
    return lax.conv_general_dilated(
        x,
        w,
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=24,
    )


@pytest.mark.parametrize(
    ("fn", "x", "w", "g"),
    [
        (_depthwise, (4, 9, 24), (3, 1, 24), (4, 9, 24)),
        (lambda x, w: x @ w, (36, 1), (1, 24), (36, 24)),
        (lambda x, w: x @ w, (36, 24), (24, 1), (36, 1)),
        (lambda x, w: (w.T @ x.T).T, (36, 1), (1, 24), (36, 24)),
        (lambda x, w: (w.T @ x.T).T, (36, 24), (24, 1), (36, 1)),
    ],
)
def test_one_channel_is_not_rotated(fn, x, w, g):
    """Nor padded to a block; the many on the product's other axes are."""
    x, w, g = _normal(0, *x), _normal(1, *w), _normal(2, *g)
    rotations = ("forward_rotation", "input_gradient_rotation")
    is_single = w.shape[-2] == 1, w.shape[-1] == 1 or fn is _depthwise
    recipe = DIFFERENT.replace(
        weight_gradient_rotation=Rotation(16),
        **dict.fromkeys(rotations, Rotation(32, random=True)),
    )
    without = recipe.replace(
        **{
            name: None
            for name, single in zip(rotations, is_single, strict=True)
            if single
        }
    )
    key = jax.random.key(0)
    found = _out_and_gradients(recipe, fn, x, w, g, key=key)
    wanted = _out_and_gradients(without, fn, x, w, g, key=key)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["quartet", "mxfp4_design_space", "nvint4_hadamard"])
def test_one_channel_learns(name):
    """Its values and gradients are rounded, not clipped to a share of themselves."""
    recipe = numerics.RECIPES[name].replace(keep_last=0, keep_types=())
    x, w, g = _normal(0, 64, 1), _normal(1, 1, 8), _normal(2, 64, 8)
    found = _out_and_gradients(
        recipe, lambda x, w: x @ w, x, w, g, key=jax.random.key(0)
    )
    for one, exact in zip(found, (x @ w, g @ w.T, x.T @ g), strict=True):
        error = np.linalg.norm(one - exact) / np.linalg.norm(exact)
        assert error < 0.5  # clipped ones had 0.7 and 1


def test_quartet_by_its_algorithm():
    """arXiv:2505.14669, algorithm 1, with nearest rounding instead of stochastic."""
    backward = FORMATS["mxfp4_stochastic"].replace(rounding="nearest_even")
    quartet = numerics.RECIPES["quartet"].replace(
        input_gradient_g=backward,
        input_gradient_w=backward,
        weight_gradient_g=backward,
        weight_gradient_x=backward,
        input_gradient_rotation=Rotation(32),
        weight_gradient_rotation=Rotation(32),
        keep_last=0,
        keep_types=(),
    )
    x, w, g = _normal(0, 64, 96), _normal(1, 96, 32), _normal(2, 64, 32)
    out, of_x, of_w = _out_and_gradients(quartet, lambda x, w: x @ w, x, w, g)
    x_h, w_h = _rotate(x, 32, 1), _rotate(w, 32, 0)
    x_q, x_mask = _quest(x_h, 1)
    w_q, w_mask = _quest(w_h, 0)
    _close(out, np.float64(x_q) @ np.float64(w_q))

    def backward_operand(a, axis):
        return np.float64(_quantise(_rotate(a, 32, axis), backward, axis))

    of_x_h = backward_operand(g, 1) @ backward_operand(w_q, 1).T
    _close(of_x, _rotate_back(jnp.float32(of_x_h * x_mask), 32, 1))
    of_w_h = backward_operand(x_q, 0).T @ backward_operand(g, 0)
    _close(of_w, _rotate_back(jnp.float32(of_w_h * w_mask), 32, 0))


def test_exact_gradient_equals_autodiff_of_a_smoothed_quantiser():
    """A smooth Q in place of the staircase: nothing is left to approximate."""
    top, size = 6.0, 16
    x, g = _normal(0, 5, size), _normal(1, 5, size)

    def smooth(u):
        return u + 0.3 * jnp.sin(2 * jnp.pi * u) / (2 * jnp.pi)

    slope = jax.vmap(jax.vmap(jax.grad(smooth)))

    def scale_of(x):
        return jnp.max(jnp.abs(x), axis=1, keepdims=True) / top

    def quantised(x):
        scale = scale_of(x)
        return jnp.sum(g * scale * smooth(x / scale))

    scale = scale_of(jnp.asarray(x))
    pulled = estimators.block_gradient(
        x, g, scale, smooth(x / scale), slope(x / scale), top, (1,)
    )
    np.testing.assert_allclose(pulled, jax.jit(jax.grad(quantised))(x), atol=1e-5)
    straight = g * slope(x / scale)
    assert np.abs(pulled - straight).max() > 0.01  # the scale's part is no rounding


@pytest.mark.parametrize("group", [16, "channel", "tensor"])
def test_exact_gradient_of_a_format(group):
    """Autodiff of the staircase, passed straight through, under its exact scale."""
    fmt = Format("e2m1", group, "float32")
    x, g = _normal(0, 6, 40), _normal(1, 6, 40)

    def quantised(x):
        padded = jnp.pad(x, [(0, 0), (0, 8)]).reshape(6, 3, 16) if group == 16 else x
        axes = {16: 2, "channel": 1, "tensor": None}[group]
        scale = jnp.max(jnp.abs(padded), axis=axes, keepdims=True) / 6.0
        u = padded / scale
        staircase = numerics.quantize(lax.stop_gradient(u), Format("e2m1", scale=None))
        rounded = u + lax.stop_gradient(staircase - u)
        return jnp.sum(g * (scale * rounded).reshape(6, -1)[:, :40])

    pulled = _exact(jnp.asarray(x), jnp.asarray(g), fmt, 1)
    np.testing.assert_allclose(pulled, jax.jit(jax.grad(quantised))(x), atol=2e-5)


def test_exact_gradient_is_nothing_where_a_value_was_clipped():
    x = jnp.asarray([7.9, 1.0, 0.0, -0.3])  # the OCP scale is 1, so 7.9 becomes 6
    g = jnp.ones(4)
    fmt = FORMATS["mxfp4"]
    pulled = np.asarray(_exact(x, g, fmt, 0))
    # Q - u Q' is 6 - 0 for the clipped one, 1 - 1, 0, and -0.5 + 0.3.
    np.testing.assert_allclose(pulled, [(6 - 0.2) / 6, 1, 1, 1], atol=1e-6)


def test_dge_is_the_slope_of_the_power_law():
    """Wang et al. 2025, equation 8, by differences; and the limit 3."""
    fmt = FORMATS["mxfp4"]
    u = np.linspace(-5.9, 5.9, 501).astype(np.float32)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def law(u):
        magnitude = np.abs(u)
        lower = grid[np.searchsorted(grid, magnitude, side="right") - 1]
        step = grid[np.searchsorted(grid, magnitude, side="right")] - lower
        r = 2 * (magnitude - lower) / step - 1
        return np.sign(u) * (lower + step / 2 * (1 + np.sign(r) * np.abs(r) ** 0.2))

    small = 1e-5
    differences = (law(np.float64(u) + small) - law(np.float64(u) - small)) / (
        2 * small
    )
    slopes = np.asarray(estimators.dge_derivative(jnp.asarray(u), fmt))
    away = np.min(np.abs(np.abs(u)[:, None] - grid), axis=1) > 0.01
    expected = np.minimum(differences, 3.0)
    np.testing.assert_allclose(slopes[away], expected[away], rtol=5e-3)
    assert slopes.max() == 3.0


@pytest.mark.parametrize("estimator", ["exact", "dge", "clipped"])
def test_estimators_act_on_the_operands_of_the_forward_product(estimator):
    recipe = Recipe(
        forward_x=FORMATS["mxfp4"], forward_w=FORMATS["mxfp4"], estimator=estimator
    )
    x, w, g = _normal(0, 40, 48), _normal(1, 48, 36), _normal(2, 40, 36)
    _, of_x, of_w = _out_and_gradients(recipe, lambda x, w: x @ w, x, w, g)
    plain_x, plain_w = g @ w.T, x.T @ g
    fmt = FORMATS["mxfp4"]
    pull = {"exact": _exact, "dge": _dge}.get(estimator)
    if estimator == "clipped":
        masks = [
            transforms.quantize_with_mask(jnp.asarray(a), fmt, i)[1]
            for a, i in ((x, 1), (w, 0))
        ]
        expected = plain_x * masks[0], plain_w * masks[1]
    else:
        expected = (
            plain_x if estimator == "dge" else pull(x, jnp.asarray(plain_x), fmt, 1),
            pull(jnp.asarray(w), jnp.asarray(plain_w), fmt, 0),
        )
    _close(of_x, np.asarray(expected[0]))
    _close(of_w, np.asarray(expected[1]))
    assert not np.allclose(of_w, plain_w, atol=1e-3)


def _bounded(params, x):
    """Returns a smooth loss with a convolution, in which no error of rounding grows."""
    x = jnp.tanh(x @ params["w"]).reshape(32, 2, 6)
    numbers = ("NWC", "WIO", "NWC")
    x = lax.conv_general_dilated(
        x, params["k"], (1,), "SAME", dimension_numbers=numbers
    )
    return jnp.mean(jnp.square(jnp.tanh(x) + 0.5))


@functools.cache
def _hessian_product(recipe, device=units.EMULATOR):
    """Returns H v of that loss, laid out; without a recipe if that is None."""
    x, fn = _normal(2, 32, 48), _bounded
    params = {"w": 0.2 * _normal(0, 48, 12), "k": 0.1 * _normal(1, 3, 6, 8)}
    v = {"w": _normal(3, 48, 12), "k": _normal(4, 3, 6, 8)}
    if recipe is not None:
        fn = numerics.apply(recipe, fn, key=jax.random.key(0), device=device)
    gradient = jax.grad(lambda params: fn(params, x))
    product = jax.jit(lambda v: jax.jvp(gradient, (params,), (v,))[1])(v)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(product)])


@pytest.mark.parametrize(
    ("name", "error"), [("bf16", 0.01), ("fp8", 0.15), ("int8", 0.05), ("quartet", 0.6)]
)
def test_a_hessian_product_is_that_without_a_recipe_but_for_rounding(name, error):
    """Where the products run, in bfloat16 or in integers, changes nothing."""
    recipe = numerics.RECIPES[name].replace(keep_last=0, keep_types=())
    found, want = _hessian_product(recipe), _hessian_product(None)
    away = np.linalg.norm(found - want) / np.linalg.norm(want)
    assert 0 < away < error
    in_units = _hessian_product(recipe, units.Device("gpu", 8.0))
    np.testing.assert_allclose(in_units, found, rtol=0, atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_a_hessian_product_goes_through_loops(name):
    """JAX drops rules of `custom_jvp` there."""
    w, x, v = 0.3 * _normal(0, 3, 16, 16), _normal(1, 8, 16), _normal(2, 3, 16, 16)

    def layer(x, w):
        return jnp.tanh(x @ w), None

    def looped(params, x):
        return jnp.mean(jnp.square(lax.scan(layer, x, params["w"])[0]))

    def unrolled(params, x):
        for each in params["w"]:
            x, _ = jax.checkpoint(layer)(x, each)
        return jnp.mean(jnp.square(x))

    def product(fn):
        gradient = jax.grad(numerics.apply(name, fn))
        in_w = jax.jit(lambda v: jax.jvp(lambda w: gradient({"w": w}, x), (w,), (v,)))
        return in_w(v)[1]["w"]

    _close(product(looped), product(unrolled))


@pytest.mark.parametrize("estimator", ["straight_through", "clipped", "exact", "dge"])
def test_the_hessian_has_the_estimators_derivative_twice(estimator):
    """d/dw of the gradient of x is d/dx of that of w: a Hessian is symmetric.

    So the rounding of each operand is moved by what its gradient is pulled back by.
    """
    recipe = Recipe(
        forward_x=FORMATS["mxfp4"],
        forward_w=FORMATS["mxfp4"],
        backward_from="quantised",
        estimator=estimator,
    )
    w, x, g = _normal(0, 48, 36), _normal(1, 40, 48), _normal(2, 40, 36)
    of_w, of_x = _normal(3, 48, 36), _normal(4, 40, 48)
    quantised = numerics.apply(recipe, lambda p, x: jnp.sum(g * (x @ p["w"])))

    @jax.jit
    def moved(of_w, of_x):
        gradient = jax.grad(quantised, argnums=(0, 1))
        tangents = {"w": of_w}, of_x
        in_w, in_x = jax.jvp(gradient, ({"w": w}, x), tangents)[1]
        return in_w["w"], in_x

    in_w, nothing = moved(np.zeros_like(w), of_x)
    none, in_x = moved(of_w, np.zeros_like(x))
    assert in_w.any()
    assert np.vdot(in_w, of_w) == pytest.approx(np.vdot(in_x, of_x), rel=1e-3)
    assert not nothing.any()  # the derivative of rounding counts as constant
    assert not none.any()
    plain = of_x.T @ g
    if estimator == "straight_through":
        _close(in_w, plain)
    else:
        assert not np.allclose(in_w, plain, atol=1e-3)


def test_outliers_keep_their_precision():
    x, w, g = _normal(0, 8, 64), _normal(1, 64, 8), _normal(2, 8, 8)
    x[3, 5] = 100.0
    recipe = Recipe(forward_x=FORMATS["mxfp4"])
    few = recipe.replace(outliers=0.002)

    def error(recipe):
        out = _out_and_gradients(recipe, lambda x, w: x @ w, x, w, g)[0]
        return np.abs(out - x @ w)[3].max()

    assert error(few) < 0.5 * error(recipe)


def test_products_keep_the_models_dtypes():
    x, w, g = (
        jnp.asarray(a, jnp.bfloat16)
        for a in (_normal(0, 8, 32), _normal(1, 32, 4), _normal(2, 8, 4))
    )
    for name in ("identity", "mxfp8", "quartet"):
        recipe = numerics.RECIPES[name].replace(keep_last=0, keep_types=())
        results = _out_and_gradients(
            recipe, lambda x, w: x @ w, x, w, g, key=jax.random.key(0)
        )
        assert {a.dtype for a in results} == {jnp.dtype(jnp.bfloat16)}


def test_recipes_are_static():
    recipe = numerics.RECIPES["quartet"]
    assert hash(recipe) == hash(dataclasses.replace(recipe))
