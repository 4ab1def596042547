"""Accuracy on questions with two answers: what a model knows, what it can do.

A model's answer is the one to which it gives the higher probability.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from algoperf import spec
from algoperf.data.apart import Kind, Probe

Scores = Callable[[Any, Any, spec.Batch], jax.Array]


def make_scores(workload: Any) -> Scores:
    """Returns (params, model state, batch) -> log-probabilities (N,), compiled.

    Of each example, the sum over its targets that have weight.
    """

    @jax.jit
    def scores(params: Any, model_state: Any, batch: spec.Batch) -> jax.Array:
        mode = spec.ForwardPassMode.EVAL
        logits, _ = workload.model_fn(params, batch, model_state, mode, None, False)
        loss = workload.loss_fn(batch["targets"], logits, batch["weights"])
        return -loss["per_example"]

    return scores


def accuracy(
    scores: Scores, probe: Probe, params: Any, model_state: Any, batch_size: int
) -> float:
    """Returns the share of questions whose right answer is the likelier; a tie is 1/2.

    Args:
      scores: from `make_scores`.
      probe: the questions.
      params: of the model.
      model_state: of the model.
      batch_size: questions at a time.
    """
    right, wrong = (
        _in_batches(scores, answers, params, model_state, batch_size)
        for answers in (probe.right, probe.wrong)
    )
    return float(np.mean((right > wrong) + 0.5 * (right == wrong)))


def _in_batches(
    scores: Scores,
    examples: Mapping[str, np.ndarray],
    params: Any,
    model_state: Any,
    size: int,
) -> np.ndarray:
    """Scores all examples; the last batch is filled up with its first example."""
    total = len(next(iter(examples.values())))
    found = []
    for start in range(0, total, size):
        wanted = np.arange(start, start + size)
        wanted = np.where(wanted < total, wanted, start)
        batch = {name: array[wanted] for name, array in examples.items()}
        found.append(np.asarray(scores(params, model_state, batch)))
    return np.concatenate(found)[:total]


def by_kind(
    probes: Mapping[str, Probe], accuracies: Mapping[str, float]
) -> dict[str, float]:
    """Returns the mean accuracy of the probes of each kind, all alike."""
    return {
        kind: float(np.mean([accuracies[name] for name in names]))
        for kind, names in _names(probes).items()
    }


def sizes(probes: Mapping[str, Probe]) -> dict[str, int]:
    """Returns how many questions each probe has, and each kind of them."""
    found = {name: len(probe) for name, probe in probes.items()}
    for kind, names in _names(probes).items():
        found[kind] = sum(len(probes[name]) for name in names)
    return found


def _names(probes: Mapping[str, Probe]) -> dict[str, list[str]]:
    """Returns the names of the probes of each kind."""
    kinds: Sequence[Kind] = ("knowledge", "rule")
    return {
        kind: [name for name, probe in probes.items() if probe.kind == kind]
        for kind in kinds
    }
