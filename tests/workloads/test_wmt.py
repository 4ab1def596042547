"""Translation: layers, decoding, parameters, metrics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import count_types, evaluate
from devices import assert_agree
from wmt_small import (
    KEY,
    SMALL,
    VARIANTS,
    log_softmax,
    random_params,
    sentences,
    small,
)

from algoperf import spec
from algoperf.workload import derive
from workloads.common.positions import positions_1d
from workloads.wmt import data
from workloads.wmt.bleu import bleu
from workloads.wmt.model import Transformer, shift_right
from workloads.wmt.workload import FULL


class NumpyTransformer:
    """One sentence pair in float64, written from the paper."""

    def __init__(self, params, workload):
        self.p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        model = workload.model
        self.activation = lambda x: np.asarray(model.activation(jnp.asarray(x)))
        self.post = model.post_layer_norm
        self.temperature = model.attention_temperature

    def norm(self, x, p):
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]
            + (p["bias"])
        )

    def attend(self, x, memory, p, causal=False):
        heads = []
        for h in range(2):
            q = self.temperature * x @ p["query"]["kernel"][:, h]
            k = memory @ p["key"]["kernel"][:, h]
            v = memory @ p["value"]["kernel"][:, h]
            scores = q @ k.T / np.sqrt(8)
            if causal:
                scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            heads.append(weights @ v @ p["out"]["kernel"][h])
        return sum(heads)

    def mlp(self, x, p):
        hidden = self.activation(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
        if "gate" in p:
            hidden = hidden * (x @ p["gate"]["kernel"] + p["gate"]["bias"])
        return hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"]

    def residual(self, x, p, branch):
        p = p["layer_norm"]
        if self.post:
            return self.norm(x + branch(x), p)
        return x + branch(self.norm(x, p))

    def embed(self, ids):
        angles = np.arange(len(ids))[:, None] / 10_000 ** (np.arange(8) / 7)
        places = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return self.p["shared"]["embedding"][ids] + places

    def __call__(self, source, target):
        x = self.embed(source)
        for i in range(2):
            p = self.p[f"encoder_{i}"]
            x = self.residual(
                x,
                p["attention_branch"],
                lambda y, p=p: self.attend(y, y, p["attention"]),
            )
            x = self.residual(x, p["mlp_branch"], lambda y, p=p: self.mlp(y, p["mlp"]))
        if not self.post:
            x = self.norm(x, self.p["encoder_norm"])
        y = self.embed(np.concatenate([[0], target[:-1]]))
        for i in range(2):
            p = self.p[f"decoder_{i}"]
            y = self.residual(
                y,
                p["attention_branch"],
                lambda z, p=p: self.attend(z, z, p["attention"], causal=True),
            )
            y = self.residual(
                y,
                p["source_branch"],
                lambda z, p=p: self.attend(z, x, p["source_attention"]),
            )
            y = self.residual(y, p["mlp_branch"], lambda z, p=p: self.mlp(z, p["mlp"]))
        if not self.post:
            y = self.norm(y, self.p["decoder_norm"])
        return y @ self.p["shared"]["embedding"].T / 4


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_agree_with_numpy_and_padding_changes_nothing(name):
    model = small(VARIANTS[name])
    params = random_params(model)
    rng = np.random.default_rng(1)
    source, target = sentences(rng, 3, 8), sentences(rng, 3, 8)
    got = model.apply({"params": params}, source, target, train=False)
    for row in range(3):
        s, t = source[row][source[row] > 0], target[row][target[row] > 0]
        want = NumpyTransformer(params, VARIANTS[name])(s, t)
        np.testing.assert_allclose(got[row, : len(t)], want, atol=2e-5)


def test_sinusoids_have_sines_then_cosines():
    table = positions_1d(50, 6)
    for i, frequency in enumerate((1, 10_000**-0.5, 1e-4)):
        for place in (0, 1, 49):
            assert table[place, i] == pytest.approx(math.sin(place * frequency))
            assert table[place, 3 + i] == pytest.approx(math.cos(place * frequency))


def test_each_sentence_of_a_row_starts_with_padding():
    tokens = jnp.array([[5, 6, 2, 7, 2, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0]])
    assert shift_right(tokens, segments).tolist() == [[0, 5, 6, 0, 7, 0, 0]]
    assert shift_right(tokens, None).tolist() == [[0, 5, 6, 2, 7, 2, 0]]


def test_a_packed_row_gives_what_its_pairs_give_alone():
    model = small().clone(max_length=20)
    params = random_params(model)
    rng = np.random.default_rng(2)
    rows = [(sentences(rng, 1, 8)[0], sentences(rng, 1, 8)[0]) for _ in range(2)]
    sides = []
    for side in (0, 1):
        ids = [row[side][row[side] > 0] for row in rows]
        pad = [0] * (20 - sum(map(len, ids)))
        tokens = np.concatenate([*ids, pad])
        positions = np.concatenate([*(np.arange(len(i)) for i in ids), pad])
        segments = np.concatenate([*([n] * len(i) for n, i in enumerate(ids, 1)), pad])
        sides.append(np.array([tokens, positions, segments], np.int32)[:, None])
    (source, source_at, source_of), (target, target_at, target_of) = sides
    packed = model.apply(
        {"params": params},
        *(source, target, source_at, target_at, source_of, target_of),
        train=False,
    )
    start = 0
    for source, target in rows:
        alone = model.apply({"params": params}, source[None], target[None], train=False)
        length = int((target > 0).sum())
        np.testing.assert_allclose(
            packed[0, start : start + length], alone[0, :length], atol=1e-5
        )
        start += length


def test_a_logit_depends_on_no_later_target():
    model = small()
    params = random_params(model)
    rng = np.random.default_rng(3)
    source = sentences(rng, 1, 8)
    target = rng.integers(3, 11, (1, 8))
    logits = model.apply({"params": params}, source, target, train=False)
    changed = target.copy()
    changed[0, 5] = 1
    again = model.apply({"params": params}, source, changed, train=False)
    np.testing.assert_allclose(again[0, :6], logits[0, :6], atol=1e-6)
    assert not np.allclose(again[0, 6], logits[0, 6], atol=1e-3)


def test_permuting_a_batch_permutes_the_logits():
    model = small()
    params = {"params": random_params(model)}
    rng = np.random.default_rng(4)
    source, target = sentences(rng, 4, 8), sentences(rng, 4, 8)
    order = np.array([2, 0, 3, 1])
    logits = model.apply(params, source, target, train=False)
    permuted = model.apply(params, source[order], target[order], train=False)
    np.testing.assert_allclose(permuted, logits[order], atol=1e-5)


@pytest.mark.parametrize("name", ["wmt", "post_ln"])
def test_decoding_one_by_one_gives_the_same_logits(name):
    model = small(VARIANTS[name])
    variables = {"params": random_params(model)}
    rng = np.random.default_rng(5)
    source, target = sentences(rng, 3, 8), rng.integers(3, 11, (3, 8))
    want = model.apply(variables, source, target, train=False)
    encoded = model.apply(variables, source, method="encode")
    sources = model.apply(variables, encoded, method="sources")
    past = model.empty_past(3, 8)
    tokens = np.zeros(3, np.int32)
    for position in range(8):
        logits, past = model.apply(
            variables, tokens, position, past, sources, source, method="decode_one"
        )
        np.testing.assert_allclose(logits, want[:, position], atol=2e-5)
        tokens = target[:, position]


def test_dropout_reaches_every_place(dropouts):
    model = small()
    ids = jnp.ones((1, 4), jnp.int32)
    params = model.init({"params": KEY}, ids, ids, train=False)
    dropouts.clear()
    rngs = {"dropout": KEY}
    model.apply(params, ids, ids, train=True, dropout_rate=0.25, rngs=rngs)
    # Both embeddings; a layer of the encoder has 4 places: attention weights and
    # output, inside and behind the MLP; one of the decoder 6.
    assert dropouts == [(0.25, True)] * (2 + 2 * (4 + 6))


def test_types_of_the_parameters():
    types = spec.ParameterType
    assert count_types(FULL) == {
        types.EMBEDDING: 1,
        types.ATTENTION_Q: 18,
        types.ATTENTION_K: 18,
        types.ATTENTION_V: 18,
        types.ATTENTION_OUT: 18,
        types.LAYER_NORM_SCALE: 6 * 5 + 2,
        types.LAYER_NORM_BIAS: 6 * 5 + 2,
        types.WEIGHT: 24,
        types.BIAS: 24,
    }
    assert FULL.is_output_params("shared")
    assert not FULL.is_output_params("encoder_0")


def test_the_initial_embedding_is_normal_and_the_kernels_are_xavier_uniform():
    params = small().init(
        {"params": KEY}, *[jnp.ones((1, 4), jnp.int32)] * 2, train=False
    )["params"]
    wide = Transformer(vocab_size=2000, num_layers=1).init(
        {"params": KEY}, *[jnp.ones((1, 4), jnp.int32)] * 2, train=False
    )["params"]
    assert np.std(wide["shared"]["embedding"]) == pytest.approx(1, rel=0.01)
    limit = math.sqrt(6 / 2048)
    for name in ("query", "key", "value", "out"):
        kernel = np.asarray(wide["encoder_0"]["attention"][name]["kernel"])
        assert abs(kernel).max() == pytest.approx(limit, rel=0.001)
        assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.01)
    assert 0 < abs(params["encoder_0"]["mlp"]["fc1"]["bias"]).max() < 1e-5


# Evaluation.


class Numbers:
    """A vocabulary whose texts are the ids."""

    def decode(self, rows):
        return [" ".join(map(str, row)) for row in rows]


def small_evaluation():
    """For `devices`: a small model on two batches, padding among them."""
    workload = derive(FULL, model=SMALL, vocabulary=lambda folder: Numbers())
    rng = np.random.default_rng(7)
    batches = []
    for valid in (8, 5):
        source, target = sentences(rng, 8, 8), sentences(rng, 8, 8)
        weights = (target > 0) * (np.arange(8) < valid)[:, None]
        batch = {"inputs": source, "targets": target}
        batches.append({**batch, "weights": weights.astype(np.float32)})
    return workload, batches


def test_metrics_of_a_padded_batch_are_those_of_its_pairs():
    workload, (_, padded) = small_evaluation()
    params = random_params(workload.model)
    exact = {name: array[:5] for name, array in padded.items()}
    want = evaluate(workload, params, {}, [exact])
    assert evaluate(workload, params, {}, [padded]) == pytest.approx(want, rel=1e-5)
    parts = [{n: a[i : i + 1] for n, a in exact.items()} for i in range(5)]
    assert evaluate(workload, params, {}, parts) == pytest.approx(want, rel=1e-5)


def test_metrics_are_those_of_the_definitions():
    workload, rows = small_evaluation()
    params = random_params(workload.model)
    got = evaluate(workload, params, {}, rows)
    losses, correct, texts = [], [], ([], [])
    for batch in rows:
        logits = workload.model.apply(
            {"params": params}, batch["inputs"], batch["targets"], train=False
        )
        found = workload.translate(params, batch["inputs"], jnp.ones(8, bool))
        for row in np.flatnonzero(batch["weights"].any(axis=1)):
            target = batch["targets"][row]
            for place in np.flatnonzero(target):
                values = log_softmax(np.asarray(logits[row, place], np.float64))
                losses.append(-values[target[place]])
                correct.append(values.argmax() == target[place])
            for ids, out in zip((np.asarray(found[row]), target), texts, strict=True):
                end = [*ids, data.END].index(data.END) if data.END in ids else len(ids)
                out.append(" ".join(str(i) for i in ids[:end] if i))
    assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert got["accuracy"] == pytest.approx(np.mean(correct))
    assert got["bleu"] == pytest.approx(bleu(*texts))


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)
