"""Kernels read off compiled programs; the roofline over them."""

import jax
import jax.numpy as jnp
import pytest
from decoders import SHAPES, TRAINED

from algoperf import registry, spec
from algoperf.errors import UserError
from algoperf.inference.models import decoder
from algoperf.inference.rooflines import roofline
from algoperf.inference.rooflines.roofline import Peak
from algoperf.inference.timing.hlo import Kernel, kernels
from algoperf.inference.tradeoffs import costs

PEAK = Peak(flops=100.0, bytes_per_second=10.0)
HAND = [Kernel("product", "dot", flops=1000, bytes=20), Kernel("sum", "add", 10, 50)]


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flops_of(program):
    return roofline.totals(kernels(program.as_text())).flops


def test_two_kernels_by_hand():
    """10 s of products; 5 s of bytes. One roofline over the totals sees 10.1 s."""
    assert roofline.ideal_seconds(HAND, PEAK) == pytest.approx(15)
    assert PEAK.seconds(roofline.totals(HAND)) == pytest.approx(10.1)
    assert [PEAK.is_compute_bound(kernel) for kernel in HAND] == [True, False]


def test_repeats_count():
    loop = [Kernel("product", "dot", 1000, 20, repeats=7)]
    assert roofline.ideal_seconds(loop, PEAK) == pytest.approx(70)


def test_a_peak_rate_of_nothing_is_an_error():
    with pytest.raises(UserError, match="above 0"):
        Peak(0.0, 1.0)


def test_a_product():
    program = compiled(lambda a, b: a @ b, array(30, 40), array(40, 50))
    (kernel,) = kernels(program.as_text())
    assert kernel.flops == 2 * 30 * 40 * 50
    assert kernel.bytes == 4 * (30 * 40 + 40 * 50 + 30 * 50)


def test_a_loop_counts_as_often_as_it_runs():
    """XLA's own total counts its body once."""

    def run(weights, x):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, weights)[0]

    program = compiled(run, array(5, 64, 64), array(8, 64))
    products = 5 * 2 * 8 * 64 * 64
    assert flops_of(program) == pytest.approx(products, rel=0.01)
    assert program.cost_analysis()["flops"] < 0.5 * products
    moved = roofline.totals(kernels(program.as_text())).bytes
    # Each step reads one of the five matrices, not all.
    assert moved < 4 * 5 * (4 * 64 * 64 + 8 * 8 * 64)


def test_a_loop_of_unknown_length_takes_the_stated_one():
    def run(x, count):
        return jax.lax.fori_loop(0, count, lambda i, c: jnp.tanh(c @ c), x)

    text = compiled(run, array(32, 32), array(dtype=jnp.int32)).as_text()
    one, nine = (roofline.totals(kernels(text, n)).flops for n in (1, 9))
    assert nine == pytest.approx(9 * one, rel=0.01)


def test_what_is_added_to_in_place_is_not_moved_whole():
    """The gradient of an embedding touches the rows that were looked up."""

    def run(table, ids, rows):
        return table.at[ids].add(rows)

    table, ids, rows = array(5000, 32), array(64, dtype=jnp.int32), array(64, 32)
    program = jax.jit(run, donate_argnums=0).lower(table, ids, rows).compile()
    moved = roofline.totals(kernels(program.as_text())).bytes
    update = 4 * 64 * 32
    # Updates, rows read and rows written; ids, on the way made and read again.
    assert 3 * update < moved < 5 * update


@pytest.mark.parametrize(
    ("transform", "dtype", "share"),
    [
        (jnp.fft.rfft, jnp.float32, 8 / 2.5),
        (jnp.fft.irfft, jnp.complex64, 8 * 129 / 256 / 2.5),
        (jnp.fft.fft, jnp.complex64, 8 / 5),
    ],
)
def test_transforms(transform, dtype, share):
    """5 n log2 n, half of it for real ones; XLA has 8 n log2 n of the operand."""
    size = 129 if transform is jnp.fft.irfft else 256
    program = compiled(transform, array(10, size, dtype=dtype))
    (kernel,) = (k for k in kernels(program.as_text()) if k.kind == "fft")
    halves = 1 if dtype == jnp.float32 or size == 129 else 2
    assert kernel.flops == halves * 2.5 * 10 * 256 * 8
    wanted = program.cost_analysis()["flops"]
    assert share * kernel.flops == pytest.approx(wanted, rel=0.03)


CONVOLUTIONS = {
    "padded": ((2, 14, 14, 8), (3, 3, 8, 16), {"padding": "SAME"}),
    "strided": (
        (2, 15, 14, 8),
        (5, 3, 8, 4),
        {"padding": "SAME", "window_strides": (2, 3)},
    ),
    "dilated": (
        (1, 20, 20, 4),
        (3, 3, 4, 4),
        {"padding": "VALID", "rhs_dilation": (2, 2)},
    ),
    "grouped": (
        (2, 10, 10, 8),
        (3, 3, 1, 8),
        {"padding": "SAME", "feature_group_count": 8},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_agree_with_the_compiler(name):
    image, kernel, options = CONVOLUTIONS[name]

    def run(x, k):
        return jax.lax.conv_general_dilated(
            x,
            k,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **{"window_strides": (1, 1), **options},
        )

    program = compiled(run, array(*image), array(*kernel))
    wanted = program.cost_analysis()["flops"]
    assert flops_of(program) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize(
    "shape", [SHAPES["like llama"], TRAINED], ids=lambda shape: shape.name
)
def test_a_decoder_agrees_with_the_compiler_and_with_arithmetic(shape):
    params = jax.eval_shape(lambda: decoder.init_params(shape, jax.random.key(0)))
    tokens = array(1, 32, dtype=jnp.int32)
    program = compiled(lambda p, t: decoder.forward(shape, p, t), params, tokens)
    found = kernels(program.as_text())
    ours = roofline.totals(found)
    assert ours.flops == pytest.approx(program.cost_analysis()["flops"], rel=0.03)
    every_logit = 2 * 31 * shape.width * shape.vocab_size
    products = costs.prompt_flops(shape, 32) + every_logit
    assert 1 < ours.flops / products < 1.35  # norms, softmax and rotation of a tiny one
    assert ours.bytes > 4 * shape.num_active_parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_resnet", "imagenet_vit", "finewebedu_lm"])
def test_a_training_step_agrees_with_the_compiler(name):
    """Forward and backward, convolutions with dilated inputs among them."""
    workload = registry.find_workload(name, "mini")
    batch = workload.dataset("train", 8, seed=0)[0]
    key = jax.random.PRNGKey(0)
    params, state = jax.eval_shape(workload.init_model_fn, key)

    def loss(params, state, batch):
        logits, _ = workload.model_fn(
            params, batch, state, spec.ForwardPassMode.TRAIN, key, True
        )
        found = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return found["summed"] / found["n_valid_examples"]

    program = compiled(jax.value_and_grad(loss), params, state, batch)
    wanted = program.cost_analysis()["flops"]
    assert flops_of(program) == pytest.approx(wanted, rel=0.03)
