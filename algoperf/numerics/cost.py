"""What a recipe would cost on a workload, as modelled: bit operations and bytes.

No times: a number here says how many bits are multiplied and moved if hardware had
units of just these widths. Counted from the jaxpr of the forward function, for one
training step (or one forward pass).

A product of K-long sums of a-bit and b-bit elements counts a b bit operations for each
multiply-add. That is the papers' trade-off axis (arXiv:2107.13490 for words of chosen
length; arXiv:2509.17791, section 3); adding up is left out, as it is there.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from algoperf.numerics.find import CONVOLUTION, DOT, Found
from algoperf.numerics.formats import POWER_OF_TWO_SCALES, Format
from algoperf.numerics.plans import plans_of, stretches
from algoperf.numerics.products import product_of_found
from algoperf.numerics.recipes import Recipe, Rotation, find_recipe

# What an unquantised operand has: the widths of float32 operands as they are stored.
FULL_BITS = 32
# Bit operations on numbers of full width: a multiplication is quadratic in the bits,
# an addition, a comparison or a rounding is linear.
MULTIPLICATION = FULL_BITS**2
ADDITION = FULL_BITS


@dataclasses.dataclass(frozen=True)
class Cost:
    """Modelled costs; the sum of two is the cost of both.

    Attributes:
      multiply_adds: of all products, without padding.
      bit_operations: of all products, each multiply-add weighted by its operands' bits,
        those of the padding included with which rotations fill blocks.
      full_bit_operations: with operands of 32 bits and no padding.
      overhead_bit_operations: of rotations and of quantising, in float32.
      bytes: of the products' operands, with their scales and padding, read once, and
        of the results in float32, written once.
      full_bytes: the same in float32.
    """

    multiply_adds: float = 0.0
    bit_operations: float = 0.0
    full_bit_operations: float = 0.0
    overhead_bit_operations: float = 0.0
    bytes: float = 0.0
    full_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + b for a, b in pairs))

    def times(self, number: float) -> "Cost":
        """Returns the cost of so many."""
        return Cost(*(number * value for value in dataclasses.astuple(self)))

    @property
    def relative_bit_operations(self) -> float:
        """All bit operations, overhead included, as a share of float32's."""
        total = self.bit_operations + self.overhead_bit_operations
        return total / self.full_bit_operations if self.full_bit_operations else 0.0

    @property
    def relative_bytes(self) -> float:
        """Bytes as a share of float32's."""
        return self.bytes / self.full_bytes if self.full_bytes else 0.0

    def __str__(self) -> str:
        return (
            f"modelled, not measured: {self.multiply_adds:.4g} multiply-adds, "
            f"{self.bit_operations:.4g} bit operations "
            f"and {self.overhead_bit_operations:.4g} of overhead "
            f"({100 * self.relative_bit_operations:.3g} % of float32), "
            f"{self.bytes:.4g} bytes ({100 * self.relative_bytes:.3g} %)"
        )


def modelled_cost(
    recipe: str | Recipe,
    found: Sequence[Found],
    training: bool = True,
    kept_bits: int = FULL_BITS,
) -> Cost:
    """Returns the cost of all products of one call.

    Args:
      recipe: the recipe.
      found: what `numerics.products` returned for it.
      training: whether with the two products of the gradient; those that JAX would
        leave out, such as the gradient of the inputs, are counted too.
      kept_bits: at what width a product counts that has a reason not to be quantised.
    """
    recipe = find_recipe(recipe)
    costs = (_one(recipe, item, training, kept_bits) for item in found)
    return sum(costs, Cost())


