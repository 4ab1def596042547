"""A recipe reaches every product of a function, whatever it is wrapped in."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from algoperf import numerics
from algoperf.errors import UserError
from algoperf.numerics import FORMATS, RECIPES, Recipe, Rotation

COARSE = Recipe("coarse", forward_x=FORMATS["mxint4"], forward_w=FORMATS["mxint4"])
INT4 = FORMATS["mxint4"]
SIX = COARSE.replace(
    name="six",
    input_gradient_g=INT4,
    input_gradient_w=INT4,
    weight_gradient_g=INT4,
    weight_gradient_x=INT4,
)
NOISY = Recipe("noisy", forward_w=FORMATS["mxfp4_stochastic"])
KEY = jax.random.key(0)
SIZE = 8


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


W, X = _normal(0, SIZE, SIZE) / 2, _normal(1, 4, SIZE)
PARAMS = {"w": W}


def _three(p, x):
    for _ in range(3):
        x = jnp.tanh(x @ p["w"])
    return x


def _by_scan(p, x):
    return lax.scan(lambda x, _: (jnp.tanh(x @ p["w"]), None), x, length=3)[0]


def _by_while(p, x):
    body = lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["w"]))  # noqa: E731
    return lax.while_loop(lambda s: s[0] < 3, body, (0, x))[1]


def _by_remat(p, x):
    return jax.checkpoint(_three)(p, x)


def _by_cond(p, x):
    def step(x):
        return lax.cond(x.sum() < 1e9, lambda x: x @ p["w"], lambda x: x, x)

    for _ in range(3):
        x = jnp.tanh(step(x))
    return x


def _by_vmap(p, x):
    return jax.vmap(lambda row: _three(p, row))(x)


def _by_jit(p, x):
    return jax.jit(_three)(p, x)


def _by_shard_map(p, x):
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("batch",))
    spec = jax.sharding.PartitionSpec
    return jax.shard_map(
        _three, mesh=mesh, in_specs=(spec(), spec("batch")), out_specs=spec("batch")
    )(p, x)


def _loss(fn):
    return lambda p, x: jnp.sum(jnp.sin(fn(p, x)))


@functools.cache
def _expected(recipe):
    """Loss, gradients of the plain function."""
    loss = numerics.apply(recipe, _loss(_three))
    value, gradient = jax.jit(jax.value_and_grad(loss))(PARAMS, X)
    return value, gradient["w"]


WRAPPED = [_by_scan, _by_remat, _by_cond, _by_jit, _by_shard_map]


# Row by row, the sum over examples is no axis of a product: not the same six blocks.
@pytest.mark.parametrize(
    ("recipe", "fn"),
    [(COARSE, _by_vmap)] + [(r, f) for r in (COARSE, SIX) for f in WRAPPED],
)
def test_wrapping_changes_nothing(recipe, fn):
    loss = numerics.apply(recipe, _loss(fn))
    value, gradient = jax.jit(jax.value_and_grad(loss))(PARAMS, X)
    expected_value, expected_gradient = _expected(recipe)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], expected_gradient, atol=1e-5)
    plain = _loss(_three)(PARAMS, X)
    assert abs(plain - value) > 1e-3  # it was quantised at all
    if recipe is SIX:  # backward too
        assert np.abs(gradient["w"] - _expected(COARSE)[1]).max() > 1e-3


def test_what_is_computed_again_is_rounded_alike():
    """jax.checkpoint runs a product twice; both times with the same random numbers."""

    def fn(p, x):
        return jax.checkpoint(lambda x: jnp.exp(x @ p["w"]))(x)

    @jax.jit
    def run(key):
        noisy = numerics.apply(NOISY, lambda x: fn(PARAMS, x), key=key)
        return noisy(X), jax.vjp(noisy, X)[1](np.ones((4, SIZE), np.float32))[0]

    forward, gradient = run(KEY)
    np.testing.assert_allclose(gradient, forward @ W.T, rtol=1e-5, atol=1e-5)
    exact = np.exp(X @ W) @ W.T
    assert np.abs(gradient - exact).max() > 0.01


def test_a_while_loop_goes_forward():
    value = jax.jit(numerics.apply(COARSE, _loss(_by_while)))(PARAMS, X)
    np.testing.assert_allclose(value, _expected(COARSE)[0], rtol=1e-5)


def test_an_outer_vmap_and_an_outer_scan():
    quantised = numerics.apply(COARSE, _loss(_three))
    many = jax.jit(jax.vmap(jax.grad(quantised), in_axes=(None, 0)))
    per_example = many(PARAMS, X[:, None])["w"]
    np.testing.assert_allclose(per_example.sum(axis=0), _expected(COARSE)[1], atol=1e-5)
    _, values = jax.jit(
        lambda: lax.scan(lambda c, x: (c, quantised(PARAMS, x)), 0, X[None])
    )()
    np.testing.assert_allclose(values[0], _expected(COARSE)[0], rtol=1e-5)


def test_the_identity_recipe_is_the_function_itself():
    for fn in (_by_scan, _by_remat, _by_cond, _by_shard_map):
        value, gradient = jax.jit(
            jax.value_and_grad(numerics.apply("identity", _loss(fn)))
        )(PARAMS, X)
        plain_value, plain = jax.jit(jax.value_and_grad(_loss(fn)))(PARAMS, X)
        np.testing.assert_allclose(value, plain_value, rtol=1e-6)
        np.testing.assert_allclose(gradient["w"], plain["w"], rtol=1e-6, atol=1e-7)


@jax.custom_jvp
def _product_jvp(x, w):
    return x @ w


_product_jvp.defjvp(lambda primals, _: (_product_jvp(*primals), 7.0 * primals[0]))


@jax.custom_vjp
def _product_vjp(x, w):
    return x @ w


_product_vjp.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda saved, g: (3.0 * saved[0], 5.0 * saved[1])
)


@pytest.mark.parametrize(
    ("product", "factor"), [(_product_jvp, 7.0), (_product_vjp, 3.0)]
)
def test_rules_of_its_own_stay(product, factor):
    def fn(p, x):
        return jnp.sum(product(x, p["w"])) + jnp.sum(jax.nn.relu(x @ p["w"]))

    found = numerics.products(COARSE, fn, PARAMS, X)
    assert [item.reason is None for item in found] == [False, True]
    assert "derivative rule of its own" in found[0].reason
    if product is _product_vjp:
        gradient = jax.grad(numerics.apply(COARSE, fn), argnums=1)(PARAMS, X)
        rest = jax.grad(
            numerics.apply(COARSE, lambda p, x: jnp.sum(jax.nn.relu(x @ p["w"]))), 1
        )(PARAMS, X)
        np.testing.assert_allclose(gradient - rest, factor * X, atol=1e-5)
    else:
        value = numerics.apply(COARSE, lambda p, x: product(x, p["w"]).sum() + fn(p, x))
        assert jnp.isfinite(value(PARAMS, X))


def _noise(fn, key, *args):
    """The result, quantised at random, less the exact one."""
    return np.asarray(
        jax.jit(lambda key: numerics.apply(NOISY, fn, key=key)(*args))(key) - fn(*args)
    )


def test_products_steps_and_iterations_round_differently():
    def twice(p, x):
        return jnp.stack([x @ p["w"], x @ p["w"]])

    noise = _noise(twice, KEY, PARAMS, X)
    assert np.abs(noise[0] - noise[1]).max() > 0.01
    np.testing.assert_array_equal(noise, _noise(twice, KEY, PARAMS, X))
    other = _noise(twice, jax.random.key(1), PARAMS, X)
    assert np.abs(noise - other).max() > 0.01

    def iterations(p, x):
        return lax.scan(lambda c, _: (c, x @ p["w"]), 0, length=4)[1]

    noise = _noise(iterations, KEY, PARAMS, X)
    for i in range(4):
        for j in range(i):
            assert np.abs(noise[i] - noise[j]).max() > 0.01

    def loop(p, x):
        def body(state):
            i, rows = state
            return i + 1, rows.at[i].set(x @ p["w"])

        rows = jnp.zeros((2, *x.shape))
        return lax.while_loop(lambda s: s[0] < 2, body, (0, rows))[1]

    noise = _noise(loop, KEY, PARAMS, X)
    assert np.abs(noise[0] - noise[1]).max() > 0.01


def test_both_gradients_round_differently_too():
    g = FORMATS["mxfp4_stochastic"]
    recipe = Recipe("noisy", input_gradient_g=g, weight_gradient_g=g)
    w = np.eye(SIZE, dtype=np.float32)
    cotangent = _normal(2, SIZE, SIZE)

    @jax.jit
    def run(key):
        fn = numerics.apply(recipe, lambda x, w: x @ w, key=key)
        return jax.vjp(fn, w, w)[1](cotangent)  # both are the rounded cotangent

    (of_x, of_w), (again, _) = run(KEY), run(jax.random.key(1))
    assert np.abs(of_x - of_w).max() > 0.01
    assert np.abs(of_x - again).max() > 0.01


def test_devices_round_differently():
    code = """
