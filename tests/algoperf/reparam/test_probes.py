"""Scoring of questions with two answers, against probabilities that are given."""

import functools
import types

import jax.numpy as jnp
import numpy as np
import pytest

from algoperf.data.apart import Probe
from algoperf.losses import softmax_cross_entropy
from algoperf.reparam import probes

LENGTH, VOCABULARY = 5, 7
PARAMS = jnp.asarray(
    np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)), jnp.float32
)


def _model_fn(params, batch, model_state, mode, rng, update_batch_norm):
    """A bigram model: row i has the logits of what follows token i."""
    del mode, rng, update_batch_norm
    return params[batch["inputs"]], model_state


LOSS = functools.partial(softmax_cross_entropy, label_smoothing=0.0)
WORKLOAD = types.SimpleNamespace(model_fn=_model_fn, loss_fn=LOSS)
SCORES = probes.make_scores(WORKLOAD)


def _answers(seed, rows=7):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(VOCABULARY, size=(rows, LENGTH + 1))
    weights = generator.integers(2, size=(rows, LENGTH)).astype(np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def _numpy_scores(batch):
    logits = np.asarray(PARAMS, np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = logs[batch["inputs"], batch["targets"]] * batch["weights"]
    return found.sum(axis=1)


@pytest.mark.parametrize("size", [3, 7])
def test_accuracy_is_the_share_of_likelier_right_answers(size):
    """Also where the last batch is not full."""
    probe = Probe("rule", _answers(1), _answers(2))
    right, wrong = _numpy_scores(probe.right), _numpy_scores(probe.wrong)
    found = probes.accuracy(SCORES, probe, PARAMS, {}, size)
    assert found == pytest.approx(np.mean(right > wrong))
    assert 0 < found < 1
    turned = Probe("rule", probe.wrong, probe.right)
    other = probes.accuracy(SCORES, turned, PARAMS, {}, size)
    assert other == pytest.approx(1 - found)


def test_a_tie_is_half_an_answer():
    same = _answers(1)
    assert probes.accuracy(SCORES, Probe("rule", same, same), PARAMS, {}, 7) == 0.5


def test_kinds_are_means_of_their_probes():
    answers = _answers(1)
    found = {
        name: Probe(kind, answers, answers)
        for name, kind in (("a", "knowledge"), ("b", "knowledge"), ("c", "rule"))
    }
    accuracies = {"a": 0.5, "b": 0.7, "c": 0.9}
    kinds = probes.by_kind(found, accuracies)
    assert kinds == {"knowledge": pytest.approx(0.6), "rule": pytest.approx(0.9)}


def test_sizes_are_numbers_of_questions():
    found = {
        "a": Probe("knowledge", _answers(1, 4), _answers(2, 4)),
        "b": Probe("knowledge", _answers(1, 6), _answers(2, 6)),
        "c": Probe("rule", _answers(1, 2), _answers(2, 2)),
    }
    wanted = {"a": 4, "b": 6, "c": 2, "knowledge": 10, "rule": 2}
    assert probes.sizes(found) == wanted
    assert probes.sizes({}) == {"knowledge": 0, "rule": 0}
