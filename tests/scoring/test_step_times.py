"""Step times that were measured side by side, and what is scored by them."""

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
from scoring.step_times import SCHEMA_VERSION, StepTime

IDEALIZED = scoring.Timing(kind=scoring.TimeKind.IDEALIZED)


def written(path, seconds):
    """Writes a file of step times: seconds of each round, by workload and name."""
    workloads = {
        workload: {
            "submissions": {name: {"seconds": rounds} for name, rounds in of.items()},
            "sha256": {name: f"hash of {name}" for name in of},
        }
        for workload, of in seconds.items()
    }
    content = {"schema_version": SCHEMA_VERSION, "workloads": workloads}
    path.write_text(json.dumps(content))
    return path


@given(st.integers(1, 8), st.integers(3, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_what_slows_a_round_for_all_changes_no_ratio(submissions, rounds, seed):
    rng = np.random.default_rng(seed)
    own_S = rng.uniform(0.01, 1, submissions)
    slow_R = rng.uniform(1, 5, rounds)
    seconds_S, errors_S = step_times.in_turns(own_S[:, None] * slow_R)
    np.testing.assert_allclose(seconds_S / seconds_S[0], own_S / own_S[0])
    np.testing.assert_allclose(errors_S, 0, atol=1e-12)
    np.testing.assert_allclose(seconds_S, own_S * np.median(slow_R), rtol=5)


def test_errors_are_those_of_fresh_measurements():
    rng = np.random.default_rng(0)
    noise = np.exp(0.05 * rng.standard_normal((400, 30, 25)))
    found = [step_times.in_turns(one) for one in noise]
    seconds_NS, errors_NS = (np.array(part) for part in zip(*found, strict=True))
    scatter = np.log(seconds_NS).std(axis=0).mean()
    assert errors_NS.mean() == pytest.approx(scatter, rel=0.15)


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
    runs = scoring.with_step_times(
        scoring.read_runs([root]), RULES, dict.fromkeys(RULES.base_workloads, old)
    )
    assert runs.warnings == ("step times are of another version of the file: adamw",)


def test_what_was_not_measured_is_refused(tmp_path):
    root = write_runs(tmp_path, {"adamw": 1, "muon": 0.5})
    of_all = {"adamw": StepTime(0.1, 0.01, "")}
    times = dict.fromkeys(RULES.base_workloads, of_all)
    with pytest.raises(UserError, match="no step time of muon on criteo1tb_mini; meas"):
        scoring.with_step_times(scoring.read_runs([root]), RULES, times)


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
    rows = json.loads(capsys.readouterr().out)["submissions"]
    scores = {row["submission"]: row["score"] for row in rows}
    assert scores["adamw"] > scores["muon"]
    assert cli.main(score) == 1
    assert "--step_times is for --time idealized" in capsys.readouterr().err
    assert cli.main([*score[:-1], f"--step_times={tmp_path / 'no'}"]) == 1
    missing = [*score[:-1], f"--step_times={tmp_path / 'no'}", "--time=idealized"]
    assert cli.main(missing) == 1
    assert "no cannot be read: No such file" in capsys.readouterr().err