import jax, jax.numpy as jnp, numpy as np
from algoperf import numerics
P = jax.sharding.PartitionSpec
mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
w = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
x = np.tile(np.eye(8, dtype=np.float32), (2, 1))
noisy = numerics.Recipe("noisy", forward_w=numerics.FORMATS["mxfp4_stochastic"])
def fn(p, x):
    split = dict(mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch"))
    return jax.shard_map(lambda p, x: x @ p["w"], **split)(p, x)
def loss(p, x, key):
    out = numerics.apply(noisy, fn, key=key)(p, x)
    return jnp.sum(out), out
run = jax.jit(jax.value_and_grad(loss, has_aux=True))
(_, out), g = run({"w": w}, x, jax.random.key(0))
assert np.abs(out[:8] - out[8:]).max() > 0.01
np.testing.assert_allclose(g["w"], 2 * np.ones((8, 8)), rtol=1e-6)
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )


def test_nothing_leaks():
    """Jitted functions traced before, inside and after keep their own numerics."""
    inner = jax.jit(lambda x, w: jnp.einsum("ab,bc->ac", x, w))
    other = jax.jit(lambda x, w: jnp.dot(x, w))
    exact = np.float64(X) @ np.float64(W)

    def is_exact(value):
        return np.abs(np.asarray(value) - exact).max() < 1e-5

    def quantised(fn):
        return jax.jit(numerics.apply(COARSE, lambda p, x: fn(x, p["w"])))

    assert is_exact(inner(X, W))  # before
    assert not is_exact(quantised(inner)(PARAMS, X))
    assert is_exact(inner(X, W))
    assert not is_exact(quantised(other)(PARAMS, X))  # first traced inside
    assert is_exact(other(X, W))  # after
    assert not is_exact(quantised(other)(PARAMS, X))
    assert is_exact(jnp.einsum("ab,bc->ac", X, W))


