"""Block formats against the independent emulator gfloat, and published numbers."""

import dataclasses
import math

import gfloat
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gfloat import formats as reference
from hypothesis import strategies as st

from algoperf import numerics
from algoperf.numerics import blocks, rounding, transforms


def _integers_of_gfloat(bits):
    """Blocks of 32 integers k / 2^(bits - 2), as OCP's MXINT8 with fewer bits."""
    int8 = reference.format_info_ocp_int8
    element = dataclasses.replace(int8, name=f"int{bits}", k=bits, precision=bits)
    return dataclasses.replace(reference.format_info_mxint8, etype=element)


MX = {
    "mxfp8_e4m3": reference.format_info_mxfp8_e4m3,
    "mxfp8_e5m2": reference.format_info_mxfp8_e5m2,
    "mxfp6_e2m3": reference.format_info_mxfp6_e2m3,
    "mxfp6_e3m2": reference.format_info_mxfp6_e3m2,
    "mxfp4": reference.format_info_mxfp4_e2m1,
    "mxint8": reference.format_info_mxint8,
    "mxint6": _integers_of_gfloat(6),
    "mxint4": _integers_of_gfloat(4),
}
BLOCKS, BLOCK = 1000, 32


def _bits(x):
    return np.asarray(x, np.float32).view(np.int32)


def _assert_same(ours, theirs):
    """Compares bit for bit; all NaN are one, and integers have one zero."""
    with np.errstate(over="ignore"):
        theirs = np.asarray(theirs).astype(np.float32)
    ours = np.asarray(ours)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    same = _bits(ours) == _bits(theirs)
    same |= np.isnan(ours) | ((ours == 0) & (theirs == 0))
    assert same.all(), (ours[~same][:5], theirs[~same][:5])


def _ours(x, fmt, **options):
    return jax.jit(lambda x: numerics.quantize(x, fmt, **options))(x)


def _many_blocks():
    """Blocks of all magnitudes, to the subnormals, with zeros and ties in them."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(BLOCKS, BLOCK))
    x *= np.exp2(generator.integers(-8, 8, x.shape))
    x *= np.exp2(generator.uniform(-152, 118, (BLOCKS, 1)))
    x[generator.random(x.shape) < 0.1] = 0.0
    x[0] = 0.0
    x[1] = -0.0
    x[2, 1:] = 0.0
    # Whole multiples of a power of two, so that many lie halfway between two values.
    ties = generator.integers(-255, 256, (200, BLOCK)) * np.exp2(
        generator.integers(-140, 110, (200, 1)).astype(float)
    )
    return np.concatenate([x, ties]).astype(np.float32)


def _by_gfloat(x, info, scale, symmetric=True):
    """Scale (blocks, 1) and element rounding of gfloat, in float64."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scale > 0, x.astype(np.float64) / scale, 0.0)
    elements = gfloat.round_ndarray(info.etype, scaled, sat=True)
    if info.etype.is_twos_complement and symmetric:
        elements = np.maximum(elements, -info.etype.max)
    return elements * scale


@pytest.mark.parametrize("name", MX)
def test_mx_formats_equal_gfloat(name):
    x, info = _many_blocks(), MX[name]
    scales = [gfloat.compute_scale_amax(info.etype.emax, b.astype(float)) for b in x]
    expected = _by_gfloat(x, info, np.array(scales)[:, None])
    _assert_same(_ours(x, name), expected)
    _assert_same(_ours(x.T.copy(), name, axis=0).T, expected)
    flat = _ours(x.reshape(2, -1), name)  # many blocks on one axis
    _assert_same(flat.reshape(x.shape), expected)


@pytest.mark.parametrize("name", MX)
def test_special_blocks_equal_gfloat(name):
    info = MX[name]
    fmt = numerics.FORMATS[name].replace(symmetric=False)
    rest = np.random.default_rng(1).normal(size=BLOCK)
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    special = [
        np.where(np.arange(BLOCK) == 3, value, scale * rest)
        for value in (np.inf, -np.inf, huge, -huge, np.nan, 0.0, tiny)
        for scale in (0.0, 1e-44, 1e-38, 1.0, 1e38)
    ]
    x = np.array(special).astype(np.float32)
    expected = []
    for block in x.astype(np.float64):
        if np.isnan(block).any():  # gfloat: NaN scale, where the element has NaN at all
            expected.append(np.full(BLOCK, np.nan))
            continue
        expected.append(gfloat.quantize_block(info, block, gfloat.compute_scale_amax))
    _assert_same(_ours(x, fmt), np.array(expected))


