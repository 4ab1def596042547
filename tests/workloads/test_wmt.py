"""Translation: layers, decoding, beam search, packing, subwords, BLEU."""

import collections
import functools
import itertools
import math
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from checks import count_types, each_variant, evaluate, losses_on_one_batch
from devices import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from tfds_files import write_tfds

from algoperf import cli, spec
from algoperf.data.examples import DataError, DataOptions
from algoperf.data.mapped import Mapped
from algoperf.data.pipeline import batches
from algoperf.data.source import write_manifest
from algoperf.errors import UserError
from algoperf.workload import derive
from workloads.common.positions import positions_1d
from workloads.wmt import data
from workloads.wmt.beam_search import beam_search, length_penalty
from workloads.wmt.bleu import bleu
from workloads.wmt.model import Transformer, shift_right
from workloads.wmt.workload import FULL, WORKLOADS

FULL_SIZE = [w for w in WORKLOADS if w.scale == "full"]

KEY = jax.random.PRNGKey(0)
SMALL = {
    "vocab_size": 11,
    "num_layers": 2,
    "width": 16,
    "num_heads": 2,
    "mlp_width": 12,
    "max_length": 8,
}
VARIANTS = {w.variant.removeprefix("wmt_"): w for w in FULL_SIZE}


def small(workload=FULL):
    return workload.model.clone(**SMALL)


def random_params(model, key=KEY):
    """Parameters far from their initial values, zeros among them."""
    ids = jnp.ones((1, 4), jnp.int32)
    params = model.init({"params": key}, ids, ids, train=False)["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    noise = [0.4 * rng.standard_normal(leaf.shape).astype("f4") for leaf in leaves]
    return jax.tree.unflatten(tree, noise)


def sentences(rng, rows, length, vocab_size=11):
    """Ids (rows, length) of sentences of different lengths, each with its end."""
    ids = rng.integers(3, vocab_size, (rows, length))
    ends = rng.integers(1, length, rows)
    ids[np.arange(rows), ends] = data.END
    ids[np.arange(length) > ends[:, None]] = data.PAD
    return ids.astype(np.int32)


# The model.


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


# Beam search.


def table_of_logits(seed, vocab_size, max_length):
    """Random logits after every prefix, as a function of the prefix."""
    cache = {}

    def logits(prefix):
        if prefix not in cache:
            rng = np.random.default_rng([seed, *prefix])
            cache[prefix] = 2 * rng.standard_normal(vocab_size)
        return cache[prefix]

    # The state numbers the prefix: base V + 1, so that lengths differ.
    rows = np.zeros(((vocab_size + 1) ** max_length, vocab_size), np.float32)
    for length in range(max_length):
        for prefix in itertools.product(range(vocab_size), repeat=length):
            number = functools.reduce(
                lambda n, token: n * (vocab_size + 1) + token + 1, prefix, 0
            )
            rows[number] = logits(prefix)
    table = jnp.asarray(rows)

    def next_logits(tokens, position, number):
        number = jnp.where(
            position == 0, number, number * (vocab_size + 1) + tokens + 1
        )
        return table[number], number

    return logits, next_logits


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def best_by_brute_force(logits, vocab_size, max_length, alpha, end):
    """The best of all sequences that end."""
    best = (-np.inf, None)
    others = [t for t in range(vocab_size) if t != end]
    for length in range(1, max_length + 1):
        for body in itertools.product(others, repeat=length - 1):
            sequence = (*body, end)
            total = sum(
                log_softmax(logits(sequence[:i]))[token]
                for i, token in enumerate(sequence)
            )
            best = max(best, (total / ((5 + length) / 6) ** alpha, sequence))
    return best[1]


def best_by_plain_beam_search(logits, num_beams, max_length, alpha, end):
    """Beam search on lists that never stops early."""
    live, finished = [(0.0, ())], []
    for _ in range(max_length):
        candidates = [
            (total + value, (*prefix, token))
            for total, prefix in live
            for token, value in enumerate(log_softmax(logits(prefix)))
        ]
        candidates = sorted(candidates, reverse=True)[: 2 * num_beams]
        finished += [
            (total / ((5 + len(s)) / 6) ** alpha, s)
            for total, s in candidates
            if s[-1] == end
        ]
        live = [c for c in candidates if c[1][-1] != end][:num_beams]
    return max(finished)[1] if finished else live[0][1]


def search(next_logits, num_beams, max_length, alpha, rows=1, wanted=None):
    found = beam_search(
        next_logits,
        jnp.zeros(rows * num_beams, jnp.int32),
        jnp.ones(rows, bool) if wanted is None else wanted,
        num_beams=num_beams,
        alpha=alpha,
        end=2,
        max_length=max_length,
    )
    return np.asarray(found)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.6, 1.5]))
