"""Where a product runs: in the device's own low-precision units, or emulated.

What a recipe rounds to is decided in float32 arithmetic, the same on every device. The
product of the rounded operands may then run wherever it gives the same numbers:

- An operand is elements times an outer scale, of the tensor or of each row along the
  contracted axis, which leaves the sum. The elements are exact in bfloat16 for every
  format here but FP16: those of blocks with their block's scale (a power of two, or a
  scale of 4 significant bits times an element of at most 3).
- So products run in bfloat16 units, FP8 units (FP8 elements under one scale of the
  tensor) or integer units (under a scale of the tensor or the row) and differ from the
  emulated ones only in the order of additions; integers add up exactly. FP8 units of
  Hopper accumulate in about 14 bits, see docs/numerics.md.
- Block-scaled formats run in the units of Blackwell through `jax.nn.scaled_matmul`.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from algoperf.numerics.formats import Format, IntElement
from algoperf.numerics.transforms import Factors

EMULATED = "float32"
# What units take. Elements of e2m1 and the like run as bfloat16.
KINDS = (EMULATED, "bfloat16", "float16", "float8", "int8", "block-scaled")
FLOAT8 = {"e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}
BLOCK_SCALED = {
    ("e4m3", 32, "e8m0"): jnp.float8_e4m3fn,
    ("e5m2", 32, "e8m0"): jnp.float8_e5m2,
    ("e2m1", 16, "e4m3"): jnp.float4_e2m1fn,
}


@dataclasses.dataclass(frozen=True)
class Device:
    """What a device has, as far as products need it.

    Attributes:
      platform: 'cpu', 'gpu' or 'tpu'.
      capability: compute capability of an NVIDIA GPU, 0.0 of anything else.
      units: kinds of units that a CPU has.
    """

    platform: str
    capability: float = 0.0
    units: tuple[str, ...] = ()

    def has(self, kind: str) -> bool:
        """Whether products of this kind are faster than in float32."""
        if self.platform == "tpu":
            return kind == "bfloat16"
        needed = {
            "float16": 7.0,
            "int8": 7.5,
            "bfloat16": 8.0,
            "float8": 8.9,
            "block-scaled": 10.0,
        }
        if self.platform == "gpu" and kind in needed:
            return self.capability >= needed[kind]
        return kind in self.units


EMULATOR = Device("none")


@functools.cache
def this_device() -> Device:
    """Returns what JAX's default device is."""
    device = jax.devices()[0]
    if device.platform in ("gpu", "cuda"):
        text = str(getattr(device, "compute_capability", "0"))
        digits = text if text.replace(".", "").isdigit() else "0"  # AMD says gfx90a
        return Device("gpu", float(digits))
    if device.platform == "cpu":
        return Device("cpu", units=cpu_units(Path("/proc/cpuinfo")))
    return Device(device.platform)


def cpu_units(cpuinfo: Path) -> tuple[str, ...]:
    """Returns the kinds of units that a processor names among its flags."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return ()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    # Not bfloat16: XLA 0.10's CPU backend ends some such products with UNIMPLEMENTED.
    return ("int8",) if {"amx_int8", "avx512_vnni"} & {*flags.split()} else ()


def choose(
    first: Format | None,
    second: Format | None,
    device: Device,
    length: int,
    is_convolution: bool = False,
) -> str:
    """Returns one of KINDS for a product of operands in these formats.

    Args:
      first, second: of the operands.
      device: what it has.
      length: of the contracted axis.
      is_convolution: whether a convolution: those are emulated, at best with products
        in the short floats of a tensor core, which take bfloat16 elements exactly.
    """
    if first is None or second is None:
        return EMULATED
    pair = (first, second)
    if is_convolution:
        is_exact = all(_is_in_bfloat16(f) and _has_no_outer_scale(f) for f in pair)
        fast = device.platform in ("gpu", "tpu") and device.has("bfloat16")
        return "bfloat16" if fast and is_exact else EMULATED
    is_block_scaled = all(_block_type(f, length) for f in pair)
    if device.has("block-scaled") and is_block_scaled and first.group == second.group:
        return "block-scaled"
    # No library multiplies E5M2 by E5M2.
    elements = {f.element for f in pair}
    if device.has("float8") and elements != {"e5m2"} and all(map(_is_float8, pair)):
        return "float8"
    if device.has("int8") and all(map(_is_integer, pair)) and _fits_int32(pair, length):
        return "int8"
    if device.has("float16") and elements == {"fp16"}:
        return "float16"
    if device.has("bfloat16") and all(map(_is_in_bfloat16, pair)):
        return "bfloat16"
    return EMULATED


def _is_float8(fmt: Format) -> bool:
    return fmt.element in FLOAT8 and (fmt.group, fmt.scale) == ("tensor", "float32")


def _is_integer(fmt: Format) -> bool:
    is_outer = fmt.group in ("tensor", "channel") and fmt.scale in ("float32", "fixed")
    return isinstance(fmt.elements, IntElement) and is_outer


def _fits_int32(pair: tuple[Format, Format], length: int) -> bool:
    """Whether no sum of so many products of integers can leave the accumulator."""
    tops = [int(f.elements.max) + (not f.symmetric) for f in pair]
    return length * tops[0] * tops[1] < 2**31


def _has_no_outer_scale(fmt: Format) -> bool:
    return fmt.scale != "float32" and not fmt.tensor_scale and fmt.prescale == 1.0


def _is_in_bfloat16(fmt: Format) -> bool:
    """Whether elements, with their block's scale, have at most 8 significant bits."""
    if fmt.element == "fp16":
        return False
    if fmt.scale in ("e4m3", "ue5m3"):
        return fmt.elements.bits <= 4
    return fmt.scale != "float32" or isinstance(fmt.group, str)


