"""Products in low-precision units give the numbers of the emulated ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from algoperf import numerics
from algoperf.numerics import FORMATS, RECIPES, Format, units
from algoperf.numerics.recipes import uniform
from algoperf.numerics.transforms import quantize_in_full
from algoperf.numerics.units import EMULATOR, Device

INT8, BF16, FP16 = (Device("test", units=(k,)) for k in ("int8", "bfloat16", "float16"))
FP8 = Device("test", units=("float8",))
BLOCKS = Device("test", units=("block-scaled", "bfloat16"))
KEY = jax.random.key(0)
_quantise = jax.jit(quantize_in_full, static_argnums=(1, 2))


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ROWS, INNER, COLUMNS = 48, 64, 32
W, X = {"w": _normal(0, INNER, COLUMNS)}, _normal(1, ROWS, INNER)
G = _normal(2, ROWS, COLUMNS)  # so that both round the same gradient


def _loss(params, x):
    out = x @ params["w"]
    return jnp.sum(out * G), out


@functools.cache
def _gradients(recipe, device):
    recipe = numerics.find_recipe(recipe).replace(keep_last=0)
    quantised = numerics.apply(
        recipe, _loss, key=KEY, parameter_types={"w": "WEIGHT"}, device=device
    )
    run = jax.jit(jax.value_and_grad(quantised, argnums=(0, 1), has_aux=True))
    try:
        return jax.block_until_ready(run(W, X))
    except jax.errors.JaxRuntimeError as error:
        if "UNIMPLEMENTED" not in str(error):
            raise
        pytest.skip(f"XLA cannot multiply {device.units[0]} on this processor")


def _kinds(recipe, device):
    recipe = numerics.find_recipe(recipe).replace(keep_last=0)
    (found,) = numerics.products(
        recipe, _loss, W, X, parameter_types={"w": "WEIGHT"}, device=device
    )
    return found.units


@pytest.mark.parametrize(
    ("recipe", "device", "kind"),
    [
        ("int8", INT8, "int8"),
        ("fp8", FP8, "float8"),
        ("bf16", BF16, "bfloat16"),
        ("mxfp8", BF16, "bfloat16"),
        ("int8", BF16, "bfloat16"),
        ("nvfp4", BF16, "bfloat16"),
        *(
            pytest.param(name, BF16, "bfloat16", marks=pytest.mark.slow)
            for name in ("mxint8", "quartet", "nvint4_hadamard", "ue5m3_fp4")
        ),
    ],
)
def test_units_and_emulation_agree(recipe, device, kind):
    """Up to the order of float32 additions, forward and backward.

    Hopper's FP8 units add up with fewer bits: on an H100 1.2e-4 of the largest number.
    """
    is_hopper = kind == "float8" and jax.default_backend() == "gpu"
    share = 1e-3 if is_hopper else 2e-5
    assert _kinds(recipe, device) == (kind,) * 3
    native, emulated = _gradients(recipe, device), _gradients(recipe, EMULATOR)
    native, emulated = (tree[0][1:] + tree[1:] for tree in (native, emulated))
    for one, other in zip(
        jax.tree.leaves(native), jax.tree.leaves(emulated), strict=True
    ):
        np.testing.assert_allclose(
            one, other, rtol=0, atol=share * float(jnp.abs(other).max())
        )


def test_fp16_runs_in_its_own_units():
    recipe = RECIPES["fp16"].replace(loss_scale=1.0)
    assert _kinds(recipe, FP16) == ("float16",) * 3
    for one, other in zip(
        jax.tree.leaves(_gradients(recipe, FP16)),
        jax.tree.leaves(_gradients(recipe, EMULATOR)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_integers_are_added_up_exactly():
    """Codes of int8, multiplied by NumPy in int64, scaled by the rows' scales."""
    fmt = FORMATS["int8"]
    x, w = _normal(2, 1, ROWS, INNER), _normal(3, 1, INNER, COLUMNS)
    x_f, w_f = quantize_in_full(x, fmt, 2)[2], quantize_in_full(w, fmt, 1)[2]
    found = units.multiply("int8", x_f, w_f, (fmt, fmt), (2, 1))
    codes = np.asarray(x_f.codes, np.int64) @ np.asarray(w_f.codes, np.int64)
    assert np.abs(codes).max() > 2**15
    expected = codes.astype(np.float32) * np.asarray(x_f.outer)
    expected = expected * np.asarray(w_f.outer)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_overflow_goes_unseen_in_integers(value):
    """Beside a fixed scale, which says nothing of them."""
    fmt = Format("int8", "tensor", "fixed", fraction_bits=4)
    x, w = _normal(2, 1, ROWS, INNER), _normal(3, 1, INNER, COLUMNS)
    x[0, 3, 5] = value
    w[0, 7, 2] = value
    x_f, w_f = quantize_in_full(x, fmt, 2)[2], quantize_in_full(w, fmt, 1)[2]
    found = np.asarray(units.multiply("int8", x_f, w_f, (fmt, fmt), (2, 1)))[0]
    expected = np.asarray((x_f.elements @ w_f.elements) * x_f.outer * w_f.outer)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    is_nan = np.isnan(found)
    assert is_nan[3].all()
    assert is_nan[:, 2].all()
    assert is_nan.sum() == ROWS + COLUMNS - 1


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_factors_make_the_values(name):
    fmt = FORMATS[name]
    x = 3 * _normal(4, 5, 40)
    words = jnp.array([1, 2], jnp.uint32)
    values, _, factors = _quantise(x, fmt, 1, words)
    np.testing.assert_allclose(factors.elements * factors.outer, values, rtol=1e-6)
    if units.choose(fmt, fmt, BF16, 40) == "bfloat16":
        exact = factors.elements.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(exact, factors.elements)
    else:
        assert name == "fp16"


