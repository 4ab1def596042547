"""Translation: beam search, and BLEU."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wmt_small import (
    SMALL,
    log_softmax,
    random_params,
    sentences,
    small,
)

from algoperf.workload import derive
from workloads.wmt import data
from workloads.wmt.beam_search import beam_search, length_penalty
from workloads.wmt.bleu import bleu
from workloads.wmt.workload import FULL


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
