"""Elements against ml_dtypes, and formats that make no sense."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from algoperf import numerics
from algoperf.errors import UserError
from algoperf.numerics import blocks, formats, rounding

DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "int4": ml_dtypes.int4,
    "int8": np.int8,
}
FLOATS = [name for name in DTYPES if not name.startswith("int")]


def _all_values(name):
    """Every finite value of the type, float32."""
    dtype = np.dtype(DTYPES[name])
    bits = formats.ELEMENTS[name].bits
    kind = np.uint8 if dtype.itemsize == 1 else np.uint16
    with np.errstate(invalid="ignore"):
        values = np.arange(2**bits, dtype=kind).view(dtype).astype(np.float32)
    return values[np.isfinite(values)]


def _plain(name):
    return numerics.Format(name, scale=None)


@pytest.mark.parametrize("name", FLOATS)
def test_every_value_of_an_element_is_its_own(name):
    values = _all_values(name)
    element = formats.ELEMENTS[name]

    @jax.jit
    def all_ways(values):
        codes = rounding.element_codes(values, element)
        back = rounding.element_values(codes, element)
        return numerics.quantize(values, _plain(name)), codes, back

    quantised, codes, back = map(np.asarray, all_ways(values))
    np.testing.assert_array_equal(quantised.view(np.int32), values.view(np.int32))
    expected = values.astype(DTYPES[name])
    kind = np.uint8 if expected.itemsize == 1 else np.uint16
    np.testing.assert_array_equal(codes, expected.view(kind))
    np.testing.assert_array_equal(back.view(np.int32), values.view(np.int32))


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_equals_ml_dtypes(name):
    generator = np.random.default_rng(0)
    element = formats.ELEMENTS[name]
    spread = element.max if element.max < 1e6 else 1e3
    uniform = generator.uniform(-1.1, 1.1, 50_000) * spread
    exponents = generator.uniform(
        np.log2(element.smallest) - 2, np.log2(spread), 50_000
    )
    scattered = np.exp2(exponents) * generator.choice([-1, 1], 50_000)
    values = np.sort(_all_values(name))
    middles = (values[1:] / 2 + values[:-1] / 2).astype(np.float32)  # the ties
    x = np.concatenate([uniform, scattered, middles]).astype(np.float32)
    if element.name not in ("bf16", "fp16"):  # those go to infinity, as a cast does
        expected = np.clip(x, -element.max, element.max)
    else:
        expected = x
    with np.errstate(over="ignore"):
        expected = expected.astype(DTYPES[name]).astype(np.float32)
    quantised = np.asarray(jax.jit(lambda x: numerics.quantize(x, _plain(name)))(x))
    np.testing.assert_array_equal(quantised.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_integers_equal_casts(name):
    top = formats.ELEMENTS[name].max
    x = np.random.default_rng(0).uniform(-top - 2, top + 2, 100_000).astype(np.float32)
    two_complement = _plain(name).replace(symmetric=False)
    expected = np.clip(np.rint(x), -top - 1, top).astype(DTYPES[name])
    values = expected.astype(np.float32)
    np.testing.assert_array_equal(numerics.quantize(x, two_complement), values)
    codes = rounding.element_codes(jnp.asarray(values), formats.ELEMENTS[name])
    low = 2**two_complement.elements.bits - 1
    np.testing.assert_array_equal(codes, expected.astype(np.int32) & low)
    np.testing.assert_array_equal(
        rounding.element_values(codes, formats.ELEMENTS[name]), values
    )
    symmetric = numerics.quantize(x, _plain(name))
    np.testing.assert_array_equal(symmetric, np.clip(np.rint(x), -top, top))


@pytest.mark.parametrize("name", FLOATS)
def test_infinities_and_nan_of_a_plain_cast(name):
    x = np.array([np.inf, -np.inf, np.nan, 3e38], np.float32)
    top = formats.ELEMENTS[name].max
    saturated = [top, -top, np.nan, min(top, 3e38)]
    cast = [np.inf, -np.inf, np.nan, np.inf if name == "fp16" else 3e38]
    expected = cast if name in ("bf16", "fp16") else saturated
    np.testing.assert_allclose(numerics.quantize(x, _plain(name)), expected, rtol=4e-3)


def test_the_unsigned_scale_format_by_its_definition():
    element = formats.SCALE_ELEMENTS["ue5m3"]
    # Exponent fields 0 to 30; the 31st is reserved.
    grid = [m * 2.0**-17 for m in range(8)]
    grid += [(8 + m) * 2.0 ** (field - 18) for field in range(1, 31) for m in range(8)]
    assert max(grid) == element.max == 61440.0
    x = np.random.default_rng(0).uniform(-18, 16, 20_000)
    x = np.exp2(x).astype(np.float32)
    distance = np.abs(x[:, None].astype(np.float64) - np.array(grid))
    nearest = np.array(grid)[np.argmin(distance, axis=1)]
    rounded = rounding.round_to_element(jnp.asarray(x), element)
    np.testing.assert_array_equal(rounded, nearest.astype(np.float32))


def test_logarithmic_elements_are_rounded_as_in_luq():
    """arXiv:2112.10769, equations 16 to 20: pruning below 1, up or down above it."""
    x = np.array([0.3, 1.5, 5.0, 64.0, 90.0, -0.3], np.float32)
    draws = np.broadcast_to(x, (20_000, 6))
    fmt = numerics.Format("e3m0", scale=None, rounding="stochastic")
    key = jax.random.key(0)
    rounded = np.asarray(jax.jit(lambda x: numerics.quantize(x, fmt, key=key))(draws))
    neighbours = [{0, 1}, {1, 2}, {4, 8}, {64}, {64}, {0, -1}]
    assert [set(np.unique(c) + 0.0) for c in rounded.T] == neighbours
    means = [0.3, 1.5, 5.0, 64.0, 64.0, -0.3]
    np.testing.assert_allclose(rounded.mean(axis=0), means, atol=0.06)


@pytest.mark.parametrize("name", sorted(numerics.FORMATS))
def test_presets_are_hashable_and_keep_shape_and_dtype(name):
    fmt = numerics.FORMATS[name]
    assert {fmt: 1}[fmt.replace()] == 1
    x = jnp.linspace(-3, 3, 96, dtype=jnp.bfloat16).reshape(2, 48)
    key = jax.random.key(0)
    quantised = jax.jit(lambda x: numerics.quantize(x, name, key=key))(x)
    assert quantised.dtype == x.dtype
    assert quantised.shape == x.shape
    error = jnp.linalg.norm((quantised - x).astype(jnp.float32)) / jnp.linalg.norm(
        x.astype(jnp.float32)
    )
    coarse = {"luq_fp4": 0.5, "mxint4_ceil": 0.3}.get(name, 0.25)
    assert error < {4: coarse, 6: 0.07, 8: 0.06, 16: 0.01}[fmt.elements.bits]


@pytest.mark.parametrize(
    ("name", "bits"),
    [("mxfp8", 8.25), ("mxfp6", 6.25), ("mxfp4", 4.25), ("nvfp4", 4.5), ("bf16", 16)],
)
def test_bits_per_element(name, bits):
    assert numerics.FORMATS[name].bits_per_element() == bits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"element": "e2m2"}, "unknown element 'e2m2'; did you mean"),
        ({"scale": "e8m0"}, "unknown scale 'e8m0'"),
        ({"rounding": "up"}, "unknown rounding"),
        ({"group": "row"}, "'tensor' or 'channel'"),
        ({"group": 0}, "at least 1"),
        ({"prescale": 1.5}, "prescale is 1.5"),
        ({"scale": None, "tensor_scale": True}, "without scale"),
        ({"element": "int4", "scale": "e8m0_quest"}, "is for e2m1"),
    ],
)
def test_formats_that_make_no_sense(fields, message):
    with pytest.raises(UserError, match=message):
        numerics.Format(**fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: numerics.quantize(jnp.ones(4), "mxfp44"), "unknown format 'mxfp44'"),
        (lambda: numerics.quantize(jnp.ones(4, int), "mxfp4"), "not int32"),
        (lambda: numerics.quantize(jnp.ones((4, 4)), "mxfp4", 2), "no axis 2"),
        (lambda: numerics.quantize(jnp.ones(4), "mxfp4_stochastic"), "a key="),
        (
            lambda: numerics.quantize(
                jnp.ones(4), "mxfp4_stochastic", key=jax.random.split(jax.random.key(0))
            ),
            "give one key",
        ),
        (
            lambda: numerics.quantize(
                jnp.ones(40), numerics.FORMATS["mxfp4"].replace(pad=False)
            ),
            "blocks of 32 do not divide an axis of 40",
        ),
    ],
)
def test_bad_input_of_quantize(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_an_axis_may_be_named_from_either_end():
    assert blocks.checked_axis(3, -1) == 2
    assert blocks.checked_axis(3, 0) == 0
