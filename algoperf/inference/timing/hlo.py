"""The kernels of a compiled program, with their FLOPs and bytes, read off its text.

`jax.jit(f).lower(...).compile().as_text()` lists what a device runs one after another:
fusions, products, convolutions. Each is a kernel that reads its operands and writes its
result. XLA's own totals count the body of a loop once, and little of what a GPU's
libraries compute; here a loop counts as often as it runs. No JAX: text in, numbers out.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
_TYPE = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:to_apply|calls|body)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([0-9,"]*)')
_CUDA_LIBRARY = re.compile(r'custom_call_target="__(?:cublas|cudnn)')
# What moves and computes nothing.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
        *("after-all", "partition-id", "replica-id", "opt-barrier"),
        *("copy-done", "all-reduce-done"),
    }
)
# What changes part of its first operand in place, and which operand is the change.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": -1}
# One FLOP for each element.
_ARITHMETIC = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate"),
        *("abs", "compare", "and", "or", "xor", "not", "power", "floor", "ceil"),
        *("exponential", "exponential-minus-one", "log", "log-plus-one", "tanh"),
        *("logistic", "rsqrt", "sqrt", "cosine", "sine", "erf"),
    }
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One thing that a device does.

    Attributes:
      name: of the instruction.
      kind: its opcode.
      flops: a multiply-add is two.
      bytes: read and written, each operand once.
      repeats: how often, in loops.
    """

    name: str
    kind: str
    flops: float
    bytes: float
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    kind: str
    type: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


_Computation = dict[str, _Instruction]


def kernels(text: str, trips: int = 1) -> list[Kernel]:
    """Returns the kernels of a compiled program, in order.

    Args:
      text: of the optimised program.
      trips: how often a loop runs whose count is not known beforehand.
    """
    computations, entry = _parsed(text)
    return list(_kernels(computations, entry, 1, trips))


def _kernels(
    computations: dict[str, _Computation], name: str, repeats: int, trips: int
) -> Iterator[Kernel]:
    computation = computations[name]
    for instruction in computation.values():
        kind, attributes = instruction.kind, instruction.attributes
        if kind in _FREE:
            continue
        called = _CALLED.findall(attributes)
        if kind in ("while", "call", "async-start"):
            known = _TRIPS.search(attributes)
            times = 1
            if kind == "while":
                times = int(known.group(1)) if known else trips
            for inner in called[-1:]:
                yield from _kernels(computations, inner, repeats * times, trips)
            continue
        inside = (
            computations.get(called[0], {}) if kind == "fusion" and called else None
        )
        yield Kernel(
            instruction.name,
            kind,
            _flops(instruction, computation, inside),
            _moved(instruction, computation, inside),
            repeats,
        )


def _flops(
    instruction: _Instruction, around: _Computation, inside: _Computation | None
) -> float:
    """Of an instruction; of a fusion, of all that it fuses."""
    if inside is not None:
        return sum(_flops(inner, inside, None) for inner in inside.values())
    kind = instruction.kind
    contracted = _CONTRACTED.search(instruction.attributes)
    if contracted and instruction.operands:  # dot, or a library's product
        left = _dims(around[instruction.operands[0]].type)
        digits = re.findall(r"\d+", contracted.group(1))
        inner_length = math.prod(left[int(axis)] for axis in digits)
        return 2.0 * math.prod(_dims(instruction.type)) * inner_length
    if "dim_labels=" in instruction.attributes:
        return _convolution_flops(instruction, around)
    if kind in _ARITHMETIC:
        return float(math.prod(_dims(instruction.type)))
    if kind in ("reduce", "reduce-window") and instruction.operands:
        return float(math.prod(_dims(around[instruction.operands[0]].type)))
    if kind == "scatter":  # each update is added
        return float(math.prod(_dims(around[instruction.operands[-1]].type)))
    if kind == "fft":
        return _fft_flops(instruction, around)
    return 0.0


def _fft_flops(instruction: _Instruction, around: _Computation) -> float:
    """5 n log2 n for each transform of n complex numbers, half for real ones.

    The count of the fast algorithms (Cooley and Tukey 1965); XLA's own is 8 n log2 n
    for both.
    """
    found = re.search(
        r"fft_type=(\w+), fft_length=\{([\d,]+)\}", instruction.attributes
    )
    if found is None:
        return 0.0
    kind, lengths = found.groups()
    one = math.prod(int(length) for length in lengths.split(","))
    real_side = instruction.type
    if kind != "IRFFT":
        real_side = around[instruction.operands[0]].type
    share = 0.5 if "R" in kind else 1.0
    return share * 5 * math.prod(_dims(real_side)) * math.log2(one)


def _convolution_flops(instruction: _Instruction, around: _Computation) -> float:
    """Products with elements of the input, not with its padding."""
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if found is None or len(instruction.operands) < 2:
        return 0.0
    in_labels, kernel_labels, out_labels = found.groups()
    left, kernel, out = _convolved(instruction, around)
    window = _window(instruction.attributes)
    products = out[out_labels.index("b")] * out[out_labels.index("f")]
    products *= kernel[kernel_labels.index("i")]
    for axis in (label for label in out_labels if label.isdigit()):
        products *= _pairs(
            left[in_labels.index(axis)],
            kernel[kernel_labels.index(axis)],
            out[out_labels.index(axis)],
            window.get(int(axis), {}),
        )
    return 2.0 * products