def test_block_scaled_units_get_codes_and_scales(monkeypatch):
    """The call that Blackwell runs, on this device by `lax.scaled_dot`."""

    def scaled_matmul(lhs, rhs, lhs_scales, rhs_scales):
        return lax.scaled_dot(
            lhs,
            rhs.swapaxes(1, 2),
            lhs_scale=lhs_scales,
            rhs_scale=rhs_scales.swapaxes(1, 2),
            preferred_element_type=jnp.float32,
        )

    monkeypatch.setattr(jax.nn, "scaled_matmul", scaled_matmul)
    for recipe in ("mxfp8", "nvfp4"):  # whose emulated gradients are known by now
        kinds = _kinds(recipe, BLOCKS)
        assert kinds[0] == "block-scaled"
        native, emulated = _gradients(recipe, BLOCKS), _gradients(recipe, EMULATOR)
        native, emulated = (tree[0][1:] + tree[1:] for tree in (native, emulated))
        for one, other in zip(
            jax.tree.leaves(native), jax.tree.leaves(emulated), strict=True
        ):
            tolerance = 2e-5 * float(jnp.abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def test_scaled_matmul_takes_what_it_is_given():
    """It cannot run here; its shapes and types are checked."""
    quantised = numerics.apply("mxfp8", _loss, device=BLOCKS)
    gradient = jax.grad(quantised, has_aux=True)
    text = str(jax.make_jaxpr(gradient)(W, X))
    assert text.count("scaled_matmul") >= 3


HOPPER, BLACKWELL = Device("gpu", 9.0), Device("gpu", 10.0)


@pytest.mark.parametrize(
    ("recipe", "device", "said"),
    [
        ("fp8", HOPPER, ("f8E4M3FN>, tensor<64x32xf8E4M3FN>) -> tensor<48x32xf32>",)),
        ("fp8", HOPPER, ("f8E5M2>, tensor<64x32xf8E4M3FN>) -> tensor<48x64xf32>",)),
        ("int8", HOPPER, ("xi8>, tensor<64x32xi8>) -> tensor<48x32xi32>",)),
        ("mxfp8", HOPPER, ("xbf16>, tensor<64x32xbf16>) -> tensor<48x32xf32>",)),
        ("mxfp8", BLACKWELL, ("block_scaled_dot", "f8E8M0FNU")),
        ("nvfp4", BLACKWELL, ("block_scaled_dot", "f4E2M1FN")),
    ],
)
def test_what_a_gpu_is_given(recipe, device, said):
    """Lowered for CUDA, which needs no GPU; what XLA makes of it is not seen here."""
    recipe = numerics.find_recipe(recipe).replace(keep_last=0, keep_types=())
    quantised = numerics.apply(recipe, _loss, key=KEY, device=device)
    gradient = jax.jit(jax.grad(quantised, argnums=(0, 1), has_aux=True))
    text = gradient.trace(W, X).lower(lowering_platforms=("cuda",)).as_text()
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    ("first", "second", "device", "length", "kind"),
    [
        ("fp8", "fp8", HOPPER, 64, "float8"),
        ("fp8_e5m2", "fp8", HOPPER, 64, "float8"),
        ("fp8_e5m2", "fp8_e5m2", HOPPER, 64, "bfloat16"),  # no library has it
        ("fp8", "fp8", Device("gpu", 8.0), 64, "bfloat16"),
        ("mxfp8", "mxfp8", HOPPER, 64, "bfloat16"),
        ("mxfp8", "mxfp8", BLACKWELL, 64, "block-scaled"),
        ("mxfp8", "mxfp8", BLACKWELL, 65, "bfloat16"),  # blocks do not divide it
        ("mxfp4", "mxfp4", BLACKWELL, 64, "bfloat16"),
        ("int8", "int8", HOPPER, 64, "int8"),
        ("int8", "int8", HOPPER, 133_144, "int8"),  # 127^2 times that is below 2^31
        ("int8", "int8", HOPPER, 133_145, "bfloat16"),
        ("int8", "int8", INT8, 133_145, "float32"),
        ("int4", "int8", HOPPER, 133_145, "int8"),
        ("fixed_8_4", "fixed_8_4", HOPPER, 131_071, "int8"),
        ("fixed_8_4", "fixed_8_4", HOPPER, 131_072, "bfloat16"),  # both may be -128
        ("int8", "int8", Device("tpu"), 64, "bfloat16"),
        ("mxint8", "mxint8", HOPPER, 64, "bfloat16"),
        ("bf16", "bf16", Device("gpu", 7.5), 64, "float32"),
        ("fp16", "fp16", HOPPER, 64, "float16"),
        ("fp16", "bf16", HOPPER, 64, "float32"),
    ],
)
def test_which_units(first, second, device, length, kind):
    assert units.choose(FORMATS[first], FORMATS[second], device, length) == kind
    assert units.choose(None, FORMATS[second], device, length) == "float32"


def test_convolutions_stay_in_float32_unless_exact():
    choose = units.choose
    mx, int8 = FORMATS["mxfp8"], FORMATS["int8"]
    assert choose(mx, mx, HOPPER, 0, is_convolution=True) == "bfloat16"
    assert choose(int8, int8, HOPPER, 0, is_convolution=True) == "float32"
    assert choose(mx, mx, BF16, 0, is_convolution=True) == "float32"


def test_processors_say_what_they_have(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor: 0\nflags : fpu amx_bf16 amx_tile amx_int8\n")
    assert units.cpu_units(file) == ("int8",)
    file.write_text("flags : fpu avx2\n")
    assert units.cpu_units(file) == ()
    assert units.cpu_units(tmp_path / "none") == ()


def test_outliers_are_emulated():
    recipe = uniform("mine", Format("int8", "tensor", "float32"), outliers=0.01)
    assert _kinds(recipe, INT8) == ("float32", "int8", "int8")
