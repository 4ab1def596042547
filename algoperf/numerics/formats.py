"""Number formats: an element, and how a group of elements shares a scale.

A `Format` is data, small and hashable, so it can be a static argument of `jax.jit`.
`blocks.quantize` gives it its meaning.

Sources: OCP Microscaling Formats (MX) v1.0, sections 5 and 6 (E2M1, E2M3, E3M2, E4M3,
E5M2, INT8, E8M0); NVIDIA 2025, arXiv:2509.25149, appendix (NVFP4: blocks of 16 with an
E4M3 scale under one float32 scale of the tensor); Tseng et al. 2025, arXiv:2502.20586
(the factor 3/4); Chen et al. 2025, arXiv:2510.25602 (scales by ceil, symmetric
integers, NVINT4).
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from algoperf.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class FloatElement:
    """A floating-point element: value (-1)^s 2^(e - bias) (1 + m / 2^mantissa_bits).

    Exponent field 0 holds zero and the subnormals. `max` is the largest finite value:
    formats differ in what they do with the highest codes.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max: float

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value."""
        return 1 - self.bias

    @property
    def smallest(self) -> float:
        """The smallest positive value, a subnormal."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)


@dataclasses.dataclass(frozen=True)
class IntElement:
    """A two's complement integer; under an E8M0 scale, k / 2^(bits - 2)."""

    name: str
    bits: int

    @property
    def max(self) -> float:
        """The largest value, 2^(bits - 1) - 1."""
        return 2.0 ** (self.bits - 1) - 1.0


Element = FloatElement | IntElement

ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {
        element.name: element
        for element in (
            FloatElement("e2m1", 2, 1, 1, 6.0),
            FloatElement("e2m3", 2, 3, 1, 7.5),
            FloatElement("e3m0", 3, 0, 1, 64.0),  # 0 and the powers 1, 2, ... 64
            FloatElement("e3m2", 3, 2, 3, 28.0),
            FloatElement("e4m3", 4, 3, 7, 448.0),
            FloatElement("e5m2", 5, 2, 15, 57344.0),
            FloatElement("fp16", 5, 10, 15, 65504.0),
            FloatElement("bf16", 8, 7, 127, 2.0**127 * (2 - 2.0**-7)),
            IntElement("int4", 4),
            IntElement("int6", 6),
            IntElement("int8", 8),
        )
    }
)

# What holds a positive scale. UE5M3 has no sign; its topmost exponent is reserved.
SCALE_ELEMENTS: Mapping[str, FloatElement] = MappingProxyType(
    {
        "e4m3": FloatElement("e4m3", 4, 3, 7, 448.0),
        "ue5m3": FloatElement("ue5m3", 5, 3, 15, 61440.0),
    }
)
POWER_OF_TWO_SCALES = (
    *("e8m0_floor", "e8m0_ceil", "e8m0_nearest", "e8m0_quest"),
    "fixed",
)
SCALES = (*POWER_OF_TWO_SCALES, *SCALE_ELEMENTS, "float32")
ROUNDINGS = ("nearest_even", "stochastic")
Group = int | str  # elements of a block, or 'tensor', or 'channel'