def _convolved(
    instruction: _Instruction, around: _Computation
) -> tuple[list[int], list[int], list[int]]:
    """Dimensions of input, kernel and output of the forward convolution.

    cuDNN's gradients keep its window and labels, but not its operands: of the output's
    gradient and the kernel they make the input's, of the input and the output's
    gradient the kernel's. XLA's own gradients are forward convolutions.
    """
    first, second = (_dims(around[name].type) for name in instruction.operands[:2])
    result = _dims(instruction.type)
    if '"__cudnn$convBackwardInput"' in instruction.attributes:
        return result, second, first
    if '"__cudnn$convBackwardFilter"' in instruction.attributes:
        return first, result, second
    return first, second, result


def _pairs(size: int, kernel: int, out: int, window: dict[str, int]) -> int:
    """Pairs of a result and a kernel's element that meet an element of the input."""
    stride, low = window.get("stride", 1), window.get("pad", 0)
    in_step, kernel_step = window.get("lhs_dilate", 1), window.get("rhs_dilate", 1)
    last = (size - 1) * in_step
    return sum(
        0 <= (at := o * stride + k * kernel_step - low) <= last and at % in_step == 0
        for o in range(out)
        for k in range(kernel)
    )


def _window(attributes: str) -> dict[int, dict[str, int]]:
    """Returns stride, low padding and dilations by spatial axis."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    axes: dict[int, dict[str, int]] = {}
    for part in found.group(1).split() if found else []:
        name, _, values = part.partition("=")
        for axis, value in enumerate(values.split("x")):
            number = re.match(r"-?\d+", value)
            if number:
                axes.setdefault(axis, {})[name] = int(number.group())
    return axes


def _moved(
    instruction: _Instruction, around: _Computation, inside: _Computation | None
) -> float:
    """Bytes of operands and result.

    Of what is only sliced, the slice counts; what is updated in place counts as the
    update, read and written.
    """
    read = 0.0
    written = _written(instruction)
    for number, name in enumerate(dict.fromkeys(instruction.operands)):
        if name not in around:
            continue
        whole = _size(around[name].type)
        if inside is None:
            read += _read_of(instruction, name, whole, around)
        else:
            read += _read_inside(inside, number, whole)
    updates = [instruction] if inside is None else list(inside.values())
    scope = around if inside is None else inside
    for update in updates:
        if update.kind in _IN_PLACE and update.type == instruction.type:
            change = _size(scope[update.operands[_IN_PLACE[update.kind]]].type)
            written = min(written, change)
    return read + written


def _written(instruction: _Instruction) -> float:
    """Bytes of a result, but for the scratch memory that CUDA's libraries return.

    It comes last, as bytes in a row; how much of it a call touches is not known, and
    it is often more than the result.
    """
    parts = _TYPE.findall(instruction.type)
    if _CUDA_LIBRARY.search(instruction.attributes):
        while (
            len(parts) > 1 and parts[-1][0] in ("s8", "u8") and parts[-1][1].isdigit()
        ):
            parts.pop()
    return sum(_array_size(*part) for part in parts)


def _read_of(
    user: _Instruction, name: str, whole: float, around: _Computation
) -> float:
    """Bytes that one instruction reads of one operand."""
    is_first = bool(user.operands) and user.operands[0] == name
    if is_first and user.kind in ("dynamic-slice", "slice", "gather"):
        return _size(user.type)
    if is_first and user.kind == "dynamic-update-slice":
        return 0.0
    if is_first and user.kind == "scatter":  # what it adds to
        return min(_size(around[user.operands[-1]].type), whole)
    return whole


def _read_inside(inside: _Computation, number: int, whole: float) -> float:
    """Bytes that a fusion reads of its operand with this number."""
    names = [
        i.name
        for i in inside.values()
        if i.kind == "parameter" and i.attributes.startswith(f"{number})")
    ]
    reads = [
        _read_of(user, name, whole, inside)
        for name in names
        for user in inside.values()
        if name in user.operands
    ]
    return min(sum(reads), whole)


def _parsed(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header.group(2)
            computations[current] = {}
            entry = current if header.group(1) else entry
        elif current and (name := _NAME.match(line)):
            instruction = _instruction(name.group(1), line, line[name.end() :])
            computations[current][instruction.name] = instruction
        elif line.startswith("}"):
            current = ""
    return computations, entry


def _instruction(name: str, line: str, rest: str) -> _Instruction:
    """Reads `TYPE OPCODE(OPERANDS), ATTRIBUTES`."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    if type_.startswith("(") is False and "{" in type_:
        type_ = type_.partition("{")[0]
    kind, _, inner = rest.partition("(")
    close = _closing("(" + inner, 0) - 1
    operands = tuple(_OPERAND.findall(inner[:close]))
    # A parameter's number stands where operands do.
    attributes = inner if kind == "parameter" else inner[close + 1 :]
    is_root = line.lstrip().startswith("ROOT")
    return _Instruction(name, kind, type_, operands, attributes, is_root)


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text) - 1


def _dims(type_: str) -> list[int]:
    """Dimensions of the first array in a type."""
    found = _TYPE.search(type_)
    return [int(n) for n in found.group(2).split(",") if n] if found else []


def _size(type_: str) -> float:
    """Bytes of all arrays in a type."""
    return sum(_array_size(*part) for part in _TYPE.findall(type_))


def _array_size(name: str, dims: str) -> float:
    """Bytes of an array: of ("f32", "2,3") 24."""
    bits = re.search(r"\d+", name)
    size = _BYTES.get(name, int(bits.group()) / 8 if bits else 0)
    return size * math.prod(int(n) for n in dims.split(",") if n)
