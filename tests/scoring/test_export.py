"""JSON and CSV: right numbers under their names, in values that any reader takes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from algoperf import records
from algoperf.errors import UserError
from scoring.assessment import assess
from scoring.export import to_json, write_csv_files
from scoring.read import Runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.time_to_target import TimeKind, Timing

RULES = load_rules("mini_fast")


def _assess(runs, timing=None, **options):
    timing = timing or Timing()
    return assess(runs, score_runs(runs, RULES, timing=timing), **options)


def _csv(folder, found, name):
    written = {path.name: path for path in write_csv_files(folder, found)}
    return list(csv.DictReader(written[f"{name}.csv"].read_text().splitlines()))


def test_scores_csv(tmp_path, mini_runs):
    runs = mini_runs({"slow, but steady": (20, None), "fast": (10, 0.1)})
    rows = _csv(tmp_path, _assess(runs, resamples=0), "scores")
    assert [row["submission"] for row in rows] == ["fast", "slow, but steady"]
    assert float(rows[0]["score"]) == 1
    assert float(rows[1]["imagenet_resnet_mini_seconds"]) == 20
    assert float(rows[1]["finewebedu_lm_mini_seconds"]) == np.inf
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert [row["imagenet_resnet_mini_counts"] for row in rows] == ["true", "true"]
    assert [row["finewebedu_lm_mini_counts"] for row in rows] == ["true", "false"]


def test_equal_scores_share_a_rank_and_slow_times_do_not_count(tmp_path, mini_runs):
    runs = mini_runs({"a": (10, 10), "b": (10, 10), "c": (50, 20)})
    rows = _csv(tmp_path, _assess(runs, resamples=0), "scores")
    assert [row["rank"] for row in rows] == ["1", "1", "3"]
    assert rows[2]["imagenet_resnet_mini_seconds"] == "50.0"
    assert rows[2]["imagenet_resnet_mini_counts"] == "false"  # more than 4 times 10


def test_scores_csv_has_interval_and_unit(tmp_path, study_runs):
    found = _assess(study_runs({"a": 1, "b": 3}), Timing(kind=TimeKind.STEPS))
    rows = _csv(tmp_path, found, "scores")
    start = ["submission", "rank", "score", "score_low", "score_high"]
    names = [f"{w}_{x}" for w in RULES.base_workloads for x in ("steps", "counts")]
    assert list(rows[0]) == [*start, *names]
    assert float(rows[0]["score_low"]) <= float(rows[0]["score"])


def test_profile_csv_has_every_step(tmp_path, mini_runs):
    found = _assess(mini_runs({"a": (10, 10), "b": (20, 30)}))
    rows = _csv(tmp_path, found, "performance_profile")
    assert list(rows[0]) == ["tau", "a", "b"]
    assert [tuple(map(float, row.values())) for row in rows] == [
        (1, 1, 0),
        (2, 1, 0.5),
        (3, 1, 1),
        (4, 1, 1),
    ]


def test_speedups_csv(tmp_path, mini_runs):
    found = _assess(mini_runs({"a": (10, 20), "b": (20, 50), "c": (30, None)}))
    assert found.comparison.reference == "c"
    rows = _csv(tmp_path, found, "speedups")
    speedups = {(row["submission"], row["workload"]): row["speedup"] for row in rows}
    resnet, lm = RULES.base_workloads
    assert float(speedups["a", resnet]) == pytest.approx(3)
    assert float(speedups["b", "geometric mean"]) == pytest.approx(1.5)
    assert speedups["b", lm] == "nan"  # the reference missed
    assert rows[0]["low"] == "nan"  # one study
    assert not any(row["submission"] == "c" for row in rows)


def test_one_alone_has_no_speedups(tmp_path, mini_runs):
    files = write_csv_files(tmp_path, _assess(mini_runs({"a": (10, 10)})))
    names = [path.name for path in files]
    assert names == ["scores.csv", "performance_profile.csv"]


def test_json_names_the_unit(mini_runs):
    timing = Timing(kind=TimeKind.STEPS, interpolate=True)
    value = to_json(_assess(mini_runs({"a": (10, 20)}), timing))
    facts = [value[key] for key in ("time", "unit", "interpolate")]
    assert facts == ["steps", "steps", True]
    (submission,) = value["submissions"]
    assert submission["workloads"]["imagenet_resnet_mini"]["steps"] == 0
    assert "held_out_steps" in submission


@pytest.mark.parametrize("budget", [None, 60.0])
def test_json_says_whether_a_budget_applied(make_trial, budget):
    record = {"status": "completed", "budget_sec": budget}
    runs = Runs(trials=(make_trial(record=record),), skipped=())
    assert to_json(_assess(runs))["no_budget"] == (budget is None)


def test_json_has_no_infinities(mini_runs):
    runs = mini_runs({"a": (10, None), "b": (50, None)})
    value = to_json(_assess(runs, resamples=0))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert "uncertainty" not in value
    assert "at_budget" not in value
    assert "predictions" not in value
    first, second = value["submissions"]
    assert first["submission"] == "a"
    assert first["workloads"]["imagenet_resnet_mini"] == {
        "seconds": 10.0,
        "ratio": 1.0,
        "counts": True,
    }
    assert second["workloads"]["imagenet_resnet_mini"] == {
        "seconds": 50.0,
        "ratio": 5.0,
        "counts": False,
    }
    assert second["workloads"]["finewebedu_lm_mini"]["seconds"] is None


def test_json_names_everything_and_holds_no_nan(study_runs):
    found = _assess(study_runs({"a": 1, "b": 3}))
    value = to_json(found)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    sure, comparison = value["uncertainty"], value["comparison"]
    uncertainty = found.uncertainty
    assert sure["resamples"] == 1000
    assert sure["is_different"]["a"] == {"a": False, "b": True}
    ends = [uncertainty.score_low_S[1], uncertainty.score_high_S[1]]
    assert sure["score_interval"]["b"] == ends
    assert sure["rank_interval"]["a"] == [1, 1]
    assert set(sure["without_workload"]) == set(RULES.base_workloads)
    assert sure["r_max"][0]["r_max"] == 1.5
    assert comparison["reference"] == "b"
    assert comparison["submissions"]["a"]["wins"] == 2
    assert comparison["submissions"]["a"]["mean_speedup"] == pytest.approx(3)


def test_json_of_what_is_unknown(mini_runs):
    value = to_json(_assess(mini_runs({"a": (10, None), "b": (20, None)})))
    json.dumps(value, allow_nan=False)
    assert value["uncertainty"]["score_interval"]["a"] == [None, None]
    assert value["uncertainty"]["notes"]


def test_json_at_a_budget(mini_runs):
    found = _assess(mini_runs({"a": (10, 30), "b": (20, None)}), budget=20)
    value = to_json(found)["at_budget"]
    assert value["submissions"]["a"]["best"][RULES.base_workloads[1]] is None
    assert value["submissions"]["b"]["share_of_targets"] == 0.5


def test_what_could_not_be_replaced_is_said_to_be_unharmed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "scores.json"
    path.write_text("before")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="on device; what was there before is unharmed"):
        records.write_text(path, "after")
    assert path.read_text() == "before"
    path.unlink()
    with pytest.raises(UserError, match=r"No space left on device$"):
        records.write_text(path, "after")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no name of a file"):
        records.write_text(Path(), "")
