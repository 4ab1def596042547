"""What the tests of both speech families do: small workloads, batches, checks."""

import jax
import numpy as np
import pytest
from checks import evaluate

from algoperf.workload import derive
from workloads.common.speech.features import LogMel

SMALL_FEATURES = LogMel(mean=(-7.0,) * 12, stddev=(3.5,) * 12)
VOCAB_SIZE = 9
SAMPLES = 8000
KEY = jax.random.PRNGKey(0)


class Letters:
    """A vocabulary of letters; every fourth token is a space."""

    def decode(self, rows):
        return ["".join(" " if i % 4 == 0 else chr(64 + i) for i in r) for r in rows]


def small(workload, **model):
    """The workload with a small model of the same structure."""
    model = {"vocab_size": VOCAB_SIZE, "features": SMALL_FEATURES, **model}
    return derive(
        workload,
        model=model,
        vocabulary=lambda folder: Letters(),
        input_shape=(SAMPLES,),
    )


def utterances(rng, rows, valid=None):
    """A batch of noise of different lengths; rows from `valid` on are padding."""
    lengths = rng.integers(4000, SAMPLES + 1, rows)
    tokens = rng.integers(2, 6, rows)
    audio = rng.integers(-3000, 3000, (rows, SAMPLES)).astype(np.int16)
    paddings = (np.arange(SAMPLES) >= lengths[:, None]).astype(np.uint8)
    targets = rng.integers(1, VOCAB_SIZE, (rows, 6)).astype(np.int32)
    target_paddings = (np.arange(6) >= tokens[:, None]).astype(np.float32)
    batch = {"inputs": (audio, paddings), "targets": (targets, target_paddings)}
    if valid is not None:
        batch["weights"] = (np.arange(rows) < valid).astype(np.float32)
    return batch


def random_params(workload):
    """Parameters and batch statistics away from their initial values."""
    params, state = workload.init_model_fn(KEY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype("f4"), params
    )
    state = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.random(leaf.shape).astype("f4"), state
    )
    return params, state


def check_padding(workload):
    """Padding rows and padding samples change no metric; rows may be permuted."""
    params, state = random_params(workload)
    batch = utterances(np.random.default_rng(1), 8, valid=5)
    exact = jax.tree.map(lambda a: a[:5], batch)
    want = evaluate(workload, params, state, [exact])
    got = evaluate(workload, params, state, [batch])
    assert got == pytest.approx(want, rel=1e-5)
    audio, paddings = batch["inputs"]
    noisy = {**batch, "inputs": (np.where(paddings, 999, audio), paddings)}
    got = evaluate(workload, params, state, [noisy])
    assert got == pytest.approx(want, rel=1e-5)
    order = np.array([3, 1, 4, 0, 2])
    permuted = jax.tree.map(lambda a: a[order], exact)
    got = evaluate(workload, params, state, [permuted])
    assert got == pytest.approx(want, rel=1e-5)
    singles = [jax.tree.map(lambda a, i=i: a[i : i + 1], exact) for i in range(5)]
    got = evaluate(workload, params, state, singles)
    assert got == pytest.approx(want, rel=1e-5)


def check_logits_of_the_batch(workload):
    """Logits are those that each utterance has alone, in evaluation."""
    params, state = random_params(workload)
    batch = utterances(np.random.default_rng(2), 3)
    variables = {"params": params, **state}
    logits, paddings = workload.model.apply(variables, *batch["inputs"], train=False)
    for row in range(3):
        inputs = [a[row : row + 1] for a in batch["inputs"]]
        alone, _ = workload.model.apply(variables, *inputs, train=False)
        real = paddings[row] == 0
        np.testing.assert_allclose(logits[row][real], alone[0][real], atol=2e-5)


def full_batch(rows=2):
    """A batch of the published shapes."""
    rng = np.random.default_rng(3)
    time = np.arange(320_000) / 16_000
    audio = np.stack(
        [4000 * np.sin(2 * np.pi * 200 * (i + 1) * time) for i in range(rows)]
    )
    audio = audio + rng.normal(0, 300, audio.shape)
    paddings = np.zeros(audio.shape, np.uint8)
    paddings[0, 200_000:] = 1
    targets = rng.integers(3, 1024, (rows, 256)).astype(np.int32)
    target_paddings = (np.arange(256) >= 30).astype(np.float32)
    return {
        "inputs": (audio.astype(np.int16), paddings),
        "targets": (targets, np.tile(target_paddings, (rows, 1))),
    }
