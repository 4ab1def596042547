"""What the expansion study tells: costs of narrow models, and what they lose."""

import json
import types

import jax
import numpy as np
import pytest
from absl import flags
from scipy import stats

from algoperf import registry
from algoperf.cli import reparam
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
        found = [_Runtime(0.25 * (1 + i)) for i in range(len(shapes))]
        return [types.SimpleNamespace(runtime=r, uncertainty=0.012) for r in found], (
            reason
        )

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
    assert text.rstrip().endswith("| 500.000 | 1.2 |")


def test_a_machine_too_noisy_for_a_runtime_still_counts_bytes(workload, monkeypatch):
    note, rows, _ = _added(workload, monkeypatch, "too noisy")
    assert note == "No idealized runtime: too noisy.\n"
    assert "idealized_sec" not in rows[0]
    assert expansion._costs(rows).rstrip().endswith("|  | 1.2 |")


def test_runtimes_are_of_the_first_model_that_is_there(
    workload, monkeypatch, tmp_path, capsys
):
    """A study that failed has no params to measure."""
    values = flags.FlagValues()
    reparam.define_flags(values)
    arguments = ["--study=expansion", "--workload=finewebedu_lm", "--studies=2"]
    values(["reparam", *arguments, f"--out={tmp_path}", "--noplot"])
    statuses, measured = ["failed", "completed"], []

    def make(runs):
        for run, status in zip(runs, statuses, strict=True):
            folder = run.folder
            folder.mkdir(parents=True)
            record = {"schema_version": 1, "status": status}
            (folder / "record.json").write_text(json.dumps(record))
        return True

    def add_runtimes(run, rows, axis):
        measured.append(run.study)
        return ""

    row = {"series": "s", "status": "evaluated", "x": 2.0, "best": 9.0}
    monkeypatch.setattr(training, "make", make)
    monkeypatch.setattr(training, "announce", lambda *_: None)
    monkeypatch.setattr(expansion, "_pruned", lambda *_: [row])
    monkeypatch.setattr(expansion, "_add_runtimes", add_runtimes)
    assert expansion.study(values, workload, [0.0]) == 1
    assert measured == [1]


KNOWLEDGE = np.array([[0.9, 0.7, 0.6], [0.8, 0.7, 0.5], [0.85, 0.6, 0.55]])
RULE = np.array([[0.9, 0.85, 0.6], [0.95, 0.9, 0.7], [0.9, 0.9, 0.65]])
RATIOS = (2.0, 1.0, 0.5)


def _asked(knowledge, rule):
    return [
        {"study": i, "x": x, "knowledge": knowledge[i, j], "rule": rule[i, j]}
        for i in range(len(knowledge))
        for j, x in enumerate(RATIOS)
    ]


def test_knowledge_and_rules_are_compared_on_the_same_models():
    """Against SciPy's paired t test, as accuracy and as a share above chance."""
    _, _, _, *lines = expansion._losses(_asked(KNOWLEDGE, RULE)).splitlines()
    lost = [scores[:, :1] - scores[:, 1:] for scores in (KNOWLEDGE, RULE)]
    chance = expansion.CHANCE
    shares = [
        own / (scores[:, :1] - chance)
        for own, scores in zip(lost, (KNOWLEDGE, RULE), strict=True)
    ]
    wanted = []
    for name, (one, other) in (
        ("accuracy", lost),
        ("share of what was above 1/2", shares),
    ):
        for place, ratio in enumerate(RATIOS[1:]):
            a, b = one[:, place], other[:, place]
            low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
            means = [f"{v.mean():.3f}" for v in (a, b, a - b)]
            cells = [name, f"{ratio:.4g}", *means, f"{low:.3f} to {high:.3f}", "3"]
            wanted.append(f"| {' | '.join(cells)} |")
    assert lines == wanted


def test_what_was_at_chance_has_no_share_to_lose():
    rule = RULE.copy()
    rule[0] = 0.5
    text = expansion._losses(_asked(KNOWLEDGE, rule))
    assert text.splitlines()[-1].endswith("| 2 |")
    assert "nan" not in text
    assert "inf" not in text
    assert expansion._losses([{"study": 0, "status": "diverged"}]) == ""
    assert "|  | 1 |" in expansion._losses(_asked(KNOWLEDGE[:1], RULE[:1]))


def test_accuracies_are_told_with_how_many_questions_there_are():
    rows = [
        {"study": i, "x": 2.0, "knowledge": 0.75, "accuracy_phrases": 0.75}
        for i in range(2)
    ]
    text = expansion._abilities(rows, {"knowledge": 322, "phrases": 66})
    assert "| phrases | 66 | 2 | 0.750 | " in text
    assert "| knowledge | 322 | 2 | 0.750 | " in text
    assert "over trained models, not over questions" in text