def test_no_gradient_leaks():
    inner = jax.jit(lambda p, x: jnp.sum(jnp.sin(x @ p["w"])))
    exact = np.float64(X).T @ np.cos(np.float64(X) @ np.float64(W))
    plain, quantised = jax.grad(inner), jax.grad(numerics.apply(COARSE, inner))

    def is_exact(gradient):
        return np.abs(np.asarray(gradient["w"]) - exact).max() < 1e-5

    for _ in range(2):
        assert is_exact(plain(PARAMS, X))
        assert not is_exact(quantised(PARAMS, X))
    both = jax.jit(lambda p, x: (plain(p, x), quantised(p, x)))(PARAMS, X)
    assert [is_exact(gradient) for gradient in both] == [True, False]


class _Model(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        x = x.reshape(len(x), -1, 4)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x).mean(axis=1)
        return nn.Dense(3, name="head")(x)


@functools.cache
def _model():
    x = jnp.ones((2, 4, 4, 3))
    return _Model().init(KEY, x, True)["params"], x


def _forward(params, x, train):
    return _Model().apply({"params": params}, x, train)


def _names(recipe, **options):
    params, x = _model()
    found = numerics.products(recipe, _forward, params, x, True, **options)
    return {(item.name, item.parameter) for item in found if item.reason is None}, found


