"""Kernels of CUDA's libraries, in the text of a GPU's program; no GPU is needed."""

import jax
import jax.numpy as jnp
import pytest

from algoperf.inference.timing.hlo import kernels

# Images NHWC, kernel HWIO, result NHWC, and the window as the compiler prints it.
ONE_BY_ONE = ((128, 56, 56, 64), (1, 1, 64, 256), (128, 56, 56, 256), "")
PADDED = ((2, 14, 14, 8), (3, 3, 8, 16), (2, 14, 14, 16), "size=3x3 pad=1_1x1_1")
STRIDED = (
    (2, 15, 14, 8),
    (5, 3, 8, 4),
    (2, 8, 5, 4),
    "size=5x3 stride=2x3 pad=2_2x0_1",
)
GROUPED = ((2, 10, 10, 8), (3, 3, 1, 8), (2, 10, 10, 8), "size=3x3 pad=1_1x1_1")
CONVOLUTIONS = {
    "1x1": (ONE_BY_ONE, {}),
    "padded": (PADDED, {}),
    "strided": (STRIDED, {"window_strides": (2, 3)}),
    "grouped": (GROUPED, {"feature_group_count": 8}),
}


def typed(dims, dtype="f32"):
    layout = ",".join(str(axis) for axis in reversed(range(len(dims))))
    return f"{dtype}[{','.join(map(str, dims))}]{{{layout}}}"


def library_call(target, left, right, results, attributes=""):
    """A program of one call to a library; `results` has a type, or several."""
    several = f"({', '.join(results)})"
    result = results[0] if len(results) == 1 else several
    return "\n".join(
        [
            "HloModule jit_f, is_scheduled=true",
            "",
            f"ENTRY %main (a: {left}, b: {right}) -> {result} {{",
            f"  %a = {left} parameter(0)",
            f"  %b = {right} parameter(1)",
            f"  ROOT %call = {result} custom-call(%a, %b), {attributes}"
            f'custom_call_target="{target}"',
            "}",
        ]
    )


def convolution_text(target, facts):
    """As XLA writes it: labels and window are of the forward convolution."""
    images, kernel, out, window = facts
    operands = {
        "Forward": (images, kernel, out),
        "BackwardInput": (out, kernel, images),
        "BackwardFilter": (images, out, kernel),
    }[target]
    left, right, result = map(typed, operands)
    labels = f"{f'window={{{window}}}, ' if window else ''}dim_labels=b01f_01io->b01f, "
    return library_call(
        f"__cudnn$conv{target}", left, right, (result, "u8[4096]{0}"), labels
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("target", ["Forward", "BackwardInput", "BackwardFilter"])
def test_a_convolution_and_both_its_gradients_take_the_same_flops(name, target):
    """As many as the compiler counts for the forward one."""
    facts, options = CONVOLUTIONS[name]
    images, kernel = (jax.ShapeDtypeStruct(dims, jnp.float32) for dims in facts[:2])

    def run(x, k):
        return jax.lax.conv_general_dilated(
            x,
            k,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            padding="SAME",
            **{"window_strides": (1, 1), **options},
        )

    lowered = jax.jit(run).lower(images, kernel)
    assert lowered.out_info.shape == facts[2]
    wanted = lowered.compile().cost_analysis()["flops"]
    (found,) = kernels(convolution_text(target, facts))
    assert found.flops == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize(
    ("target", "results"),
    [
        ("__cublas$gemm", ("f32[30,50]{1,0}", "s8[33554432]{0}")),
        ("__cublas$lt$matmul", ("f32[30,50]{1,0}", "u8[4194304]{0}")),
        ("__cublas$lt$matmul", ("f32[30,50]{1,0}",)),
    ],
)
def test_scratch_memory_of_a_library_is_not_moved(target, results):
    contracted = 'backend_config={"lhs_contracting_dimensions":["1"]}, '
    sides = ("f32[30,40]{1,0}", "f32[40,50]{1,0}")
    (found,) = kernels(library_call(target, *sides, results, contracted))
    assert found.flops == 2 * 30 * 40 * 50
    assert found.bytes == 4 * (30 * 40 + 40 * 50 + 30 * 50)


@pytest.mark.parametrize(
    ("target", "results", "written"),
    [
        # Numbers of eight bits are a result where they come first or have axes.
        ("__cudnn$convForward", ("s8[9,7]{1,0}", "u8[64]{0}"), 63),
        ("__cublas$gemm", ("s8[100]{0}", "s8[64]{0}"), 100),
        ("__cudnn$fmhaSoftmax", ("f32[9]{0}", "u8[8,8]{1,0}", "u8[0]{0}"), 100),
        # What others return is not known to be scratch.
        ("my_kernel", ("f32[9]{0}", "u8[64]{0}"), 100),
    ],
)
def test_results_of_eight_bits_are_moved(target, results, written):
    (found,) = kernels(library_call(target, "f32[2]{0}", "f32[3]{0}", results))
    assert found.bytes == 4 * (2 + 3) + written
