"""The federated study's runs and report, without training."""

import functools
import json

import jax
import pytest
from absl import flags

from algoperf import tuning
from algoperf.cli import reparam
from algoperf.cli.reparam import federated, training
from workloads.finewebedu_lm.workload import MINI

NAMES = ("history", "law", "poetry", "prophets", "gospels", "letters")


@functools.cache
def _model():
    """Returns the params and state of a model that nobody trained."""
    return MINI.init_model_fn(jax.random.PRNGKey(0))


def _values(*arguments):
    values = flags.FlagValues()
    reparam.define_flags(values)
    values(["reparam", "--study=federated", "--workload=finewebedu_lm", *arguments])
    return values


def _planned(values):
    return {name: training.planned(w, values) for name, w in MINI.by_domain().items()}


def _losses(loss):
    return {f"loss_{name}": loss for name in NAMES}


def _found(*_):
    """Stands for what is measured of a study: all its rows."""
    usual = {"status": "evaluated", "trainable_parameters": 100}
    rows = [
        {"series": name, "best": 3.0, **usual, **_losses(3.0)}
        for name in federated.BASELINES
    ]
    rows += [
        {"series": series, "x": x, "best": 4.0 - x, **usual, **_losses(4.0 - x)}
        for series in federated.SERIES
        for x in (1, 2)
    ]
    return rows


@pytest.fixture
def statuses(monkeypatch):
    """Makes runs end at once, as this says by name and study; returns it."""
    found = {}

    def make(runs):
        for run in runs:
            folder = training.folder_of(run)
            folder.mkdir(parents=True, exist_ok=True)
            key = (run.submission.name, run.workload.variant.split("_")[2], run.study)
            status = found.setdefault(key, "completed")
            record = {"schema_version": 1, "status": status}
            (folder / "record.json").write_text(json.dumps(record))
        return True

    monkeypatch.setattr(training, "make", make)
    monkeypatch.setattr(training, "announce", lambda *_: None)
    monkeypatch.setattr(training, "restored", lambda run: _model())
    monkeypatch.setattr(federated, "_rows", _found)
    return found


def test_experts_go_on_without_decay_at_a_rate_of_their_own(monkeypatch):
    """Whatever points the search space has."""
    values = _values()
    points = [{"learning_rate": 0.5, "weight_decay": 0.25, "beta2": 0.9}]
    monkeypatch.setattr(tuning, "trial_point", lambda space, _, n: points[n - 1])
    public, *experts = federated._runs(values, _planned(values), 0, _model()[0])
    assert public.hyperparameters == points[0]
    for run in experts:
        assert run.submission.name == "expert"
        wanted = {"learning_rate": 0.003, "weight_decay": 0.0, "beta2": 0.9}
        assert run.hyperparameters == wanted


def test_a_study_with_a_party_that_diverged_is_left_out(statuses, tmp_path, capsys):
    values = _values("--studies=2", f"--out={tmp_path}")
    statuses["expert", "law", 1] = "diverged"
    assert federated.study(values, MINI, [1, 2]) == 1
    text = capsys.readouterr().out
    assert text == (tmp_path / "federated.md").read_text()
    assert "Study 1 is left out: expert on finewebedu_lm_law_steps_500_mini" in text
    assert "diverged" in (tmp_path / "federated.csv").read_text()
    assert "nan" not in text
    statuses["expert", "law", 1] = "completed"
    assert federated.study(values, MINI, [1, 2]) == 0
    assert "left out" not in capsys.readouterr().out


def test_no_expert_starts_from_a_public_model_that_failed(statuses, tmp_path, capsys):
    values = _values("--studies=1", f"--out={tmp_path}")
    statuses["adamw", "history", 0] = "failed"
    assert federated.study(values, MINI, [1]) == 1
    assert all(submission == "adamw" for submission, *_ in statuses)
    assert "steps_1000_mini failed." in capsys.readouterr().out