def test_modules_and_parameters_are_known():
    quantised, found = _names("mxfp8")
    assert len(found) == 8
    assert [f.parameter for f in found] == [
        "stem/kernel",
        "attention/query/kernel",
        "attention/key/kernel",
        "attention/value/kernel",
        None,
        None,
        "attention/out/kernel",
        "head/kernel",
    ]
    assert found[0].name == "_Model/stem"
    assert found[0].primitive == "conv_general_dilated"
    assert found[4].name.startswith("_Model/attention/")
    assert len(quantised) == 8


def test_what_a_recipe_keeps():
    mxfp8 = RECIPES["mxfp8"]
    _, every = _names(mxfp8)

    def left(recipe, **options):
        return {f.parameter for f in every} - {
            p for _, p in _names(recipe, **options)[0]
        }

    assert left(mxfp8.replace(weights_only=True)) == {None}
    assert left(mxfp8.replace(keep_first=1, keep_last=1)) == {
        "stem/kernel",
        "head/kernel",
    }
    assert left(mxfp8.replace(keep=("attention/(query|out)",))) == {
        "attention/query/kernel",
        "attention/out/kernel",
    }
    params, _ = _model()
    types = jax.tree.map(
        lambda leaf: "CONV_WEIGHT" if leaf.ndim == 4 else "WEIGHT", params
    )
    kept = mxfp8.replace(keep_types=("CONV_WEIGHT",))
    assert left(kept, parameter_types=types) == {"stem/kernel"}
    with pytest.raises(UserError, match="keeps parameters by type"):
        _names(kept)


def test_the_table_names_all_and_says_why():
    text = numerics.table(_names(RECIPES["mxfp8"].replace(keep_last=1))[1])
    lines = text.splitlines()
    assert len(lines) == 10
    assert "2x4x4x3" in lines[1]
    assert lines[-2].endswith("no: it is among the last 1, which the recipe keeps")
    assert lines[-1] == "7 of 8 products are quantised"


def test_products_of_a_scan_are_counted():
    found = numerics.products(COARSE, _by_scan, PARAMS, X)
    assert [(f.repeats, f.parameter) for f in found] == [(3, "w")]
    nothing_runs = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert numerics.products(COARSE, _by_scan, PARAMS, nothing_runs) == found


def test_parameters_are_followed_through_loops_casts_and_joins():
    def fn(p, x):
        both = jnp.stack([p["w"], p["v"].T]).astype(jnp.bfloat16)

        def step(x, _):
            return jnp.einsum("bk,dkn->dbn", x, both)[0].astype(x.dtype), p["w"].T @ x.T

        return lax.scan(step, x, length=2)

    found = numerics.products(COARSE, fn, {"v": W, "w": W}, X)
    assert [f.parameter for f in found] == ["w", "w"]
    assert found[1].weight_is_left

    def mixed(p, x):
        return x @ jnp.concatenate([p["w"], x])[:SIZE]

    assert numerics.products(COARSE, mixed, PARAMS, X)[0].parameter is None


