"""What the speech families share, against definitions."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.common.speech.features import LogMel, spec_augment
from workloads.common.speech.layers import BatchNorm, LayerNorm, Subsample
from workloads.common.speech.librispeech import LOG_MEL
from workloads.common.speech.recognition import (
    edit_distance,
    greedy_decode,
    official_text,
    word_error_rate,
)
from workloads.librispeech_conformer.workload import FULL

KEY = jax.random.PRNGKey(0)


# Features.


def log_mel_by_definition(samples):
    """One utterance in float64: (frames, 80), not normalised."""
    edges_mel = np.linspace(
        1127 * math.log(1 + 125 / 700), 1127 * math.log(1 + 7600 / 700), 82
    )
    rows = []
    for start in range(0, len(samples) - 400, 160):
        frame = samples[start : start + 401].astype(np.float64) / 2**15
        emphasised = [frame[0] * (1 - 0.97)]
        emphasised += [frame[i] - 0.97 * frame[i - 1] for i in range(1, 400)]
        window = [0.5 - 0.5 * math.cos(2 * math.pi * i / 400) for i in range(400)]
        wave = np.array(emphasised) * window
        bins = []
        n = np.arange(400)
        energies = [
            abs((wave * np.exp(-2j * np.pi * k * n / 512)).sum()) ** 2
            for k in range(257)
        ]
        for low, middle, high in zip(
            edges_mel, edges_mel[1:], edges_mel[2:], strict=False
        ):
            total = 0.0
            for k in range(1, 257):
                mel = 1127 * math.log(1 + k * 8000 / 256 / 700)
                if low < mel <= middle:
                    total += energies[k] * (mel - low) / (middle - low)
                elif middle < mel < high:
                    total += energies[k] * (high - mel) / (high - middle)
            bins.append(math.log(max(total, 1e-5)))
        rows.append(bins)
    return np.array(rows)


def test_features_agree_with_the_definition():
    samples = np.random.default_rng(0).normal(0, 3000, 1700).astype(np.int16)
    want = log_mel_by_definition(samples)
    got, paddings = LOG_MEL(jnp.asarray(samples[None]), jnp.zeros((1, 1700), np.uint8))
    assert got.shape == (1, 9, 80)
    assert not paddings.any()
    want = (want - LOG_MEL.mean) / LOG_MEL.stddev
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_a_frame_is_padding_if_all_its_samples_are():
    paddings = np.zeros((3, 1300), np.float32)
    paddings[1, 161:] = 1
    paddings[2, 160:] = 1
    _, got = LOG_MEL(jnp.zeros((3, 1300)), jnp.asarray(paddings))
    assert got.tolist() == [
        [0] * 6,
        [0, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1],
    ]


def test_what_stands_in_the_padding_changes_nothing():
    rng = np.random.default_rng(1)
    audio = rng.integers(-900, 900, (1, 3000)).astype(np.int16)
    paddings = (np.arange(3000) >= 2000).astype(np.uint8)[None]
    silent = np.where(paddings, 0, audio)
    got = LOG_MEL(jnp.asarray(audio), jnp.asarray(paddings))[0]
    want = LOG_MEL(jnp.asarray(silent), jnp.asarray(paddings))[0]
    np.testing.assert_array_equal(got, want)


def test_twenty_seconds_are_1998_frames():
    assert LOG_MEL.num_frames(320_000) == 1998
    assert (LOG_MEL.window, LOG_MEL.step) == (400, 160)


def test_bands_of_a_steady_tone_lie_around_its_pitch():
    flat = LogMel(mean=(0.0,) * 80, stddev=(1.0,) * 80)
    for pitch in (300, 1000, 4000):
        wave = 9000 * np.sin(2 * np.pi * pitch * np.arange(2000) / 16_000)
        loudest = int(
            flat(jnp.asarray(wave[None]), jnp.zeros((1, 2000)))[0][0, 3].argmax()
        )
        edges = 700 * np.expm1(
            np.linspace(np.log1p(125 / 700), np.log1p(7600 / 700), 82)
        )
        # A window of 25 ms tells pitches apart that lie 80 Hz (two bins) apart.
        assert edges[loudest] - 80 < pitch < edges[loudest + 2] + 80


# SpecAugment.


def masks(rows=200, frames=400, length=300, frequency_masks=2, time_masks=10, seed=0):
    features = jnp.ones((rows, frames, 80))
    paddings = jnp.asarray(np.arange(frames) >= length, jnp.float32)
    out = spec_augment(
        jax.random.PRNGKey(seed),
        features,
        jnp.tile(paddings, (rows, 1)),
        frequency_masks,
        time_masks,
    )
    return np.asarray(out)


def runs(row):
    """The lengths of the stretches of zeros."""
    return [len(list(group)) for value, group in itertools.groupby(row) if value == 0]


def test_masks_have_the_published_sizes():
    bands = masks(time_masks=0, frequency_masks=1)
    assert (bands == bands[:, :1]).all()
    widths = [sum(runs(row)) for row in bands[:, 0]]
    assert min(widths) == 0
    assert max(widths) == 26
    assert np.mean(widths) == pytest.approx(13, abs=1.7)  # 3 standard errors
    stretches = masks(time_masks=1, frequency_masks=0)
    assert (stretches == stretches[:, :, :1]).all()
    widths = [sum(runs(row)) for row in stretches[:, :, 0]]
    assert max(widths) == 14  # less than 5 % of 300 frames
    assert np.mean(widths) == pytest.approx(7, abs=1)
    assert not (stretches[:, 300:] == 0).any()  # none in the padding


def test_there_are_as_many_masks_as_asked_for():
    bands, stretches = masks(time_masks=0), masks(frequency_masks=0)
    assert max(len(runs(row)) for row in bands[:, 0]) == 2
    found = [len(runs(row)) for row in stretches[:, :, 0]]
    assert 6 <= max(found) <= 10
    assert not np.array_equal(bands[0], bands[1])
    np.testing.assert_array_equal(masks(), masks())
    assert not np.array_equal(masks(), masks(seed=1))


def test_masks_cover_every_place():
    assert (masks(rows=2000, time_masks=0) == 0).any(axis=(0, 1)).all()
    covered = (masks(rows=2000, frequency_masks=0) == 0).any(axis=(0, 2))
    assert covered[:300].all()


# Layers.


def test_layer_norm_multiplies_by_one_plus_scale():
    rng = np.random.default_rng(2)
    x = rng.normal(3, 2, (2, 5, 7)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 7)).astype(np.float32)
    got = LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, centred / deviation * (1 + scale) + bias, atol=1e-5)


def test_batch_norm_sees_only_the_frames_that_are_real():
    rng = np.random.default_rng(3)
    x = rng.normal(3, 2, (4, 6, 5)).astype(np.float32)
    lengths = np.array([6, 3, 1, 0])
    paddings = (np.arange(6) >= lengths[:, None]).astype(np.float32)
    scale, bias = rng.normal(size=(2, 5)).astype(np.float32)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": np.zeros(5, "f4"), "var": np.ones(5, "f4")},
    }
    layer = BatchNorm()
    got, state = layer.apply(variables, x, paddings, False, mutable=["batch_stats"])
    real = x[paddings == 0].astype(np.float64)
    mean, variance = real.mean(0), real.var(0)
    want = (x - mean) / np.sqrt(variance + 1e-3) * (1 + scale) + bias
    np.testing.assert_allclose(got, want * (1 - paddings)[..., None], atol=1e-5)
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.001 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.999 + 0.001 * variance, rtol=1e-5)
    changed = np.where(paddings[..., None], 99, x).astype(np.float32)
    again, _ = layer.apply(variables, changed, paddings, False, mutable=["batch_stats"])
    np.testing.assert_allclose(again, got, atol=1e-6)
    running = layer.apply(variables, x, paddings, True)
    want = (x / np.sqrt(1.001) * (1 + scale) + bias) * (1 - paddings)[..., None]
    np.testing.assert_allclose(running, want, atol=1e-5)


def test_batch_norm_of_nothing_but_padding_is_zero():
    layer = BatchNorm()
    x = jnp.ones((2, 3, 4))
    variables = layer.init(KEY, x, jnp.ones((2, 3)), False)
    got, state = layer.apply(
        variables, x, jnp.ones((2, 3)), False, mutable=["batch_stats"]
    )
    assert not got.any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("frames", [9, 10])
def test_subsampling_agrees_with_numpy(frames):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, frames, 8)).astype(np.float32)
    paddings = np.zeros((2, frames), np.float32)
    paddings[1, 5:] = 1
    layer = Subsample(3)
    params = layer.init(KEY, x, paddings)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    got, got_paddings = layer.apply({"params": params}, x, paddings)

    y, p = x[..., None].astype(np.float64), paddings
    for i in (1, 2):
        kernel, bias = params[f"conv_{i}"]["kernel"], params[f"conv_{i}"]["bias"]
        pads = [(0, 0)]
        for size in y.shape[1:3]:
            total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
            pads.append((total // 2, total - total // 2))
        z = np.pad(y, [*pads, (0, 0)])
        out = [
            [
                np.einsum("bhwc,hwco->bo", z[:, t : t + 3, f : f + 3], kernel) + bias
                for f in range(0, z.shape[2] - 2, 2)
            ]
            for t in range(0, z.shape[1] - 2, 2)
        ]
        p = p[:, ::2]
        y = np.maximum(np.moveaxis(np.array(out), 2, 0), 0) * (1 - p)[..., None, None]
    want = (
        y.reshape(2, y.shape[1], -1) @ params["out"]["kernel"] + params["out"]["bias"]
    )
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(got_paddings, p)


# Loss and decoding.


def ctc_by_brute_force(log_probs, tokens):
    """-log of the sum over all paths that collapse to the tokens."""
    total = -np.inf
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        kept = [token for token, _ in itertools.groupby(path) if token != 0]
        if kept == list(tokens):
            logs = log_probs[np.arange(len(path)), list(path)]
            total = np.logaddexp(total, logs.sum())
    return -total


@pytest.mark.parametrize("tokens", [[1], [1, 2], [2, 2], [1, 2, 1], []])
def test_ctc_loss_is_the_sum_over_all_alignments(tokens):
    rng = np.random.default_rng(5)
    frames, vocab_size = 5, 3
    logits = rng.standard_normal((1, frames + 2, vocab_size)).astype(np.float32)
    paddings = np.array([[0] * frames + [1, 1]], np.float32)
    targets = np.array([tokens + [0] * (4 - len(tokens))], np.int32)
    target_paddings = np.array([[0] * len(tokens) + [1] * (4 - len(tokens))], "f4")
    loss = FULL.loss_fn((targets, target_paddings), (logits, paddings))
    log_probs = np.asarray(jax.nn.log_softmax(logits[0, :frames]), np.float64)
    want = ctc_by_brute_force(log_probs, tokens)
    assert float(loss["summed"]) == pytest.approx(want, rel=1e-5)
    assert float(loss["n_valid_examples"]) == max(len(tokens), 1)


def test_the_loss_counts_tokens_and_leaves_masked_utterances_out():
    rng = np.random.default_rng(6)
    logits = (rng.standard_normal((3, 8, 5)).astype("f4"), np.zeros((3, 8), "f4"))
    targets = rng.integers(1, 5, (3, 4))
    paddings = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    whole = FULL.loss_fn((targets, paddings), logits)
    assert float(whole["n_valid_examples"]) == 8
    masked = FULL.loss_fn((targets, paddings), logits, np.array([1, 0, 1], "f4"))
    assert float(masked["n_valid_examples"]) == 7
    kept = whole["per_example"][np.array([0, 2])].sum()
    assert float(masked["summed"]) == pytest.approx(float(kept), rel=1e-6)
    # A row of padding may give anything.
    broken = (logits[0].copy(), logits[1])
    broken[0][1] = np.nan
    again = FULL.loss_fn((targets, paddings), broken, np.array([1, 0, 1], "f4"))
    assert float(again["summed"]) == pytest.approx(float(kept), rel=1e-6)


def test_greedy_decoding_collapses_repeats_but_not_across_blanks():
    best = np.array([[1, 1, 0, 1, 2, 2, 3, 3], [0, 0, 4, 4, 4, 0, 2, 2]])
    paddings = np.array([[0] * 8, [0] * 6 + [1, 1]], np.float32)
    got = greedy_decode(jnp.asarray(np.eye(5)[best]), jnp.asarray(paddings))
    assert [row[row != 0].tolist() for row in np.asarray(got)] == [[1, 1, 2, 3], [4]]


words = st.lists(st.sampled_from("abc"), max_size=6)


@functools.cache
def distance_by_recursion(one, other):
    if not one or not other:
        return len(one) + len(other)
    return min(
        distance_by_recursion(one[1:], other) + 1,
        distance_by_recursion(one, other[1:]) + 1,
        distance_by_recursion(one[1:], other[1:]) + (one[0] != other[0]),
    )


@given(words, words)
def test_edit_distance_agrees_with_its_recursion(one, other):
    want = distance_by_recursion(tuple(one), tuple(other))
    assert edit_distance(one, other) == want == edit_distance(other, one)


def test_word_error_rate_is_edits_per_word_of_the_references():
    references = ["HELLO BIG WORLD", "A B C D E", "YES"]
    texts = ["HELLO WORLD", "A X C D E F", "YES"]
    assert word_error_rate(references, texts) == pytest.approx(3 / 9)
    assert word_error_rate(references, references) == 0
    with pytest.raises(ValueError, match="no word"):
        word_error_rate([""], ["A"])


def test_the_official_rate_has_two_words_more_and_quotes():
    assert official_text("HELLO BIG WORLD").split() == [
        "tf.Tensor(b'HELLO",
        "BIG",
        "WORLD',",
        "shape=(),",
        "dtype=string)",
    ]
    # As was measured on the official code: one wrong of four words.
    pair = (["A B C D"], ["A B X D"])
    assert word_error_rate(*pair) == 1 / 4
    official = [[official_text(t) for t in texts] for texts in pair]
    assert word_error_rate(*official) == pytest.approx(1 / 6)
    # An apostrophe changes the quotes, so that first and last word count as wrong.
    pair = (["IT'S TRUE NOW"], ["ITS TRUE NOW"])
    official = [[official_text(t) for t in texts] for texts in pair]
    assert word_error_rate(*official) == pytest.approx(2 / 5)
