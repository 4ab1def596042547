"""Dollars, energy, devices, FLOPs, bytes: closed forms and XLA's own counts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from decoders import SHAPES

from algoperf.errors import UserError
from algoperf.inference.models import decoder
from algoperf.inference.models.shapes import find_shape, param_shapes
from algoperf.inference.timing.prompt_time import PromptTime
from algoperf.inference.timing.runtime import RuntimeModel
from algoperf.inference.tradeoffs import costs
from algoperf.inference.tradeoffs.costs import Accelerator, Option


def runtime(start, g):
    return RuntimeModel(PromptTime("affine", (), (start, 0.0)), g)


ONE = Option(runtime(1.0, 0.1))
FOUR = Option(runtime(0.4, 0.04), accelerators=4)
BATCH = Option(runtime(3.0, 0.2), batch_size=8)
A100 = Accelerator("A100", 80e9, 3.6, 400.0, 312e12, 2.0e12)


def test_dollars_and_energy():
    """T(p, 11) = 2 s: on one device at 3.6 dollars an hour, 0.002 dollars."""
    assert ONE.dollars(5, 11, 3.6) == pytest.approx(0.002)
    assert ONE.joules(5, 11, 400, effectiveness=1.0) == pytest.approx(800)
    assert FOUR.dollars(5, 11, 3.6) == pytest.approx(0.8 * 4 * 3.6 / 3600)
    assert BATCH.seconds_per_request(5, 11) == pytest.approx(5 / 8)
    assert BATCH.tokens_per_second(5, 11) == pytest.approx(8 * 11 / 5)
    found = costs.request_costs(ONE, A100, 5, 11)
    assert found["seconds"] == pytest.approx(2)
    assert found["joules"] == pytest.approx(880)


def test_cheapest_weighs_speed_against_devices():
    options = [ONE, FOUR, BATCH]
    assert costs.cheapest(options, 5, 11) is BATCH
    assert costs.cheapest(options, 5, 11, latency_limit=3) is ONE
    assert costs.cheapest(options, 5, 11, latency_limit=1) is FOUR
    with pytest.raises(UserError, match="allow more"):
        costs.cheapest(options, 5, 11, latency_limit=0.1)


def test_energy_of_training_is_that_of_helm():
    """OPT-175B: 992 A100 of 400 W for 33 days."""
    assert costs.training_energy_mwh(992, 400, 33 * 24) == pytest.approx(
        345.7, abs=0.05
    )
    carbon = costs.training_energy_mwh(992, 400, 33 * 24) * 0.367
    assert carbon == pytest.approx(126.9, abs=0.05)


@pytest.mark.parametrize(
    ("needed", "want"), [(1, 1), (80e9, 1), (81e9, 2), (350e9, 8), (641e9, 16)]
)
def test_fewest_accelerators(needed, want):
    assert costs.fewest_accelerators(needed, 80e9) == want


def test_gpt3_needs_eight_of_80_gb():
    shape = find_shape("gpt3-175b")
    assert costs.fewest_accelerators(costs.serving_bytes(shape, 2048), 80e9) == 8
    with pytest.raises(UserError):
        costs.fewest_accelerators(1, 0)


def test_flops_of_a_plain_shape_are_the_closed_form():
    shape, p = find_shape("gpt2"), 300
    layers, width, vocab = 12, 768, 50_257
    want = 24 * p * layers * width**2 + 4 * p**2 * layers * width + 2 * width * vocab
    assert costs.prompt_flops(shape, p) == want
    want = 24 * layers * width**2 + 4 * 77 * layers * width + 2 * width * vocab
    assert costs.token_flops(shape, 77) == want


def test_flops_of_the_paper():
    """Its terms one by one: products, scores, 1.5 p h V of logits."""
    p, h, layers, vocab = 512, 1024, 24, 50_257
    want = 24 * p * h**2 * layers + 4 * p**2 * h * layers + 1.5 * p * h * vocab
    assert costs.paper_prompt_flops(p, h, layers, vocab) == pytest.approx(want)


def test_block_products_count_the_kernels():
    for name in ("qwen3-8b", "gpt2", "gpt-j-6b", "llama-3.2-1b"):
        shape = find_shape(name)
        layer = param_shapes(shape)["layers"][0]
        kernels = [
            math.prod(part["kernel"])
            for part in layer.values()
            if isinstance(part, dict) and "kernel" in part
        ]
        assert costs.block_products(shape) == sum(kernels)


WIDE = dataclasses.replace(
    SHAPES["like llama"], width=128, head_size=32, mlp_width=256, vocab_size=512
)


@pytest.mark.parametrize("length", [1, 32])
def test_flops_agree_with_the_compiler(length):
    """Within 3 % of XLA's count of the compiled prefill and decoding step."""
    cache = jax.eval_shape(lambda: decoder.empty_cache(WIDE, 1, 32))
    params = jax.eval_shape(lambda: decoder.init_params(WIDE, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    position = jax.ShapeDtypeStruct((), jnp.int32)
    program = decoder.compiled_extend if length == 1 else decoder.compiled_prefill
    lowered = program.lower(WIDE, params, tokens, position, cache)
    counted = lowered.compile().cost_analysis()["flops"]
    if length == 1:
        ours = costs.token_flops(WIDE, 32)
    else:
        ours = costs.prompt_flops(WIDE, length)
    assert ours == pytest.approx(counted, rel=0.03)


def test_bytes():
    shape = find_shape("llama-3.2-1b")
    assert costs.weight_bytes(shape) == 2 * shape.num_parameters
    one = costs.token_bytes(shape, 100)
    assert one == 2 * shape.num_active_parameters + 100 * 32_768
    assert costs.token_bytes(shape, 100, batch_size=9) - one == 8 * 100 * 32_768


def test_utilisation():
    shape = find_shape("llama-3.2-1b")
    peak = costs.prompt_flops(shape, 512) / 312e12
    model = runtime(2 * peak, 4 * costs.token_bytes(shape, 512) / 2e12)
    found = costs.utilisation(model, shape, A100, 512)
    assert found["compute"] == pytest.approx(0.5)
    assert found["bandwidth"] == pytest.approx(0.25)
    unknown = dataclasses.replace(A100, peak_flops=None)
    with pytest.raises(UserError, match="peak rates"):
        costs.utilisation(model, shape, unknown, 512)