def test_integer_products_are_left_alone():
    def fn(p, x):
        counts = jnp.ones((2, SIZE), jnp.int32) @ jnp.ones((SIZE, 2), jnp.int32)
        return x @ p["w"], counts

    found = numerics.products(COARSE, fn, PARAMS, X)
    assert [f.reason for f in found][1] is None or "int32" in found[1].reason
    assert sum(f.reason is None for f in found) == 1
    assert (numerics.apply(COARSE, fn)(PARAMS, X)[1] == SIZE).all()


def test_loss_scaling_keeps_small_gradients():
    fp16 = RECIPES["identity"].replace(
        input_gradient_g=FORMATS["fp16"], weight_gradient_g=FORMATS["fp16"]
    )

    def loss(p, x):
        return 1e-9 * jnp.sum(x @ p["w"])

    exact = jax.grad(loss)(PARAMS, X)["w"]
    flushed = jax.grad(numerics.apply(fp16, loss))(PARAMS, X)["w"]
    scaled = fp16.replace(loss_scale=2.0**20)
    kept = jax.grad(numerics.apply(scaled, loss))(PARAMS, X)["w"]
    assert not flushed.any()
    np.testing.assert_allclose(kept, exact, rtol=2e-3)


@pytest.mark.parametrize(
    ("recipe", "fn", "message"),
    [
        ("mxfp99", lambda p, x: x, "unknown recipe 'mxfp99'; did you mean"),
        ("mxfp8", lambda p, x: x + 1, "the function has no products"),
        (
            RECIPES["mxfp8"].replace(keep=(".*",)),
            lambda p, x: x @ p["w"],
            "matches none of the function's 1 products: the recipe keeps",
        ),
        ("quartet", lambda p, x: x @ p["w"], "give apply a key="),
        (
            Recipe(forward_x=FORMATS["mxfp4"].replace(pad=False)),
            lambda p, x: x @ p["w"],
            "blocks of 32 do not divide an axis of 8",
        ),
    ],
)
def test_mistakes_are_found_when_tracing(recipe, fn, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(numerics.apply(recipe, fn), PARAMS, X)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"forward_x": "mxfp8"}, "give a Format"),
        ({"estimator": "ste"}, "unknown estimator"),
        ({"backward_from": "quantized"}, "'original' or 'quantised'"),
        ({"outliers": 1.0}, "a share from 0 to 1"),
        ({"loss_scale": 0.0}, "must be positive"),
        ({"keep": ("(",)}, "no regular expression"),
        ({"keep_types": ("EMBEDING",)}, "type 'EMBEDING'; did you mean EMBEDDING"),
    ],
)
def test_recipes_that_make_no_sense(fields, message):
    with pytest.raises(UserError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("estimator", "fields", "message"),
    [
        ("exact", {"forward_w": FORMATS["quest_fp4"]}, "scale e8m0_quest of forward_w"),
        ("exact", {"forward_x": FORMATS["fixed_8_4"]}, "scale fixed of forward_x"),
        ("exact", {"forward_w": FORMATS["luq_fp4"]}, "stochastic rounding of"),
        *((name, {"outliers": 0.1}, "outliers") for name in ("exact", "dge")),
        *((name, {"amax_history": 2}, "amax_history") for name in ("exact", "dge")),
    ],
)
def test_estimators_that_would_take_another_scale(estimator, fields, message):
    with pytest.raises(UserError, match=f"{message}.*take 'clipped'"):
        Recipe(estimator=estimator, **fields)
    Recipe(estimator="clipped", **fields)
    if "forward" in "".join(fields):
        Recipe(estimator="dge", **fields)


def test_the_exact_estimator_goes_with_any_rounding_of_gradients():
    noisy = FORMATS["mxfp4_stochastic"]
    plain = FORMATS["bf16"].replace(rounding="stochastic")  # without a scale
    Recipe(estimator="exact", forward_x=plain, weight_gradient_g=noisy)


def test_rotations_that_make_no_sense():
    with pytest.raises(UserError, match="power of two"):
        Rotation(24)