def test_a_wide_beam_finds_the_best_of_all_sequences(seed, alpha):
    logits, next_logits = table_of_logits(seed, 4, 4)
    want = best_by_brute_force(logits, 4, 4, alpha, end=2)
    (found,) = search(next_logits, 3**3 * 4, 4, alpha)
    assert tuple(found[: len(want)]) == want
    assert not found[len(want) :].any()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.0, 0.6, 1.5]))
def test_a_narrow_beam_finds_what_a_plain_one_finds(seed, num_beams, alpha):
    logits, next_logits = table_of_logits(seed, 5, 5)
    want = best_by_plain_beam_search(logits, num_beams, 5, alpha, end=2)
    (found,) = search(next_logits, num_beams, 5, alpha)
    assert tuple(found[: len(want)]) == want
    assert not found[len(want) :].any()


def test_the_beam_beats_greedy_decoding():
    def next_logits(tokens, position, state):
        first = jnp.log(jnp.array([0.01, 0.5, 0.01, 0.48]))
        after_1 = jnp.log(jnp.array([0.2, 0.2, 0.4, 0.2]))
        after_3 = jnp.log(jnp.array([0.01, 0.01, 0.97, 0.01]))
        later = jnp.where((tokens == 3)[:, None], after_3, after_1)
        return jnp.where(position == 0, first, later), state

    assert search(next_logits, 1, 2, 0.0)[0].tolist() == [1, 2]
    assert search(next_logits, 2, 2, 0.0)[0].tolist() == [3, 2]


def test_the_search_stops_as_soon_as_no_sequence_can_win():
    calls = []

    def next_logits(tokens, position, state):
        jax.debug.callback(lambda p: calls.append(int(p)), position)
        scores = jnp.where(position >= 2, jnp.array([0, 0, 50.0]), jnp.zeros(3))
        return jnp.tile(scores, (len(tokens), 1)), state

    search(next_logits, 2, 100, 0.6)
    jax.effects_barrier()
    assert max(calls) < 10
    calls.clear()
    search(next_logits, 2, 100, 0.6, rows=2, wanted=jnp.zeros(2, bool))
    jax.effects_barrier()
    assert not calls


def test_where_nothing_ends_the_most_probable_sequence_is_returned():
    def next_logits(tokens, position, state):
        return jnp.tile(jnp.array([0.0, 3.0, -jnp.inf, 1.0]), (len(tokens), 1)), state

    assert search(next_logits, 3, 5, 0.6)[0].tolist() == [1] * 5
    assert length_penalty(1, 0.6) == 1


def test_translations_of_a_model_are_those_of_the_plain_search():
    model = small()
    params = random_params(model)
    workload = derive(FULL, model=SMALL)
    rng = np.random.default_rng(6)
    source = sentences(rng, 3, 8)
    found = jax.jit(workload.translate)(params, source, jnp.ones(3, bool))

    @jax.jit
    def model_logits(row, prefix):
        return model.apply({"params": params}, row[None], prefix[None], train=False)[0]

    compared = 0
    for row in range(3):

        def logits(prefix, row=row):
            ids = np.ones(8, np.int32)
            ids[: len(prefix)] = np.maximum(prefix, 0)
            # Padding among the targets would be masked: such rows are not compared.
            return np.asarray(model_logits(source[row], ids)[len(prefix)], np.float64)

        want = best_by_plain_beam_search(logits, 4, 8, 0.6, end=data.END)
        if data.PAD not in want:
            compared += 1
            assert tuple(np.asarray(found[row])[: len(want)]) == want
    assert compared


# BLEU.


def bleu_by_definition(translations, references):
    matches, totals = np.zeros(4), np.zeros(4)
    lengths = [0, 0]
    for translation, reference in zip(translations, references, strict=True):
        words, wanted = translation.split(), reference.split()
        lengths[0] += len(words)
        lengths[1] += len(wanted)
        for n in range(4):
            found, there = (
                collections.Counter(tuple(w[i : i + n + 1]) for i in range(len(w) - n))
                for w in (words, wanted)
            )
            matches[n] += (found & there).total()
            totals[n] += found.total()
    penalty = min(1, math.exp(1 - lengths[1] / lengths[0]))
    return 100 * penalty * math.exp(np.log(matches / totals).mean())


def test_bleu_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    words = ["der", "Hund", "bellt", "laut", "nachts"]
    references = [" ".join(rng.choice(words, rng.integers(5, 12))) for _ in range(40)]
    translations = []
    for reference in references:
        changed = [w if rng.random() < 0.8 else "Katze" for w in reference.split()]
        translations.append(" ".join(changed[: len(changed) - int(rng.integers(2))]))
    want = bleu_by_definition(translations, references)
    assert 10 < want < 90
    assert bleu(translations, references) == pytest.approx(want, abs=1e-9)
    assert bleu(references, references) == pytest.approx(100)