@pytest.mark.parametrize("name", MX)
def test_scales_by_ceil_and_nearest_equal_gfloat(name):
    info = MX[name]
    x = _many_blocks()
    top = info.etype.max
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.ceil(np.log2(largest / top)), -127, 127)
    _assert_same(_ours(x, f"{name}_ceil"), _by_gfloat(x, info, np.exp2(exponent)))
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.rint(np.log2(largest / top)), -127, 127)
    nearest = numerics.FORMATS[name].replace(scale="e8m0_nearest")
    _assert_same(_ours(x, nearest), _by_gfloat(x, info, np.exp2(exponent)))


def _by_nvidia(x, name):
    """arXiv:2509.25149, appendix, in float32 step by step; also returns the scales."""
    one = np.float32(1)
    top = np.float32(6 if name == "nvfp4" else 7)
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.abs(x).max(axis=1, keepdims=True)
        tensor = largest.max() * (one / (top * np.float32(448)))
        wanted = largest * (one / top) * np.where(tensor > 0, one / tensor, 0)
        # A scale of infinity has no code in E4M3, so it is NaN.
        wanted = np.where(np.isinf(wanted), np.nan, wanted).astype(np.float32)
        e4m3 = gfloat.round_ndarray(reference.format_info_ocp_e4m3, wanted, sat=True)
        scale = np.float32(e4m3) * tensor
        scaled = x * np.where(scale == 0, 0, one / scale).astype(np.float32)
    if name == "nvfp4":
        is_nan = np.isnan(scaled)  # which E2M1 of gfloat has no code for
        elements = gfloat.round_ndarray(
            reference.format_info_ocp_e2m1, np.where(is_nan, 0, scaled), sat=True
        ).astype(np.float32)
        elements = np.where(is_nan, np.nan, elements)
    else:
        elements = np.clip(np.rint(scaled), -7, 7)
    with np.errstate(invalid="ignore"):
        return elements * scale, e4m3


@pytest.mark.parametrize("name", ["nvfp4", "nvint4"])
def test_nvidia_formats_equal_gfloat(name):
    x = np.random.default_rng(2).normal(size=(4000, 16)).astype(np.float32)
    x *= np.exp2(np.random.default_rng(3).uniform(-20, 2, (4000, 1))).astype(np.float32)
    x[7] = 0.0
    expected, scales = _by_nvidia(x, name)
    assert (scales == 0).sum() > 1  # some underflow
    _assert_same(_ours(x, name), expected)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38, 1e-45])
@pytest.mark.parametrize("name", ["nvfp4", "nvint4"])
def test_special_values_of_nvidia_formats_equal_gfloat(name, value):
    """The tensor's scale sees them too, so one infinity is a NaN in every group."""
    x = np.random.default_rng(2).normal(size=(8, 16)).astype(np.float32)
    x[1], x[2, 3] = 0.0, value
    expected, _ = _by_nvidia(x, name)
    assert np.isnan(expected).all() == (not np.isfinite(value))
    _assert_same(_ours(x, name), expected)
    only = np.where(np.arange(16) == 3, np.float32(value), np.zeros((8, 1), np.float32))
    _assert_same(_ours(only, name), _by_nvidia(only, name)[0])
    _assert_same(_ours(np.zeros((8, 16), np.float32), name), np.zeros((8, 16)))


@pytest.mark.parametrize(("name", "axes"), [("int8", 1), ("int4", 1), ("fp8", None)])
def test_formats_of_one_float32_scale_equal_gfloat(name, axes):
    x = np.random.default_rng(4).normal(size=(300, 50)).astype(np.float32)
    x *= np.exp2(np.random.default_rng(5).uniform(-30, 30, (300, 1))).astype(np.float32)
    x[7], x[8, 3] = 0.0, np.nan if axes else 0.0
    info = MX["mxint4"].etype if name == "int4" else reference.format_info_ocp_int8
    unit = 2.0 ** (info.k - 2)  # integers of gfloat are k / unit
    if name == "fp8":
        info, unit = reference.format_info_ocp_e4m3, 1.0
    largest = np.abs(x).max(axis=axes, keepdims=True)
    scale = largest * np.float32(1 / (info.max * unit))
    with np.errstate(divide="ignore"):
        scaled = x * np.where(scale == 0, 0, np.float32(1) / scale)
    is_nan = np.isnan(scaled)
    elements = unit * gfloat.round_ndarray(
        info, np.where(is_nan, 0, scaled.astype(np.float64) / unit), sat=True
    )
    elements = np.where(is_nan, np.nan, elements.astype(np.float32))
    _assert_same(_ours(x, name), elements * scale)