def _block_type(fmt: Format, length: int) -> Any:
    if not isinstance(fmt.group, int) or length % fmt.group or fmt.scale is None:
        return None
    scale = fmt.scale.partition("_")[0]
    return BLOCK_SCALED.get((fmt.element, fmt.group, scale))


def multiply(
    kind: str,
    first: Factors,
    second: Factors,
    formats: tuple[Format, Format],
    axes: tuple[int, int],
) -> jax.Array:
    """Returns the product of two quantised operands, float32 (B, M, N).

    Args:
      kind: one of KINDS, not the emulated one.
      first, second: elements (B, M, K) or (B, K, M), outer scales.
      formats: of both.
      axes: the contracted axis of each, 1 or 2.
    """
    if kind == "block-scaled":
        product = _block_scaled(first, second, formats, axes)
    else:
        types: Any = {
            "bfloat16": (jnp.bfloat16,) * 2,
            "float16": (jnp.float16,) * 2,
            "int8": (jnp.int8,) * 2,
            "float8": tuple(FLOAT8.get(fmt.element) for fmt in formats),
        }[kind]
        product = _dot(
            first.elements.astype(types[0]),
            second.elements.astype(types[1]),
            axes,
            jnp.int32 if kind == "int8" else jnp.float32,
        ).astype(jnp.float32)
    product = product * _outer(first.outer, axes[0], 2)
    product = product * _outer(second.outer, axes[1], 1)
    if kind == "int8":  # no code says NaN, and a fixed or delayed scale does not either
        is_nan = _has_nan(first.elements, axes[0], 2)
        is_nan |= _has_nan(second.elements, axes[1], 1)
        product = jnp.where(is_nan, jnp.nan, product)
    return product


def _has_nan(elements: jax.Array, axis: int, new_axis: int) -> jax.Array:
    """Whether rows along `axis` hold a NaN, for the result."""
    return jnp.expand_dims(jnp.isnan(elements).any(axis), new_axis)


def _dot(left: jax.Array, right: jax.Array, axes: tuple[int, int], kind: Any) -> Any:
    """Contracts two arrays of 3 axes; without a batch of 1, which libraries dislike."""
    options: Any = {"preferred_element_type": kind}
    if left.shape[0] != 1:
        batched = (((axes[0],), (axes[1],)), ((0,), (0,)))
        return lax.dot_general(left, right, batched, **options)
    contracted = ((axes[0] - 1,), (axes[1] - 1,))
    return lax.dot_general(left[0], right[0], (contracted, ((), ())), **options)[None]


def _outer(scale: jax.Array, axis: int, new_axis: int) -> jax.Array:
    """A scale () as it is; one of rows, with length 1 along `axis`, for the result."""
    if scale.ndim == 0:
        return scale
    return jnp.expand_dims(jnp.squeeze(scale, axis), new_axis)


def _block_scaled(first, second, formats, axes):
    operands, scales = [], []
    for factors, fmt, axis in zip((first, second), formats, axes, strict=True):
        blocks = jnp.moveaxis(factors.codes, (axis, axis + 1), (2, 3))
        kind = _block_type(fmt, blocks.shape[2] * blocks.shape[3])
        operands.append(blocks.reshape(*blocks.shape[:2], -1).astype(kind))
        scale = jnp.moveaxis(factors.block_scale, (axis, axis + 1), (2, 3))[..., 0]
        is_e8m0 = str(fmt.scale).startswith("e8m0")
        held = jnp.float8_e8m0fnu if is_e8m0 else jnp.float8_e4m3fn
        scales.append(scale.astype(held))
    return jax.nn.scaled_matmul(*operands, *scales)