def test_bleu_splits_punctuation_off_words():
    assert bleu(["Ein Hund bellt laut ."], ["Ein Hund bellt laut."]) == (
        pytest.approx(100)
    )


# Data.

NUM = {"train": 300, "validation": 23, "test": 11}
GERMAN = ["der", "Hund", "sieht", "die", "Katze", "über", "große", "Straße", "Haus"]
ENGLISH = ["the", "dog", "sees", "a", "cat", "across", "large", "street", "house"]


def pair(number):
    """A pair of sentences; number 3 is too long for a row, number 4 empty."""
    rng = np.random.default_rng(number)
    words = rng.integers(0, 9, {3: 400, 4: 0}.get(number, rng.integers(1, 30)))
    german = " ".join(GERMAN[w] for w in words)
    return {"de": german, "en": " ".join(ENGLISH[w] for w in words)}


def write(folder, change=lambda number, pair: pair):
    features = {"de": tfds.features.Text(), "en": tfds.features.Text()}
    first = {"train": 0, "validation": 1000, "test": 2000}
    splits = {
        split: [change(n, pair(n)) for n in range(first[split], first[split] + size)]
        for split, size in NUM.items()
    }
    train = {"train": splits.pop("train")}
    write_tfds(folder, "wmt17_translate/de-en", "1.0.0", features, train)
    write_tfds(folder, "wmt14_translate/de-en", "1.0.0", features, splits)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wmt")
    write(folder / "raw")
    prepared = folder / "data/wmt"
    prepared.mkdir(parents=True)
    data.prepare(folder / "raw", prepared, print, vocab_size=40)
    write_manifest(prepared, data.count(prepared))
    return folder / "data"


def read(data_dir, split, size=8, seed=0, **options):
    return data.pipeline(split, size, seed, DataOptions(folder=data_dir, **options))


def text(vocabulary, ids):
    return vocabulary.decode([int(i) for i in ids if i not in (data.PAD, data.END)])


def pairs_of(batch, vocabulary):
    """The pairs of texts of a packed batch."""
    found = []
    for row in range(len(batch["inputs"])):
        for number in range(1, batch["inputs_segmentation"][row].max() + 1):
            texts = []
            for side in ("inputs", "targets"):
                here = batch[f"{side}_segmentation"][row] == number
                ids = batch[side][row][here]
                places = batch[f"{side}_position"][row][here]
                assert places.tolist() == list(range(len(ids)))
                assert ids[-1] == data.END
                texts.append(text(vocabulary, ids))
            found.append(tuple(texts))
    return found


def test_an_epoch_holds_every_pair_that_fits_once(data_dir):
    vocabulary = data.load_vocabulary(data_dir)
    stream = read(data_dir, "train", size=1)
    fitting = sum(pair_fits for pair_fits in (n != 3 for n in range(NUM["train"])))
    orders = []
    row = 0
    for _ in range(2):
        found = []
        while len(found) < fitting:
            found += pairs_of(stream[row], vocabulary)
            row += 1
        want = [tuple(pair(n).values()) for n in range(NUM["train"]) if n != 3]
        assert sorted(found) == sorted(want)
        orders.append(found)
    assert orders[0] != orders[1]


def test_batches_have_the_documented_shapes(data_dir):
    batch = read(data_dir, "train")[0]
    assert {name: (a.shape, str(a.dtype)) for name, a in batch.items()} == {
        "inputs": ((8, 256), "int32"),
        "inputs_position": ((8, 256), "int32"),
        "inputs_segmentation": ((8, 256), "int32"),
        "targets": ((8, 256), "int32"),
        "targets_position": ((8, 256), "int32"),
        "targets_segmentation": ((8, 256), "int32"),
        "weights": ((8, 256), "float32"),
    }
    np.testing.assert_array_equal(batch["weights"], batch["targets"] > 0)
    np.testing.assert_array_equal(batch["inputs"] > 0, batch["inputs_segmentation"] > 0)
    assert (batch["inputs"] > 0).mean() > 0.5  # rows are well filled
    evaluated = read(data_dir, "validation")[0]
    assert {name: (a.shape, str(a.dtype)) for name, a in evaluated.items()} == {
        "inputs": ((8, 256), "int32"),
        "targets": ((8, 256), "int32"),
        "weights": ((8, 256), "float32"),
    }