def test_a_short_last_block_is_as_if_filled_with_zeros():
    x = np.random.default_rng(0).normal(size=(6, 45)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (0, 64 - 45)])
    for name in ("mxfp4", "nvfp4", "mxint8"):
        expected = np.asarray(_ours(padded, name))[:, :45]
        np.testing.assert_array_equal(_ours(x, name), expected)


def test_the_smallest_scales_may_be_dropped_and_nothing_else_changes():
    x = _many_blocks()
    fmt = numerics.FORMATS["mxfp8_ceil"]

    def fast(x):
        parts = blocks.take_apart(x, fmt, 1, subnormals=False)
        return blocks.put_together(parts, fmt, x.shape, 1, subnormals=False)

    smallest = np.float32(2.0**-100)
    exact, quick = np.asarray(_ours(x, fmt)), np.asarray(jax.jit(fast)(x))
    largest = np.abs(x).max(axis=1, keepdims=True)
    normal = np.broadcast_to(largest >= smallest * 2**9, x.shape)
    assert normal.mean() > 0.7
    np.testing.assert_array_equal(quick[normal], exact[normal])
    assert (np.abs(quick - exact)[~normal] <= smallest * 2.0**-9).all()


def test_a_scale_too_small_to_invert_makes_zeros(monkeypatch):
    """Also where subnormals are not flushed, as on a GPU and in NumPy."""
    x = np.zeros((2, 8), np.float32)
    x[0, 3], x[1, 3] = 3e-37, 1.0  # 3e-37 / 127 is subnormal, with reciprocal infinity
    quantised = np.asarray(_ours(x, "int8"))
    assert not quantised[0].any()
    assert quantised[1, 3] == 1.0
    scales = np.array([0.0, 1e-45, 2.4e-39, 1.1e-38, 2.0**-126, np.nan], np.float32)
    monkeypatch.setattr(blocks, "jnp", np)
    with np.errstate(over="ignore", divide="ignore"):
        inverse = blocks.reciprocal(scales)
    np.testing.assert_array_equal(inverse, [0, 0, 0, 0, 2.0**126, np.nan])


@pytest.mark.parametrize("name", ["int8", "fp8", "nvint4", "mxint8_ceil", "luq_fp4"])
def test_the_largest_element_is_not_clipped_by_its_own_scale(name):
    """Only a block whose E4M3 scale was rounded down clips it."""
    fmt = numerics.FORMATS[name].replace(rounding="nearest_even")
    x = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    x[0] = 127.0 / 64  # on the end of mxint8, exactly
    parts = jax.jit(lambda x: blocks.take_apart(x, fmt, 1, subnormals=False))(x)
    is_inside = np.asarray(parts.is_inside)
    if name == "nvint4":
        assert 0.9 < is_inside.mean() < 1
        clipped = np.asarray(parts.elements)[~is_inside]
        np.testing.assert_array_equal(np.abs(clipped), 7)
    else:
        assert is_inside.all()


@pytest.mark.parametrize(
    "name", ["mxfp8", "mxint8", "mxint4_ceil", "quest_fp4", "ue5m3_fp4", "fp8", "int8"]
)
def test_products_are_given_nan_for_a_group_with_an_infinity(name):
    """As a finite number it would hide an overflow from a dynamic loss scale."""
    fmt = numerics.FORMATS[name]
    x = np.ones((2, 64), np.float32)
    x[1, 3] = np.inf
    quantise = jax.jit(transforms.quantize_in_full, static_argnums=(1, 2))
    values, _, factors = quantise(x, fmt, 1)
    assert np.isnan(values[1, :16]).all()
    assert np.isnan((factors.elements * factors.outer)[1, :16]).all()
    if fmt.group != "tensor":
        assert np.isfinite(values[0]).all()
    if fmt.scale == "ue5m3":
        assert np.isnan(_ours(x, name)[1, :16]).all()


