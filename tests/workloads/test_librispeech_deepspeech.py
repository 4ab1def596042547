"""Deep Speech: the LSTM against definitions, padding, dropout, learning."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import count_types, each_variant, losses_on_one_batch
from devices import assert_agree
from speech_checks import (
    KEY,
    check_logits_of_the_batch,
    check_padding,
    full_batch,
    random_params,
    small,
    utterances,
)

from algoperf import spec
from workloads.librispeech_deepspeech.model import BidirectionalLSTM, orthogonal_gates
from workloads.librispeech_deepspeech.workload import FULL
from workloads.librispeech_deepspeech.workload import WORKLOADS as ALL

WORKLOADS = [w for w in ALL if w.scale == "full"]
SIZES = {"width": 16, "num_lstm_layers": 2, "num_feed_forward_layers": 2}
SMALL = small(FULL, **SIZES)
VARIANTS = [small(workload, **SIZES) for workload in WORKLOADS]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_definition(x, kernel, recurrent, bias):
    """One direction of one utterance: (T, D) -> (T, H), in float64."""
    width = recurrent.shape[0]
    output, cell = np.zeros(width), np.zeros(width)
    outputs = []
    for frame in x:
        gates = frame @ kernel + output @ recurrent + bias
        enter, forget, new, leave = np.split(gates, 4)
        cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(new)
        output = _sigmoid(leave) * np.tanh(cell)
        outputs.append(output)
    return np.array(outputs)


def lstm_with_noise():
    lstm = BidirectionalLSTM(4)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 7, 5)).astype(np.float32)
    paddings = (np.arange(7) >= np.array([7, 4, 1])[:, None]).astype(np.float32)
    params = lstm.init(KEY, x, paddings)["params"]
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape), params)
    return lstm, params, x, paddings


def test_the_lstm_agrees_with_numpy_on_utterances_of_any_length():
    lstm, params, x, paddings = lstm_with_noise()
    got = lstm.apply({"params": params}, x, paddings)
    for row, length in enumerate([7, 4, 1]):
        real = x[row, :length].astype(np.float64)
        p = {
            side: (
                params[f"{side}_input"]["kernel"],
                params[f"{side}_recurrent"]["kernel"],
                params[f"{side}_recurrent"]["bias"],
            )
            for side in ("forward", "backward")
        }
        forth = lstm_by_definition(real, *p["forward"])
        back = lstm_by_definition(real[::-1], *p["backward"])[::-1]
        want = np.concatenate([forth, back], axis=1)
        np.testing.assert_allclose(got[row, :length], want, atol=1e-5)


def test_the_lstm_agrees_with_flax():
    lstm, params, x, _ = lstm_with_noise()
    got = lstm.apply({"params": params}, x, np.zeros(x.shape[:2], np.float32))
    p = params["forward_input"]["kernel"], params["forward_recurrent"]
    cell = {
        **{
            f"i{gate}": {"kernel": kernel}
            for gate, kernel in zip("ifgo", np.split(p[0], 4, axis=1), strict=True)
        },
        **{
            f"h{gate}": {"kernel": kernel, "bias": bias}
            for gate, kernel, bias in zip(
                "ifgo",
                np.split(p[1]["kernel"], 4, axis=1),
                np.split(p[1]["bias"], 4),
                strict=True,
            )
        },
    }
    rnn = nn.RNN(nn.OptimizedLSTMCell(4))
    want = rnn.apply({"params": {"cell": cell}}, x)
    np.testing.assert_allclose(got[..., :4], want, atol=1e-5)


def test_the_lstm_starts_as_that_of_flax():
    kernel = orthogonal_gates(KEY, (8, 32), jnp.float32)
    gates = np.split(np.asarray(kernel), 4, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
    assert not np.allclose(gates[0], gates[1])
    params = BidirectionalLSTM(64).init(KEY, jnp.ones((1, 2, 400)), jnp.zeros((1, 2)))
    params = params["params"]
    kernel = params["forward_input"]["kernel"]  # Lecun: variance 1 / 400
    assert float(kernel.std()) == pytest.approx(1 / 20, rel=0.02)
    assert not params["forward_recurrent"]["bias"].any()


@pytest.mark.parametrize("workload", VARIANTS, ids=lambda w: w.variant)
def test_logits_are_those_of_each_utterance_alone(workload):
    check_logits_of_the_batch(workload)


@pytest.mark.parametrize(
    "workload", [VARIANTS[0], VARIANTS[3]], ids=lambda w: w.variant
)
def test_padding_changes_no_metric(workload):
    check_padding(workload)


def test_dropout_reaches_the_residual_layers_too(dropouts):
    params, state = random_params(SMALL)
    batch = utterances(np.random.default_rng(4), 2)
    dropouts.clear()
    train = spec.ForwardPassMode.TRAIN
    SMALL.model_fn(params, batch, state, train, KEY, True, dropout_rate=0.3)
    assert dropouts == [(0.3, True)] * (1 + 2)


def test_batch_statistics_keep_their_shape():
    params, state = SMALL.init_model_fn(KEY)
    batch = utterances(np.random.default_rng(5), 2)
    _, new = SMALL.model_fn(
        params, batch, state, spec.ForwardPassMode.TRAIN, KEY, update_batch_norm=True
    )
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert not jax.tree.all(jax.tree.map(np.array_equal, new, state))
    _, full = jax.eval_shape(FULL.init_model_fn, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(full)) == 9216
    assert VARIANTS[3].init_model_fn(KEY)[1] is None or not jax.tree.leaves(
        VARIANTS[3].init_model_fn(KEY)[1]
    )


def test_types_of_the_parameters():
    types = spec.ParameterType
    assert count_types(FULL) == {
        types.CONV_WEIGHT: 2,
        types.WEIGHT: 1 + 6 * 4 + 3 + 1,
        types.BIAS: 2 + 1 + 6 * 2 + 3 + 1,
        types.BATCH_NORM_SCALE: 9,
        types.BATCH_NORM_BIAS: 9,
        types.LAYER_NORM_SCALE: 1,
        types.LAYER_NORM_BIAS: 1,
    }
    assert FULL.is_output_params("head")


@pytest.mark.slow
def test_variants_differ_from_the_base_in_their_outputs():
    batch = utterances(np.random.default_rng(6), 2)
    found = []
    for workload in VARIANTS:
        params, state = workload.init_model_fn(KEY)
        variables = {"params": params, **(state or {})}
        logits, _ = workload.model.apply(variables, *batch["inputs"], train=False)
        found.append(logits)
    for logits in found[1:]:
        assert not np.allclose(logits, found[0], atol=1e-4)
    assert (VARIANTS[3].model.frequency_masks, VARIANTS[3].model.time_masks) == (4, 15)


def small_evaluation():
    """For `devices`: a small model on two batches, padding among them."""
    rng = np.random.default_rng(7)
    return SMALL, [utterances(rng, 8, valid) for valid in (8, 5)]


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", each_variant(WORKLOADS))
def test_the_full_model_learns_one_batch(workload):
    losses = losses_on_one_batch(workload, full_batch(), learning_rate=1e-3)
    assert np.isfinite(losses).all()
    assert losses[5] < 0.8 * losses[0]