@dataclasses.dataclass(frozen=True)
class Format:
    """How an array is quantised.

    Attributes:
      element: a name of `ELEMENTS`.
      group: which elements share a scale: so many neighbours along the quantised axis,
        all with the same indices on the other axes ('channel'), or all ('tensor').
      scale: how the scale of a group follows from its largest magnitude `amax`, and
        what holds it. None: no scale, a plain cast. With E the exponent of the
        element's largest value `max`:
        'e8m0_floor': 2^(floor(log2 amax) - E), the OCP rule; may clip the largest.
        'e8m0_ceil': 2^ceil(log2(amax / max)); never clips.
        'e8m0_nearest': 2^round(log2(amax / max)).
        'e8m0_quest': 2^round(log2(0.487079 rms)), see `transforms.quest`; for e2m1.
        'e4m3', 'ue5m3': amax / max, rounded to nearest in that format.
        'float32': amax / max.
        'fixed': none follows from amax: integers are k 2^-fraction_bits, fixed point.
      tensor_scale: whether the array is first divided by one float32 number, so that
        block scales use their format's range: max|x| / (max * the scale's largest
        value), or max|x| for scales that are powers of two.
      rounding: of the elements: 'nearest_even', or 'stochastic' (needs a key).
        Unbiased where nothing is clipped: not with 'e8m0_floor' alone, nor quite with
        'e4m3', whose scale may be rounded down.
      symmetric: whether integers stop at -(2^(bits - 1) - 1); otherwise one further.
      prescale: elements are multiplied by it before rounding and divided by it after.
        3/4 with 'e8m0_floor' keeps e2m1 from clipping, so stochastic rounding is
        unbiased.
      pad: whether a last block may be shorter than the others (it is filled with
        zeros). If not, such an axis is an error.
      fraction_bits: bits after the point, of the scale 'fixed' alone.

    Raises:
      UserError: a field that is unknown or fits no other.
    """

    element: str = "e2m1"
    group: Group = 32
    scale: str | None = "e8m0_floor"
    tensor_scale: bool = False
    rounding: str = "nearest_even"
    symmetric: bool = True
    prescale: float = 1.0
    pad: bool = True
    fraction_bits: int = 0

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS:
            raise unknown_name("element", self.element, ELEMENTS)
        if self.scale is not None and self.scale not in SCALES:
            raise unknown_name("scale", self.scale, SCALES)
        if self.rounding not in ROUNDINGS:
            raise unknown_name("rounding", self.rounding, ROUNDINGS)
        is_block = isinstance(self.group, int) and not isinstance(self.group, bool)
        if not is_block and self.group not in ("tensor", "channel"):
            raise UserError(
                f"group is {self.group!r}; give the number of elements of a block, "
                "'tensor' or 'channel'"
            )
        if is_block and int(self.group) < 1:
            raise UserError(f"a block of {self.group} elements: give at least 1")
        if not 0.0 < self.prescale <= 1.0:
            raise UserError(f"prescale is {self.prescale}; it must be in (0, 1]")
        if self.scale is None and (self.tensor_scale or self.prescale != 1.0):
            raise UserError("a format without scale has no tensor_scale and prescale")
        if self.scale == "e8m0_quest" and self.element != "e2m1":
            raise UserError(
                f"the scale e8m0_quest is for e2m1, not for {self.element}; "
                "take e8m0_nearest"
            )
        is_integer = isinstance(ELEMENTS[self.element], IntElement)
        if self.scale == "fixed" and not (is_integer and self.group == "tensor"):
            raise UserError(
                "the scale fixed is for integers and group='tensor', not for "
                f"{self.element} and {self.group!r}"
            )
        if self.fraction_bits and self.scale != "fixed":
            raise UserError("fraction_bits is for the scale fixed")

    def replace(self, **changes: object) -> "Format":
        """Returns a copy with other fields."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def elements(self) -> Element:
        """What `element` names."""
        return ELEMENTS[self.element]

    @property
    def is_stochastic(self) -> bool:
        """Whether it needs a key."""
        return self.rounding == "stochastic"

    @property
    def scale_bits(self) -> int:
        """Bits of the scale of a group."""
        if self.scale is None:
            return 0
        return 32 if self.scale == "float32" else 8

    def bits_per_element(self) -> float:
        """Bits of an element with its share of a block's scale; others' are 0."""
        share = self.scale_bits / self.group if isinstance(self.group, int) else 0.0
        return self.elements.bits + share


def exponent_of_max(element: Element) -> int:
    """Returns floor(log2 max), which the OCP standard calls emax."""
    return math.floor(math.log2(element.max))


def find_format(name_or_format: "str | Format") -> Format:
    """Returns the format of this name, or the format itself.

    Raises:
      UserError: no such name, with the nearest ones.
    """
    if isinstance(name_or_format, Format):
        return name_or_format
    if name_or_format not in FORMATS:
        raise unknown_name("format", name_or_format, FORMATS)
    return FORMATS[name_or_format]


def _presets() -> dict[str, Format]:
    found = {
        "mxfp8": Format("e4m3"),
        "mxfp8_e4m3": Format("e4m3"),
        "mxfp8_e5m2": Format("e5m2"),
        "mxfp6": Format("e2m3"),
        "mxfp6_e2m3": Format("e2m3"),
        "mxfp6_e3m2": Format("e3m2"),
        "mxfp4": Format("e2m1"),
        "mxint8": Format("int8"),
        "mxint6": Format("int6"),
        "mxint4": Format("int4"),
    }
    found |= {
        f"{name}_ceil": format_.replace(scale="e8m0_ceil")
        for name, format_ in found.items()
    }
    found |= {
        "nvfp4": Format("e2m1", 16, "e4m3", tensor_scale=True),
        "nvint4": Format("int4", 16, "e4m3", tensor_scale=True),
        "ue5m3_fp4": Format("e2m1", 16, "ue5m3"),
        "fp8": Format("e4m3", "tensor", "float32"),
        "fp8_e4m3": Format("e4m3", "tensor", "float32"),
        "fp8_e5m2": Format("e5m2", "tensor", "float32"),
        "int8": Format("int8", "channel", "float32"),
        "int8_tensor": Format("int8", "tensor", "float32"),
        "int4": Format("int4", "channel", "float32"),
        "quest_fp4": Format("e2m1", 32, "e8m0_quest"),
        # The words that AdaPT begins with (2021, arXiv:2107.13490): -8 to 7.9375.
        "fixed_8_4": Format(
            *("int8", "tensor", "fixed", False, "stochastic"),
            symmetric=False,
            fraction_bits=4,
        ),
        # Unbiased gradients: Tseng et al. 2025, the backward pass of Quartet.
        "mxfp4_stochastic": Format(rounding="stochastic", prescale=0.75),
        # Logarithmic and unbiased, for gradients: Chmiel et al. 2021, arXiv:2112.10769.
        "luq_fp4": Format("e3m0", "tensor", "float32", rounding="stochastic"),
        "bf16": Format("bf16", scale=None),
        "fp16": Format("fp16", scale=None),
    }
    return found


FORMATS: Mapping[str, Format] = MappingProxyType(_presets())