@pytest.mark.parametrize(("name", "largest"), [("fixed_8_4", None), ("fp8", 2.0)])
def test_products_are_given_nan_for_an_infinity_under_a_scale_from_elsewhere(
    name, largest
):
    fmt = numerics.FORMATS[name].replace(rounding="nearest_even")
    x = np.array([1.0, np.inf, -np.inf, 100.0], np.float32)
    values, _, _ = transforms.quantize_in_full(
        x, fmt, 0, largest=None if largest is None else jnp.float32(largest)
    )
    top = 127 / 16 if largest is None else largest
    np.testing.assert_allclose(values, [1.0, np.nan, np.nan, top], rtol=1e-6)


def _qsnr(x, quantised):
    error = np.asarray(quantised, np.float64) - x
    return -10 * np.log10(np.sum(error**2) / np.sum(np.float64(x) ** 2))


@pytest.fixture(scope="module")
def gaussians():
    return np.random.default_rng(0).normal(size=(1 << 15, BLOCK)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "decibels"),
    [
        ("mxfp8_e4m3_ceil", 31.52),
        ("mxint8_ceil", 41.61),
        ("mxfp6_e2m3_ceil", 30.96),
        ("mxfp6_e2m3", 30.94),
        ("mxfp4_ceil", 18.76),
        ("mxfp4", 18.79),
        ("nvfp4", 20.44),
    ],
)
def test_signal_to_noise_of_gaussians(name, decibels, gaussians):
    assert abs(_qsnr(gaussians, _ours(gaussians, name)) - decibels) < 0.05


def test_quartet_table_of_rounding_errors(gaussians):
    """arXiv:2505.14669, table 2: relative error and bias of three quantisers."""
    shift = np.random.default_rng(1).uniform(size=(len(gaussians), 1))
    x = (gaussians * np.exp2(shift)).astype(np.float32)
    stochastic = numerics.FORMATS["mxfp4_stochastic"]
    nearest = stochastic.replace(rounding="nearest_even")

    def error(fmt):
        quantised = np.asarray(_ours(x, fmt, key=jax.random.key(0)))
        squares = np.sum((quantised - x) ** 2, axis=1) / np.sum(x**2, axis=1)
        return squares.mean(), 1 - np.sum(quantised * x) / np.sum(x * x)

    errors, biases = zip(
        *(error(f) for f in (stochastic, nearest, numerics.FORMATS["quest_fp4"])),
        strict=True,
    )
    np.testing.assert_allclose(errors, [2.77e-2, 1.37e-2, 1.33e-2], rtol=0.01)
    np.testing.assert_allclose(biases[:2], [0, 9.2e-3], atol=3e-4)


def _theory(kappa, mantissa_bits, bias, top, rho, block=None):
    """Theorem 2 of arXiv:2510.25602: QSNR of a float format for N(0, 1) blocks."""
    alpha = 1 / (24 * 4**mantissa_bits)
    beta = 4.0 ** (1 - bias - mantissa_bits) / (12 * top**2)
    t = rho * kappa * 2.0 ** (1 - bias) / top
    normal = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + math.erf(t / math.sqrt(2)))
    weight = 2 * (t * normal + 1 - below) - (kappa**2 / block if block else 0.0)
    spread = beta * (rho * kappa) ** 2 * (2 * below - 1)
    return -10 * math.log10(alpha * weight + spread)


THEOREMS = [  # bits, (mantissa bits, bias, largest), rho, block of an E4M3 scale
    ("mx8", 8, (3, 7, 448), 1.5, None),
    ("mx6", 6, (3, 1, 7.5), 1.5, None),
    ("mx4", 4, (1, 1, 6), 1.5, None),
    ("nv4", 4, (1, 1, 6), 1.05, 16),  # rho of the paper's code; its text has 1
]


