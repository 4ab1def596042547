"""The runs of `algoperf reparam`: which, and how long they take."""

import json
import signal

import pytest
from absl import flags

from algoperf import registry, runner
from algoperf.cli import reparam
from algoperf.cli.reparam import comparison, training
from algoperf.cli.reparam.training import Pace
from algoperf.errors import UserError

# On two quiet cores: seconds of a step, and of compiling, evaluating and writing.
LANGUAGE, IMAGES = Pace(0.037, 9.0), Pace(0.043, 14.0)


def _values(*arguments):
    values = flags.FlagValues()
    reparam.define_flags(values)
    values(["reparam", *arguments])
    return values


def _runs(study, workload, *more):
    values = _values(f"--study={study}", f"--workload={workload}", *more)
    base = registry.find_workload(workload, "mini")
    return comparison.runs_of(values, base, reparam.AXES[study][1], {})


@pytest.mark.parametrize(
    ("study", "workload", "pace", "number", "tried"),
    [
        ("rank", "finewebedu_lm", LANGUAGE, 31, 7 * 5),
        ("compression", "imagenet_resnet", IMAGES, 44, 0),
    ],
)
def test_a_study_takes_less_than_90_minutes_unless_told_otherwise(
    study, workload, pace, number, tried
):
    values = _values(f"--study={study}", f"--workload={workload}")
    base, axis = registry.find_workload(workload, "mini"), reparam.AXES[study][1]
    runs = [run for *_, run in comparison.runs_of(values, base, axis, {})]
    before = [trial.run for trial in comparison.screening(values, base, axis)]
    assert (len(runs), len(before)) == (3 * number, tried)
    methods = {training.method_of(run) for run in runs}
    seconds = training.estimate(runs + before, dict.fromkeys(methods, pace))
    seconds += len(methods) * pace.other_sec  # rehearsals
    assert seconds < 90 * 60


def test_methods_that_make_other_programs_are_rehearsed_apart():
    series = "--series=stable_rps,hashed,stable_rps_sgd,snip"
    found = {
        training.method_of(run)
        for *_, run in _runs("compression", "imagenet_resnet", "--studies=1", series)
    }
    assert found == {
        "stable_rps fold adam v1",
        "stable_rps elements adam v1",
        "stable_rps fold sgd v1",
        "pruned snip",
    }


def test_runs_plan_for_their_steps_and_go_on_to_their_end():
    values = _values(
        "--study=rank", "--workload=finewebedu_lm", "--steps=600", "--max_steps=50"
    )
    base = registry.find_workload("finewebedu_lm", "mini")
    planned = training.planned(base, values)
    assert planned.name == "finewebedu_lm_steps_600_mini"
    assert planned.step_hint == 600
    assert not planned.has_reached_validation_target({"validation/ppl": 1.0})
    run = training.config(values, planned, training.load("adamw"), {}, 2)
    assert (run.max_steps, run.study) == (50, 2)
    shorter = training.with_steps(planned, 300)
    assert shorter.name == "finewebedu_lm_steps_300_mini"
    assert training.with_steps(base, base.step_hint) is base


def test_estimates_add_up_and_are_spoken():
    (_, _, one), *_ = _runs("rank", "finewebedu_lm", "--studies=1", "--steps=100")
    pace = Pace(step_sec=0.5, other_sec=10.0)
    assert training.estimate([one, one], {"adamw": pace}) == 2 * 60
    assert training.spoken(40) == "40 s"
    assert training.spoken(720) == "12 minutes"
    assert training.spoken(12_600) == "3.5 hours"


def test_a_study_that_was_asked_to_stop_says_so(tmp_path, monkeypatch, capsys):
    (_, _, one), *_ = _runs("rank", "finewebedu_lm", f"--out={tmp_path}")

    def run_study(*_, should_stop, **__):
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        return []

    monkeypatch.setattr(runner, "run_study", run_study)
    assert not training.make([one])
    assert capsys.readouterr().out.startswith("stopped; the same command goes on")


def test_a_finished_run_is_left_out_of_the_estimate(tmp_path, capsys):
    (_, _, one), *_ = _runs(
        "rank", "finewebedu_lm", "--studies=1", "--max_steps=2", f"--out={tmp_path}"
    )
    training.announce([one])
    assert "0 of 1 training runs are done" in capsys.readouterr().out
    assert not training.is_done(one)
    folder = one.folder
    folder.mkdir(parents=True)
    record = {"schema_version": 1, "status": "completed"}
    (folder / "record.json").write_text(json.dumps(record))
    assert training.is_done(one)


@pytest.mark.parametrize(
    ("study", "given", "says"),
    [
        ("rank", "0", "more than 0, at most 1"),
        ("rank", "two", "--values must be numbers"),
        ("compression", "nan", "a compression is 1 at least"),
        ("expansion", "1", "at least 0 and less than 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(study, given, says, tmp_path):
    values = _values(
        f"--study={study}",
        "--workload=finewebedu_lm",
        f"--values={given}",
        f"--out={tmp_path}",
    )
    with pytest.raises(UserError, match=says):
        reparam.main(values, [])


@pytest.mark.parametrize(
    ("study", "given", "says"),
    [
        ("rank", "a", "--rates must be numbers"),
        ("rank", "0,1", "--rates are factors of learning rates: more than 0"),
        ("expansion", "1", "the expansion study tries no rates; leave --rates out"),
    ],
)
def test_rates_that_make_no_sense_are_refused(study, given, says, tmp_path):
    values = _values(
        f"--study={study}",
        "--workload=finewebedu_lm",
        f"--rates={given}",
        f"--out={tmp_path}",
    )
    with pytest.raises(UserError, match=says):
        reparam.main(values, [])


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    values = _values(
        "--study=rank", "--workload=finewebedu_lm", f"--out={tmp_path / 'file' / 'x'}"
    )
    with pytest.raises(UserError, match=r"cannot make .*; choose another --out"):
        reparam.main(values, [])
