"""Step times that were measured side by side, and what is scored by them."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_runs import RULES, write_runs

import scoring
from algoperf import cli, records
from algoperf.errors import UserError
from scoring import step_times
from scoring.step_times import SCHEMA_VERSION, StepTime, StepTimes

IDEALIZED = scoring.Timing(kind=scoring.TimeKind.IDEALIZED)


def written(path, seconds):
    """Writes a file of step times: seconds of each round, by workload and name."""
    workloads = {
        workload: {
            "submissions": {name: {"seconds": rounds} for name, rounds in of.items()},
            "sha256": {name: f"hash of {name}" for name in of},
            "left_out": {},
            "host": {"cpu": "Abacus", "cores": 2},
        }
        for workload, of in seconds.items()
    }
    content = {"schema_version": SCHEMA_VERSION, "workloads": workloads}
    path.write_text(json.dumps(content))
    return path


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_what_slows_a_round_for_all_changes_no_ratio(submissions, rounds, seed):
    rng = np.random.default_rng(seed)
    own_S = rng.uniform(0.01, 1, submissions)
    slow_R = rng.uniform(1, 5, rounds)
    seconds_S, errors_S = step_times.in_turns(own_S[:, None] * slow_R)
    scale = np.exp(np.median(np.log(slow_R)))
    np.testing.assert_allclose(seconds_S, own_S * scale)
    is_known = min(submissions, rounds) >= 3
    np.testing.assert_allclose(errors_S, 0 if is_known else np.nan, atol=1e-12)


@pytest.mark.parametrize("submissions", [8, 15, 35])
def test_errors_are_those_of_fresh_measurements(submissions):
    """Also of the one that is always in the middle."""
    rng = np.random.default_rng(0)
    own_S = np.geomspace(1, 4, submissions)
    noise = np.exp(0.05 * rng.standard_normal((400, submissions, 25)))
    slow_R = rng.uniform(1, 5, 25)
    found = [step_times.in_turns(own_S[:, None] * slow_R * one) for one in noise]
    seconds_NS, errors_NS = (np.array(part) for part in zip(*found, strict=True))
    ratios_NS = np.log(seconds_NS / seconds_NS[:, :1])[:, 1:]
    errors_S = np.sqrt((errors_NS**2).mean(axis=0))
    wanted_S = np.hypot(errors_S[1:], errors_S[0])
    np.testing.assert_allclose(ratios_NS.std(axis=0), wanted_S, rtol=0.25)


def test_runs_are_scored_by_steps_that_took_turns(tmp_path):
    root = write_runs(tmp_path / "runs", {"adamw": 1, "muon": 0.5})
    rules = RULES
    seconds = {w: {"adamw": [0.1] * 3, "muon": [0.4] * 3} for w in rules.base_workloads}
    file = written(tmp_path / "times.json", seconds)
    runs = scoring.with_step_times(
        scoring.read_runs([root]), rules, scoring.load_step_times(file)
    )
    result = scoring.score_runs(runs, rules, timing=IDEALIZED)
    np.testing.assert_allclose(result.times[1] / result.times[0], 2.0)
    # The records' own step times are the same for both.
    own = scoring.score_runs(scoring.read_runs([root]), rules, timing=IDEALIZED)
    np.testing.assert_allclose(own.times[1] / own.times[0], 0.5)


def test_step_times_of_another_version_are_told(tmp_path):
    root = write_runs(tmp_path, {"adamw": 1, "muon": 0.5})
    for name, sha256 in (("adamw", "new"), ("muon", "old")):
        for file in root.glob(f"{name}/**/{records.RECORD_FILE}"):
            record = json.loads(file.read_text())
            file.write_text(json.dumps(record | {"submission": {"sha256": sha256}}))
    old = {name: StepTime(0.1, 0.01, "old") for name in ("adamw", "muon")}
    of_all = StepTimes(old, {}, "Abacus, 2 cores")
    runs = scoring.with_step_times(
        scoring.read_runs([root]), RULES, dict.fromkeys(RULES.base_workloads, of_all)
    )
    assert runs.warnings == ("step times are of another version of the file: adamw",)


def test_step_times_of_other_hardware_are_told(tmp_path):
    runs = scoring.read_runs([write_runs(tmp_path, {"adamw": 1})])
    here = StepTimes({"adamw": StepTime(0.1, 0.01, "")}, {}, "Abacus, 2 cores")
    times = dict.fromkeys(RULES.base_workloads, here)
    assert scoring.with_step_times(runs, RULES, times).warnings == ()
    times["wmt_mini"] = dataclasses.replace(here, hardware="Abacus, 8 cores")
    (told,) = scoring.with_step_times(runs, RULES, times).warnings
    assert told.endswith("on other hardware than trials ran on: wmt_mini")


def test_what_was_not_measured_is_refused(tmp_path):
    runs = scoring.read_runs([write_runs(tmp_path, {"adamw": 1, "muon": 0.5})])
    of_all = StepTimes({"adamw": StepTime(0.1, 0.01, "")}, {}, "")
    times = dict.fromkeys(RULES.base_workloads, of_all)
    with pytest.raises(UserError, match="no step time of muon on criteo1tb_mini; meas"):
        scoring.with_step_times(runs, RULES, times)
    of_all = dataclasses.replace(of_all, left_out={"muon": "it has no matrices"})
    times = dict.fromkeys(RULES.base_workloads, of_all)
    with pytest.raises(UserError, match="was left out: it has no matrices"):
        scoring.with_step_times(runs, RULES, times)
    official = dataclasses.replace(runs.trials[0], record=None)
    with pytest.raises(UserError, match="is an official log"):
        scoring.with_step_times(
            dataclasses.replace(runs, trials=(official,)), RULES, times
        )


@pytest.mark.parametrize(("budget", "count"), [(60.0, 9), (None, 0)])
def test_load_is_told_of_where_a_budget_made_it_count(tmp_path, budget, count):
    root = write_runs(tmp_path, {"adamw": 1})
    busy = {"seconds": 0.1, "windows": 9, "contended_windows": 8, "slowest_window": 1}
    for file in root.rglob(records.RECORD_FILE):
        facts = {"step_time": busy, "budget_sec": budget}
        file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    runs = scoring.read_runs([root])
    of_all = StepTimes({"adamw": StepTime(0.1, 0.01, "")}, {}, "")
    in_turns = scoring.with_step_times(
        runs, RULES, dict.fromkeys(RULES.base_workloads, of_all)
    )
    timing = dataclasses.replace(IDEALIZED, in_turns=True)
    found = scoring.score_runs(in_turns, RULES, timing=timing).warnings
    assert sum(text.count("(up to") for text in found) == count
    # What a trial says of its own steps is never free of it.
    found = scoring.score_runs(runs, RULES, timing=IDEALIZED).warnings
    assert sum(text.count("(up to") for text in found) == 9


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not what algoperf step_times writes"),
        ("[]", "is not what algoperf step_times writes"),
        ('{"schema_version": 99}', "has schema version 99, this code reads 1"),
        ('{"schema_version": 1, "workloads": {"a": {}}}', "not what algoperf step_tim"),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path, content, says):
    (tmp_path / "times.json").write_text(content)
    with pytest.raises(UserError, match=says):
        scoring.load_step_times(tmp_path / "times.json")


@pytest.mark.parametrize("rounds", [[0.1, 0.0], [0.1, "nan"], [0.1], []])
def test_rounds_that_cannot_be_are_refused(tmp_path, rounds):
    file = written(tmp_path / "times.json", {"a": {"x": [0.1, 0.1], "y": rounds}})
    with pytest.raises(UserError, match="is not what algoperf step_times writes"):
        scoring.load_step_times(file)


def test_the_score_command_takes_them(tmp_path, capsys):
    root = write_runs(tmp_path / "runs", {"adamw": 1, "muon": 0.5})
    seconds = {w: {"adamw": [0.1], "muon": [0.4]} for w in RULES.base_workloads}
    file = written(tmp_path / "times.json", seconds)
    score = ["score", str(root), "--nocache", "--json=-", f"--step_times={file}"]
    assert cli.main([*score, "--time=idealized"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = {row["submission"]: row["score"] for row in found["submissions"]}
    assert scores["adamw"] > scores["muon"]
    assert found["in_turns"] is True
    assert cli.main(score) == 1
    assert "--step_times is for --time idealized" in capsys.readouterr().err
    assert cli.main([*score, "--time=idealized", "--against=v0.5"]) == 1
    assert "--step_times is not for --against" in capsys.readouterr().err
    missing = [*score[:-1], f"--step_times={tmp_path / 'no'}", "--time=idealized"]
    assert cli.main(missing) == 1
    assert "no cannot be read: No such file" in capsys.readouterr().err