def _crossing(bits, element, rho, block, lost=0.0):
    """Crest factor and QSNR where theorem 1, less `lost` dB, meets theorem 2."""

    def integer(kappa):
        of_block = 10 * math.log10(block / (block - 1)) if block else 0.0
        at_one = 4.78 + 6.02 * bits - 20 * math.log10(rho) + of_block
        return at_one - 20 * math.log10(kappa) - lost

    low, high = 1.0, math.sqrt(block) if block else 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if integer(middle) > _theory(middle, *element, rho, block):
            low = middle
        else:
            high = middle
    return low, integer(low)


@pytest.mark.parametrize(
    ("theorem", "crest", "decibels"),
    [
        (THEOREMS[0], 7.55, 31.86),
        (THEOREMS[1], 1.96, 31.54),
        (THEOREMS[2], 2.04, 19.14),
        (THEOREMS[3], 2.39, 21.14),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_crest_factors_where_the_theorems_meet(theorem, crest, decibels):
    """As arXiv:2510.25602 says."""
    found, height = _crossing(*theorem[1:])
    assert abs(found - crest) < 0.01
    assert abs(height - decibels) < 0.03


def _advantage(x, integers, floats):
    """How much better integers are, in dB."""
    return _qsnr(x, _ours(x, integers)) - _qsnr(x, _ours(x, floats))


@pytest.mark.parametrize(
    ("theorem", "floats", "integers"),
    [
        (THEOREMS[1], "mxfp6_e2m3_ceil", "mxint6_ceil"),
        (THEOREMS[2], "mxfp4_ceil", "mxint4_ceil"),
        (THEOREMS[3], "nvfp4", "nvint4"),
    ],
)
def test_our_formats_meet_where_the_theorems_do(theorem, floats, integers):
    """Gaussian blocks, sorted by their own crest factors.

    Theorem 1 has integers up to 2^(bits - 1); symmetric ones end one before.
    """
    bits, block = theorem[1], numerics.FORMATS[floats].group
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1 << 17, block))
    crests = np.abs(x).max(axis=1) / np.sqrt(np.mean(x**2, axis=1))
    if theorem[4] is None:  # where the scale is a power of two, all magnitudes
        x *= np.exp2(generator.uniform(size=(len(x), 1)))
    x = x.astype(np.float32)
    edges = np.arange(1.6, 2.7, 0.1)
    found = [
        _advantage(x[(crests >= low) & (crests < low + 0.1)], integers, floats)
        for low in edges
    ]
    assert (np.diff(found) < 0).all()  # falls with the crest factor
    measured = np.interp(0.0, found[::-1], (edges + 0.05)[::-1])
    lost = 20 * math.log10(2 ** (bits - 1) / (2 ** (bits - 1) - 1))
    expected, _ = _crossing(*theorem[1:], lost)
    # The theorems put the mean of rho where it takes all values from 1 to 2.
    assert abs(measured / expected - 1) < 0.08


