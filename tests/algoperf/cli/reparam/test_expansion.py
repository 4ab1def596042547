"""The expansion study's costs: bytes and idealized runtime of narrow models."""

import types

import jax
import pytest

from algoperf import registry
from algoperf.cli.reparam import expansion, training

FRACTIONS = (0.0, 0.5)


class _Runtime:
    """Stands for a fitted model: so many seconds a request."""

    def __init__(self, seconds):
        self.seconds = seconds

    def predict(self, prompt, output):
        assert (prompt, output) == (expansion.PROMPT, expansion.OUTPUT)
        return self.seconds


@pytest.fixture(scope="module")
def workload():
    return registry.find_workload("finewebedu_lm", "mini")


def _added(workload, monkeypatch, reason):
    """Returns rows and note, and the served models that were to be measured."""
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    served = []

    def runtimes(shapes, models):
        served.extend(models)
        return [_Runtime(0.25 * (1 + i)) for i in range(len(shapes))], reason

    monkeypatch.setattr(training, "restored", lambda run: (params, state))
    monkeypatch.setattr(expansion, "_runtimes", runtimes)
    rows = [
        {"study": study, "x": 4 * (1 - fraction), "removed": fraction}
        for study in range(2)
        for fraction in FRACTIONS
    ]
    rows.append({"study": 2, "status": "diverged"})
    run = types.SimpleNamespace(workload=workload)
    return expansion._add_runtimes(run, rows, FRACTIONS), rows, served


def test_each_row_has_the_costs_of_its_narrow_model(workload, monkeypatch, capsys):
    note, rows, served = _added(workload, monkeypatch, None)
    assert note.startswith("Idealized runtime: a request of 32 tokens")
    assert "measuring the runtime of 2 narrow models" in capsys.readouterr().out
    *evaluated, diverged = rows
    assert "weight_bytes" not in diverged
    for i, model in enumerate(served):
        size = 4 * sum(leaf.size for leaf in jax.tree.leaves(model))
        for row in evaluated[i::2]:
            assert row["weight_bytes"] == size
            assert row["idealized_sec"] == 0.25 * (1 + i)
            # Of the weights only the embeddings of other tokens are not read; the
            # head reads them all, for it is tied. The cache comes on top.
            assert size < row["token_bytes"] < 1.5 * size
    wide, narrow = (row["weight_bytes"] for row in evaluated[:2])
    model = workload.model
    halved = model.num_layers * 3 * model.width * model.mlp_width // 2
    assert wide - narrow == 4 * halved
    text = expansion._costs(rows)
    assert f"| 4 | {wide / 1e6:.3f} |" in text
    assert text.rstrip().endswith("| 500.000 |")


def test_a_machine_too_noisy_for_a_runtime_still_counts_bytes(workload, monkeypatch):
    note, rows, _ = _added(workload, monkeypatch, "too noisy")
    assert note == "No idealized runtime: too noisy.\n"
    assert "idealized_sec" not in rows[0]
    assert expansion._costs(rows).rstrip().endswith("|  |")