def test_the_stream_follows_from_the_seed_and_any_position_can_be_read(data_dir):
    stream = read(data_dir, "train")
    straight = [batch for batch, _ in zip(batches(stream), range(5), strict=False)]
    for i in (4, 0, 3):
        jax.tree.map(np.testing.assert_array_equal, stream[i], straight[i])
    assert isinstance(data.open_pairs(data_dir / "wmt", "train")._ids, Mapped)
    moved = pickle.loads(cloudpickle.dumps(stream))[4]
    jax.tree.map(np.testing.assert_array_equal, moved, straight[4])
    again, other = read(data_dir, "train"), read(data_dir, "train", seed=1)
    np.testing.assert_array_equal(again[2]["inputs"], straight[2]["inputs"])
    assert not np.array_equal(other[2]["inputs"], straight[2]["inputs"])


def test_hosts_share_a_batch(data_dir):
    whole = read(data_dir, "train")[1]
    parts = [read(data_dir, "train", host=h, num_hosts=2)[1] for h in (0, 1)]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([p[name] for p in parts]))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_holds_every_pair_once_in_order(data_dir, split):
    vocabulary = data.load_vocabulary(data_dir)
    stream = read(data_dir, split)
    found = []
    for i in range(len(stream)):
        real = stream[i]["weights"].any(axis=1)
        for name in ("inputs", "targets"):
            assert stream[i][name].shape == (8, 256)
        found += [
            (text(vocabulary, source), text(vocabulary, target))
            for source, target in zip(
                stream[i]["inputs"][real], stream[i]["targets"][real], strict=True
            )
        ]
    first = {"validation": 1000, "test": 2000}[split]
    assert found == [tuple(pair(first + n).values()) for n in range(NUM[split])]


def test_eval_train_is_pairs_of_the_training_set(data_dir):
    stream = read(data_dir, "eval_train")
    rows = sum(stream[i]["weights"].any(axis=1).sum() for i in range(len(stream)))
    assert rows == NUM["train"] - 1  # without the pair that is too long


def test_subwords_have_the_special_tokens_of_the_model(data_dir):
    vocabulary = data.load_vocabulary(data_dir)
    assert vocabulary.vocab_size() == 40
    assert (vocabulary.pad_id(), vocabulary.bos_id()) == (data.PAD, data.START)
    assert (vocabulary.eos_id(), vocabulary.unk_id()) == (data.END, data.UNKNOWN)
    # A letter that the training pairs do not have is unknown, not padding.
    assert data.UNKNOWN in vocabulary.encode("日")
    assert data.PAD not in vocabulary.encode("日 Hund")


def test_missing_data_and_broken_files_are_named(data_dir, tmp_path, capfd):
    with pytest.raises(UserError, match="algoperf data prepare wmt"):
        read(tmp_path, "train")
    assert cli.main(["data", "prepare", "wmt", f"--raw={tmp_path}"]) != 0
    assert "wmt14_translate/de-en/1.0.0" in capfd.readouterr().err
    folder = data_dir / "wmt"
    whole = (folder / "test.ids").read_bytes()
    (folder / "test.ids").write_bytes(whole[:-2])
    try:
        with pytest.raises(DataError, match=r"test.ids has [\d,]+ ids, expected"):
            read(data_dir, "test")
        (folder / "test.ids").unlink()
        with pytest.raises(DataError, match=r"test.ids cannot be read"):
            read(data_dir, "test")
    finally:
        (folder / "test.ids").write_bytes(whole)


def test_a_broken_record_is_named(tmp_path):
    def broken(number, pair):
        return {**pair, "en": b"\xff\xfe" if number == 2004 else pair["en"]}

    write(tmp_path / "raw", broken)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"wmt14_translate.*test, record 4"):
        data.prepare(tmp_path / "raw", tmp_path / "out", print, vocab_size=40)
    skipped = []
    data.prepare(
        tmp_path / "raw", tmp_path / "out", print, 40, on_corrupt=skipped.append
    )
    assert ["record 4" in str(error) for error in skipped] == [True]
    assert data.count(tmp_path / "out") == {**NUM, "test": NUM["test"] - 1}


def test_too_little_text_for_the_vocabulary_is_one_line(tmp_path):
    write(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="cannot learn a vocabulary of 32,000") as seen:
        data.prepare(tmp_path / "raw", tmp_path / "out", print)
    assert "\n" not in str(seen.value)


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
    assert_agree("test_wmt")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", each_variant(FULL_SIZE))
def test_the_full_model_learns_one_batch(workload, data_dir):
    batch = read(data_dir, "train", size=2)[0]
    losses = losses_on_one_batch(workload, batch, learning_rate=1e-4)
    # The output shares the embedding N(0, 1), and the decoder ends in a layer norm: the
    # logits have about unit variance, so that the loss is about ln 32,000 + 1/2.
    assert losses[0] == pytest.approx(math.log(32_000) + 0.5, abs=0.4)
    assert losses[5] < losses[0] - 0.5