def _one(recipe: Recipe, item: Found, training: bool, kept_bits: int) -> Cost:
    """The cost of one product, all its runs."""
    if item.primitive not in (DOT, CONVOLUTION):
        return Cost()
    left, right, out = (float(math.prod(shape)) for shape in item.shapes)
    multiply_adds = out * inner_length(item)
    x, w = (right, left) if item.weight_is_left else (left, right)
    width = FULL_BITS
    if item.reason is not None:
        recipe, width = Recipe("kept"), kept_bits
    product = product_of_found(recipe, item)
    plans = zip(plans_of(product), stretches(product), strict=True)
    forward, *gradients = ((plan.rotation, stretch) for plan, stretch in plans)
    of_x, of_w = gradients[::-1] if item.weight_is_left else gradients
    cost = _product(
        multiply_adds,
        _Array(x, recipe.forward_x),
        _Array(w, recipe.forward_w),
        _Array(out),
        *forward,
        width,
    )
    if training:
        # What was rotated and quantised is used again as it is, padding included, and
        # so is the gradient of it, which is then rotated back.
        is_reused = recipe.backward_from == "quantised"
        back, fill = forward if is_reused else (None, 1.0)
        cost += _product(
            multiply_adds,
            _Array(out, recipe.input_gradient_g),
            _Array(w, recipe.input_gradient_w, fill),
            _Array(x, None, fill),
            *of_x,
            width,
            back,
        )
        cost += _product(
            multiply_adds,
            _Array(out, recipe.weight_gradient_g),
            _Array(x, recipe.weight_gradient_x, fill),
            _Array(w, None, fill),
            *of_w,
            width,
            back,
        )
    return cost.times(item.repeats)


def inner_length(item: Found) -> int:
    """How many products make one element of the result."""
    params, (left, right, _) = item.params, item.shapes
    if item.primitive == DOT:
        contracted: Any = params["dimension_numbers"][0][0]
        return math.prod(left[axis] for axis in contracted)
    out_channel = params["dimension_numbers"].rhs_spec[0]
    return math.prod(n for axis, n in enumerate(right) if axis != out_channel)


class _Array(NamedTuple):
    """An operand or a result: its elements, its format, and how padding grew it."""

    size: float
    fmt: Format | None = None
    fill: float = 1.0


def _product(
    multiply_adds: float,
    first: _Array,
    second: _Array,
    out: _Array,
    rotation: Rotation | None,
    stretch: float,
    width: int,
    back: Rotation | None = None,
) -> Cost:
    """One product. Rotated operands are `stretch` times as long on what it contracts.

    `width` is that of an operand without format, in bits; `back` rotates the result.
    """
    bits = [_bits(array.fmt, width) for array in (first, second)]
    sizes = [array.size * array.fill * stretch for array in (first, second)]
    overhead = _rotating(out.size * out.fill, back)
    moved = out.size * out.fill * FULL_BITS
    for size, array in zip(sizes, (first, second), strict=True):
        overhead += _rotating(size, rotation)
        if array.fmt is None:
            moved += size * width
        else:
            overhead += size * quantising(array.fmt)
            moved += size * array.fmt.bits_per_element()
    return Cost(
        multiply_adds=multiply_adds,
        bit_operations=multiply_adds * stretch * second.fill * bits[0] * bits[1],
        full_bit_operations=multiply_adds * FULL_BITS**2,
        overhead_bit_operations=overhead,
        bytes=moved / 8,
        full_bytes=(first.size + second.size + out.size) * FULL_BITS / 8,
    )


def _rotating(size: float, rotation: Rotation | None) -> float:
    """Fast Walsh-Hadamard: log2(block) additions for each element."""
    return 0.0 if rotation is None else size * math.log2(rotation.block) * ADDITION


def quantising(fmt: Format) -> int:
    """Returns the bit operations of quantising one element.

    The rounding, with a random number if it is stochastic; the magnitude and the
    maximum where a scale is found; and the scale's division, which is an addition to
    the exponent where scales are powers of two.
    """
    operations = ADDITION * (1 + fmt.is_stochastic)
    if fmt.scale is None:
        return operations
    if fmt.scale != "fixed":
        operations += 2 * ADDITION
    if fmt.scale in POWER_OF_TWO_SCALES and not fmt.tensor_scale:
        return operations + ADDITION
    return operations + MULTIPLICATION


def _bits(fmt: Format | None, width: int) -> int:
    return width if fmt is None else fmt.elements.bits
