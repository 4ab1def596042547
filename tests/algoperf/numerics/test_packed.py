"""Packed arrays are as small as they should be and come back bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algoperf import numerics
from algoperf.errors import UserError
from algoperf.numerics import formats, packed


def _bits(x):
    return np.asarray(x).view(np.int32)


# Every element and every kind of scale.
NAMES = [
    "bf16",
    "fp16",
    "fp8",
    "int8",
    "luq_fp4",
    "mxfp4_stochastic",
    "mxfp6",
    "mxfp6_e3m2",
    "mxfp8",
    "mxfp8_e5m2",
    "mxint4",
    "mxint6",
    "mxint8",
    "nvfp4",
    "ue5m3_fp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    x = np.random.default_rng(0).normal(size=(3, 70, 4)).astype(np.float32)
    x[0] = 0.0
    x[1, :33] *= np.float32(2e-38)  # quantised, some are subnormal
    key = jax.random.key(0)

    @jax.jit
    def both(x):
        stored = packed.pack(x, name, 1, key)
        return stored, packed.unpack(stored), numerics.quantize(x, name, 1, key)

    stored, back, direct = both(x)
    np.testing.assert_array_equal(_bits(back), _bits(direct))
    fmt = numerics.FORMATS[name]
    if fmt.scale is not None and fmt.group == 32:
        elements = 3 * 96 * 4
        assert stored.codes.nbytes == elements * fmt.elements.bits / 8
        assert stored.scales.nbytes == elements / 32


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_floats_that_have_them_keep_infinities_and_nan(name):
    """Also what rounds past the largest number, and the smallest ones."""
    x = np.float32([np.inf, 65504, 65519.9, 65520, 1e30, 3.4e38, 1e-7, 6.2e-5, 0])
    x = np.concatenate([x, -x, np.float32([np.nan])])
    back = jax.jit(lambda x: packed.unpack(packed.pack(x, name)))(x)
    kind = jnp.bfloat16 if name == "bf16" else np.float16
    with np.errstate(over="ignore"):
        wanted = x.astype(kind).astype(np.float32)
    np.testing.assert_array_equal(back, wanted)
    direct = jax.jit(numerics.quantize, static_argnums=1)(x, name)
    np.testing.assert_array_equal(back, direct)
    assert np.isinf(wanted).sum() == (4 if name == "bf16" else 8)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_nan_comes_back(name):
    x = jnp.ones((2, 64)).at[0, 3].set(jnp.nan)
    back = jax.jit(lambda x: packed.unpack(packed.pack(x, name)))(x)
    direct = jax.jit(numerics.quantize, static_argnums=1)(x, name)
    np.testing.assert_array_equal(back, direct)
    assert jnp.isnan(back[0, 3])


@pytest.mark.parametrize("bits", [4, 6, 8, 16])
@pytest.mark.parametrize("size", [5, 24])
def test_bytes_hold_the_codes(bits, size):
    codes = np.random.default_rng(0).integers(0, 2**bits, size)
    there = jax.jit(packed.to_bytes, static_argnums=1)
    back = jax.jit(packed.from_bytes, static_argnums=(1, 2))
    stored = np.asarray(there(codes, bits))
    as_one = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert int.from_bytes(stored.tobytes(), "little") == as_one
    assert len(stored) - size * bits / 8 < 3
    np.testing.assert_array_equal(back(stored, bits, size), codes)


def test_it_is_a_pytree_with_a_static_format():
    pack = jax.jit(packed.pack, static_argnums=1)
    stored = pack(jnp.ones((4, 32), jnp.bfloat16), "mxfp4")
    leaves, structure = jax.tree.flatten(stored)
    assert len(leaves) == 3
    again = jax.tree.unflatten(structure, leaves)
    assert again.format == formats.FORMATS["mxfp4"]
    assert jax.eval_shape(packed.unpack, again).dtype == jnp.bfloat16
    assert stored.nbytes == 4 * 16 + 4 + 4


def test_a_key_is_needed():
    with pytest.raises(UserError, match="a key="):
        packed.pack(jnp.ones(32), "mxfp4_stochastic")
