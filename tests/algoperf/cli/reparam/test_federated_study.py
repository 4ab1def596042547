"""The federated study's runs and report, without training."""

import functools
import json

import jax
import pytest
from absl import flags

from algoperf import tuning
from algoperf.cli import reparam
from algoperf.cli.reparam import federated, federated_report, training
from algoperf.reparam import studies
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


def _runs(values):
    domains = MINI.by_domain()
    planned = {name: training.planned(w, values) for name, w in domains.items()}
    whole = training.planned(MINI, values)
    joint = federated._joint(whole, list(planned.values()))
    return federated._runs(values, planned, joint, 0, _model()[0])


BASELINES = (
    federated_report.PUBLIC,
    federated_report.SINGLE,
    federated_report.AVERAGE,
    federated_report.JOINT,
    federated_report.OWN,
    federated_report.FULL,
    federated_report.FULL_TOP,
)


def _row(series, loss, **more):
    usual = {"status": "evaluated", "trainable_parameters": 100, "best": loss}
    own = {f"loss_{name}": loss for name in NAMES}
    return {"series": series, **usual, **own, **more}


def _found(*_):
    """Stands for what is measured of a study: all its rows."""
    rows = [_row(name, 3.0) for name in BASELINES]
    return rows + [
        _row(series, 4.0 - x, x=x) for series in federated_report.SERIES for x in (1, 2)
    ]


@pytest.fixture
def statuses(monkeypatch):
    """Makes runs end at once, as this says by name and study; returns it."""
    found = {}

    def make(runs):
        for run in runs:
            folder = run.folder
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
    public, *experts, joint = _runs(values)
    assert public.hyperparameters == joint.hyperparameters == points[0]
    for run in experts:
        assert run.submission.name == "expert"
        wanted = {"learning_rate": 0.003, "weight_decay": 0.0, "beta2": 0.9}
        assert run.hyperparameters == wanted


def test_one_model_of_all_domains_has_the_steps_of_all_parties():
    *parties, joint = _runs(_values())
    assert [run.max_steps for run in parties] == [1000, *[500] * 5]
    assert joint.max_steps == joint.workload.step_hint == 3500
    assert joint.workload.name == "finewebedu_lm_steps_3500_mini"
    assert joint.workload.num_train_examples == MINI.num_train_examples
    assert joint.submission.name == "adamw"


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


def test_models_that_are_no_mixtures_have_their_sizes():
    """Each domain's own expert takes the public model and all experts' MLPs."""
    domains = dict(list(MINI.by_domain().items())[:3])
    params, _ = _model()
    parties = federated.Parties(domains, [params] * 3, params)
    data = {name: [next(w.batches("validation"))] for name, w in domains.items()}
    found = {
        row["series"]: row["trainable_parameters"]
        for row in federated._model_rows(parties, data)
    }
    one = MINI.num_parameters
    assert found.pop(federated_report.OWN) == one + 2 * 110_592
    assert len(found) == 4
    assert set(found.values()) == {one}


def _table(*curves):
    """Returns the lines of break-even ranks, of 'same rank' at losses by rank."""
    rows = []
    for number, losses in enumerate(curves):
        rows += [_row(name, 2.5, study=number) for name in BASELINES]
        rows += [
            _row(federated_report.SAME, loss, x=rank, study=number)
            for rank, loss in losses.items()
        ]
    _, _, *lines = federated_report.break_even_table(rows).splitlines()
    assert len(lines) == 4
    return {tuple(line.split(" | ")[2:]) for line in lines}


def test_break_even_ranks_are_told_with_their_bounds():
    assert _table({1: 2.0, 2: 1.0}) == {("at most 1", "at most 1", " |")}
    assert _table({1: 4.0, 2: 3.0}) == {("never", "never", " |")}
    # One study that never gets there does not hide what the others do.
    never, late, early = {1: 4.0, 4: 3.0}, {1: 4.0, 4: 2.0}, {1: 2.75, 4: 2.25}
    assert _table(never, late, early) == {("never, 2.83, 2", "2.83", " |")}
    assert _table(never, late) == {("never, 2.83", "never", " |")}
    # t of one degree of freedom is 12.706; the logarithms of 2, 2.83 are 1, 1.5 times
    # that of 2.
    low, high = (2 ** (1.25 + sign * 12.7062 * 0.25) for sign in (-1, 1))
    bounds = f"{low:.3g} to {high:.3g} |"
    assert _table(early, late) == {("2, 2.83", "2.83", bounds)}


def test_a_mixture_is_compared_with_full_experts_that_are_mixed_alike():
    rows = [{**row, "study": 0} for row in _found()]
    text = federated_report.break_even_table(rows)
    assert "| top 2 of same rank | top 2 of full experts | " in text
    assert "| same rank | full experts | " in text
    assert "| top 2 of same rank | full experts | " not in text


def test_the_report_says_on_how_much_losses_are(tmp_path):
    domains = dict(list(MINI.by_domain().items())[:2])
    rows = [{**row, "study": 0} for row in _found()]
    federated_report.write(_values(f"--out={tmp_path}"), rows, domains)
    text = (tmp_path / "federated.md").read_text()
    assert "history 188, law 124." in text


def test_baselines_are_points_at_their_own_sizes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(studies, "plot", lambda lines, *_: drawn.extend(lines))
    rows = [{**row, "study": 0} for row in _found()]
    rows[0]["trainable_parameters"] = 70
    federated_report.write(_values(f"--out={tmp_path}"), rows, {})
    first, *others = drawn
    assert (first["series"], first["x"]) == (federated_report.PUBLIC, 70)
    assert {line["x"] for line in others} == {100}
