"""The cost model on functions whose cost is known by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from algoperf import numerics
from algoperf.numerics import RECIPES, Rotation, cost

PLAIN = RECIPES["mxfp4"].replace(keep_last=0, keep_types=(), weights_only=False)


def _cost(recipe, fn, *arguments, **options):
    found = numerics.products(recipe, fn, *arguments)
    return cost.modelled_cost(recipe, found, **options)


def _shape(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_dense_layer_by_hand():
    m, k, n = 64, 128, 32
    found = _cost(PLAIN, lambda x, w: x @ w, _shape(m, k), _shape(k, n))
    assert found.multiply_adds == 3 * m * k * n
    assert found.bit_operations == 3 * m * k * n * 4 * 4
    assert found.full_bit_operations == 3 * m * k * n * 32 * 32
    operands = 2 * (m * k + k * n + m * n)
    assert found.overhead_bit_operations == operands * 4 * 32
    assert found.bytes == operands * 4.25 / 8 + 4 * (m * n + m * k + k * n)
    assert found.full_bytes == 4 * 3 * (m * k + k * n + m * n)
    forward = _cost(
        PLAIN, lambda x, w: x @ w, _shape(m, k), _shape(k, n), training=False
    )
    assert forward.multiply_adds == m * k * n


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("bf16", 32),  # a rounding and no more
        ("fixed_8_4", 3 * 32),  # a random number, a rounding and a shift
        ("mxfp4", 4 * 32),  # magnitude, maximum, the shift from it, rounding
        ("mxfp4_stochastic", 5 * 32),  # and a random number
        ("nvfp4", 3 * 32 + 32 * 32),  # no shift but a multiplication
        ("int8", 3 * 32 + 32 * 32),
    ],
)
def test_quantising_one_element_by_hand(name, operations):
    assert cost.quantising(numerics.FORMATS[name]) == operations


def test_it_agrees_with_xla_on_float32():
    """XLA counts two operations for a multiply-add."""

    def fn(x, w, kernel):
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.einsum("nhwc,cd->nhwd", x, w)

    shapes = _shape(2, 8, 8, 3), _shape(5, 7), _shape(3, 3, 3, 5)
    found = _cost("identity", fn, *shapes, training=False)
    analysis = jax.jit(fn).lower(*shapes).compile().cost_analysis()
    np.testing.assert_allclose(2 * found.multiply_adds, analysis["flops"], rtol=0.02)
    assert found.relative_bit_operations == found.relative_bytes == 1.0


def test_loops_and_groups_count():
    def loop(x, w):
        return lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

    once = _cost(PLAIN, lambda x, w: x @ w, _shape(8, 32), _shape(32, 32))
    assert _cost(PLAIN, loop, _shape(8, 32), _shape(32, 32)) == once.times(5)

    def grouped(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=4,
        )

    found = _cost(PLAIN, grouped, _shape(2, 10, 8), _shape(1, 2, 12), training=False)
    assert found.multiply_adds == 2 * 10 * 12 * 2
    # One channel in each group is not rotated; its three output channels are.
    rotated = PLAIN.replace(
        forward_rotation=Rotation(), input_gradient_rotation=Rotation()
    )
    shapes = _shape(2, 10, 4), _shape(1, 1, 12)
    more = _cost(rotated, grouped, *shapes).overhead_bit_operations
    more -= _cost(PLAIN, grouped, *shapes).overhead_bit_operations
    stretch = 32 / 3
    rotating, quantising = stretch * 5 * 32, (stretch - 1) * 4 * 32
    assert more == pytest.approx((2 * 10 * 12 + 12) * (rotating + quantising))


def test_what_a_rotation_pads_is_multiplied_too():
    recipe = PLAIN.replace(forward_rotation=Rotation())
    shapes = _shape(64, 8), _shape(8, 16)
    found = _cost(recipe, lambda x, w: x @ w, *shapes, training=False)
    assert found.multiply_adds == 64 * 8 * 16
    assert found.bit_operations == 64 * 32 * 16 * 4 * 4
    assert found.full_bit_operations == 64 * 8 * 16 * 32 * 32
    operands = 64 * 32 + 32 * 16
    assert found.overhead_bit_operations == operands * (5 + 4) * 32
    assert found.bytes == operands * 4.25 / 8 + 64 * 16 * 4


def test_gradients_of_what_was_rotated_are_as_long_and_rotated_back():
    rotation = Rotation()
    recipe = PLAIN.replace(forward_rotation=rotation, backward_from="quantised")
    shapes = _shape(64, 8), _shape(8, 16)
    found = _cost(recipe, lambda x, w: x @ w, *shapes)
    longer = _cost(PLAIN, lambda x, w: x @ w, _shape(64, 32), _shape(32, 16))
    assert found.multiply_adds == 3 * 64 * 8 * 16
    assert found.bit_operations == longer.bit_operations
    assert found.bytes == longer.bytes
    rotated = 2 * (64 * 32 + 32 * 16)  # both operands, and both gradients back
    more = rotated * math.log2(rotation.block) * cost.ADDITION
    assert found.overhead_bit_operations == longer.overhead_bit_operations + more


def test_what_is_kept_counts_in_full_and_the_text_says_modelled():
    kept = PLAIN.replace(weights_only=True)
    found = _cost(kept, lambda x, w: x @ w, _shape(8, 32), _shape(32, 32))
    assert found.relative_bit_operations == 1.0
    assert str(found).startswith("modelled, not measured: ")


@pytest.mark.parametrize(
    ("cheap", "dear"), [("mxfp4", "quartet"), ("mxfp4", "mxfp8"), ("mxfp8", "bf16")]
)
def test_recipes_cost_what_they_should(cheap, dear):
    def of(name):
        recipe = RECIPES[name].replace(keep_last=0, keep_types=(), weights_only=False)
        return _cost(recipe, lambda x, w: x @ w, _shape(4096, 1024), _shape(1024, 4096))

    assert of(cheap).relative_bit_operations < of(dear).relative_bit_operations < 0.5


def test_what_is_kept_counts_at_the_width_that_is_asked_for():
    def two(params, x):
        return x @ params["a"] @ params["b"]

    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    recipe = numerics.RECIPES["mxint8"].replace(keep_last=1)
    found = numerics.products(recipe, two, params, jnp.ones((8, 8)))
    wide, narrow = (cost.modelled_cost(recipe, found, kept_bits=b) for b in (32, 16))
    one = 3 * 8**3  # multiply-adds of a product and its two gradients
    assert wide.bit_operations == one * (8 * 8 + 32 * 32)
    assert narrow.bit_operations == one * (8 * 8 + 16 * 16)
    assert wide.bytes - narrow.bytes == 6 * 8 * 8 * 2  # six operands, 2 bytes less
