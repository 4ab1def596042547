"""The three products of a layer, and how each operand is quantised.

A product is bilinear, out = contract(left, right). Its gradients are products too: of g
with right, for left, and of g with left, for right; each contracts another axis, along
which its operands are quantised. So six arrays are quantised in all.

Matrix products are brought to left (B, M, K), right (B, K, N), out (B, M, N).
Convolutions stay as they are. They contract channels and kernel positions (forward),
output channels and kernel positions (gradient of x), batch and positions (gradient of
w). In which order a product adds up is ours to choose: channels, output channels and
batch are innermost, so a block never crosses a position, and each is a block of
neighbours on the contracted axis of a matrix product that a kernel could run.
"""

import dataclasses
from typing import Any, NamedTuple

from algoperf.numerics.formats import Format
from algoperf.numerics.recipes import Recipe, Rotation
from algoperf.numerics.units import EMULATOR, Device


@dataclasses.dataclass(frozen=True)
class Product:
    """One product of a function, and how it is quantised; static under jit.

    Attributes:
      recipe: the formats.
      is_convolution: else a batched matrix product.
      params: of the convolution's primitive, as sorted pairs; of a matrix product,
        'precision' and 'preferred_element_type'.
      weight_is_left: whether the left operand has the role of w.
      shapes, dtypes: of left and right.
      device: whose units it may run in.
    """

    recipe: Recipe
    is_convolution: bool
    params: tuple[tuple[str, Any], ...]
    weight_is_left: bool
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[Any, Any]
    device: Device = EMULATOR


class Operand(NamedTuple):
    """Where one operand of a product is quantised: format, axis, groups on the axis."""

    fmt: Format | None
    axis: int
    groups: int


class Plan(NamedTuple):
    """One of the three products: operands, rotation, number, contracted length."""

    first: Operand
    second: Operand
    rotation: Rotation | None
    number: int
    length: int = 0  # of the contracted axis, rotated; of a matrix product


def plans_of(product: Product) -> tuple[Plan, Plan, Plan]:
    """Returns the plans of forward (left, right), gradients of left, and of right."""
    recipe = product.recipe
    # By role: (own format in the forward product, the format of g and of this operand
    # where the gradient of the OTHER operand is made, that product's rotation).
    as_x = (recipe.forward_x, recipe.weight_gradient_g, recipe.weight_gradient_x)
    as_w = (recipe.forward_w, recipe.input_gradient_g, recipe.input_gradient_w)
    left, right = (as_w, as_x) if product.weight_is_left else (as_x, as_w)
    lengths = _lengths(product)
    rotations = _rotations(product, lengths)
    axes = _axes(product)
    if product.is_convolution:
        lengths = (0, 0, 0)
    else:
        lengths = tuple(map(_padded, lengths, rotations))
    forward = Plan(
        Operand(left[0], *axes["left"]),
        Operand(right[0], *axes["right"]),
        rotations[0],
        0,
        lengths[0],
    )
    of_left = Plan(
        Operand(right[1], *axes["g_for_left"]),
        Operand(right[2], *axes["right_for_left"]),
        rotations[1],
        1,
        lengths[1],
    )
    of_right = Plan(
        Operand(left[1], *axes["g_for_right"]),
        Operand(left[2], *axes["left_for_right"]),
        rotations[2],
        2,
        lengths[2],
    )
    return forward, of_left, of_right


def _lengths(product: Product) -> tuple[int, ...]:
    """Returns how much each product contracts, of channels those of one group."""
    if not product.is_convolution:
        (_, rows, inner), (_, _, columns) = product.shapes
        return inner, columns, rows
    params = dict(product.params)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    left, right = product.shapes
    out_channel, in_channel = numbers.rhs_spec[:2]
    return right[in_channel], right[out_channel] // groups, left[numbers.lhs_spec[0]]


def _rotations(
    product: Product, lengths: tuple[int, ...]
) -> tuple[Rotation | None, ...]:
    """Returns the rotations of forward, gradients of left, and of right.

    Where one channel is contracted, as in each group of a depthwise convolution, there
    is nothing to rotate: one number would be spread over a block of padding. How many
    examples the gradient of the weight contracts, the batch alone says; it is rotated.
    """
    recipe = product.recipe
    inner, *outer = lengths
    forward = None if inner == 1 else recipe.forward_rotation
    of_x = recipe.input_gradient_rotation
    of_w = recipe.weight_gradient_rotation
    if outer[1 if product.weight_is_left else 0] == 1:
        of_x = None
    return (forward, of_w, of_x) if product.weight_is_left else (forward, of_x, of_w)


def stretches(product: Product) -> tuple[float, ...]:
    """Returns how much longer rotations make what forward and gradients contract."""
    lengths = _lengths(product)
    padded = map(_padded, lengths, _rotations(product, lengths))
    pairs = zip(padded, lengths, strict=True)
    return tuple(long / short if short else 1.0 for long, short in pairs)


def _padded(length: int, rotation: Rotation | None) -> int:
    block = 1 if rotation is None else rotation.block
    return -(-length // block) * block


def _axes(product: Product) -> dict[str, tuple[int, int]]:
    """Returns the contracted axis, and its groups, of the operands of all products."""
    if not product.is_convolution:
        return {
            "left": (2, 1),
            "right": (1, 1),
            "g_for_left": (2, 1),
            "right_for_left": (2, 1),
            "g_for_right": (1, 1),
            "left_for_right": (1, 1),
        }
    params = dict(product.params)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    batch, channel = numbers.lhs_spec[:2]
    out_channel, in_channel = numbers.rhs_spec[:2]
    return {
        "left": (channel, groups),
        "right": (in_channel, 1),
        "g_for_left": (numbers.out_spec[1], groups),
        "right_for_left": (out_channel, groups),
        "g_for_right": (numbers.out_spec[0], 1),
        "left_for_right": (batch, 1),
    }