def test_integers_of_8_bits_win_on_all_blocks_of_32():
    """They would lose from 7.55 on, and a crest factor is sqrt(32) at most."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4000, BLOCK))
    x[:, 0] = 4.0 * np.sqrt(np.sum(x[:, 1:] ** 2, axis=1) / (BLOCK - 16.0))
    assert 7.55 > math.sqrt(BLOCK) > 4.0
    assert _advantage(x.astype(np.float32), "mxint8_ceil", "mxfp8_e4m3_ceil") > 0


def test_symmetric_integers_remove_the_bias_of_gradients():
    """arXiv:2510.25602, section 5: x / scale computed in bfloat16 can reach -128."""

    def bfloat16(x):
        return np.asarray(numerics.quantize(jnp.asarray(x), "bf16"))

    generator = np.random.default_rng(0)
    x = bfloat16(generator.normal(size=(1 << 14, BLOCK)).astype(np.float32))
    scale = bfloat16(np.abs(x).max(axis=1, keepdims=True) / np.float32(127))
    scaled = bfloat16(x / scale)

    def bias(symmetric):
        fmt = numerics.Format("int8", scale=None, symmetric=symmetric)
        codes = np.asarray(numerics.quantize(scaled, fmt))
        error = codes * scale - x
        standard_error = error.std() / math.sqrt(error.size)
        return np.mean(codes == -128), error.mean() / standard_error

    (share, biased), (none, unbiased) = bias(False), bias(True)
    assert abs(share - 0.0023) < 2e-4
    assert none == 0
    assert biased < -4
    assert abs(unbiased) < 2


@pytest.mark.parametrize("name", ["e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "bf16"])
def test_stochastic_rounding_is_unbiased(name):
    """Each of 64 numbers, rounded 20,000 times, within 4 standard errors."""
    fmt = numerics.Format(name, scale=None, rounding="stochastic")
    spread = min(fmt.elements.max, 100.0)
    x = np.random.default_rng(0).uniform(-spread, spread, 64).astype(np.float32)
    x[:16] *= 0.01  # to the subnormals
    draws = 20_000
    many = np.broadcast_to(x, (draws, 64))
    rounded = np.asarray(_ours(many, fmt, key=jax.random.key(0)), np.float64)
    low, high = rounded.min(axis=0), rounded.max(axis=0)
    nearest = np.asarray(_ours(x, fmt.replace(rounding="nearest_even")))
    assert ((nearest == low) | (nearest == high)).all()
    assert all(len(np.unique(column)) <= 2 for column in rounded.T)
    # The variance of a draw between two values, with the rule of three for a value
    # so improbable that it never came.
    step = np.where(high > low, high - low, np.abs(x) * 2.0**-2)
    chance = np.abs(x - low) / step
    variance = np.maximum(chance * (1 - chance), 3 / draws) * step**2
    score = (rounded.mean(axis=0) - x) / np.sqrt(variance / draws)
    assert np.abs(score).max() < 4
    assert 0.5 < np.mean(score[high > low] ** 2) < 1.6


@pytest.mark.parametrize("name", ["mxfp4_stochastic", "mxfp8_ceil", "mxint8_ceil"])
def test_block_formats_that_do_not_clip_are_unbiased(name):
    fmt = numerics.FORMATS[name].replace(rounding="stochastic")
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    many = np.broadcast_to(x, (4000, 4, 64))
    rounded = np.asarray(_ours(many, fmt, key=jax.random.key(1)), np.float64)
    direction = np.random.default_rng(1).normal(size=x.shape)
    projected = np.sum((rounded - x) * direction, axis=(1, 2))
    assert abs(projected.mean()) < 4 * projected.std() / math.sqrt(len(projected))
    assert projected.std() > 0


def test_random_numbers_are_uniform_and_independent():
    words = rounding.words_of(jax.random.key(0))
    other = rounding.fold(words, 1)
    one = np.asarray(rounding.uniform(words, (400, 500)), np.float64)
    two = np.asarray(rounding.uniform(other, (400, 500)), np.float64)
    counts = np.histogram(one, bins=64, range=(0, 1))[0]
    chi_squared = np.sum((counts - one.size / 64) ** 2) / (one.size / 64)
    assert 30 < chi_squared < 110  # 63 degrees of freedom
    for a, b in ((one[:, 1:], one[:, :-1]), (one[1:], one[:-1]), (one, two)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size)
    assert not np.array_equal(one, two)


def test_a_key_is_reproducible_and_raw_and_typed_are_the_same():
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    quantise = jax.jit(lambda key: numerics.quantize(x, "mxfp4_stochastic", key=key))
    typed, raw = quantise(jax.random.key(3)), quantise(jax.random.PRNGKey(3))
    np.testing.assert_array_equal(typed, raw)
    other = quantise(jax.random.key(4))
    assert not np.array_equal(typed, other)


_quantise = jax.jit(numerics.quantize, static_argnums=(1, 2))


@hypothesis.given(
    st.sampled_from(["mxfp8", "mxfp4", "mxint8_ceil", "mxfp6_e3m2"]),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=32, max_size=32),
    st.integers(-20, 20),
)
@hypothesis.settings(max_examples=40)
def test_laws(name, values, exponent):
    """Idempotent, odd, and equivariant under powers of two."""
    x = np.array(values, np.float32)
    quantised = np.asarray(_quantise(x, name, -1))
    np.testing.assert_array_equal(_quantise(-x, name, -1), -quantised)
    if name != "mxint8_ceil":  # a largest value that rounds down may change the scale
        np.testing.assert_array_equal(_quantise(quantised, name, -1), quantised)
    if np.abs(x[x != 0]).min(initial=1) > 1e-20:
        factor = np.float32(2.0**exponent)
        np.testing.assert_array_equal(
            _quantise(x * factor, name, -1), quantised * factor
        )
