"""Submissions written for the official benchmark run here as they are."""

import csv
from pathlib import Path

import pytest

from algoperf import records
from algoperf.loading import load_submission

SUBMISSIONS = Path(__file__).parent / "submissions"
OFFICIAL = SUBMISSIONS / "official"
TRAIN_STATE = SUBMISSIONS / "official_train_state"
COMMON = {
    "accumulated_submission_time",
    "accumulated_eval_time",
    "accumulated_logging_time",
    "global_step",
    "preemption_count",
    "score",
    "total_duration",
    "validation/num_examples",
    "test/num_examples",
}
METRIC = {
    "synthetic_mini": "accuracy",
    "synthetic_bn_mini": "accuracy",
    "imagenet_resnet": "accuracy",
    "finewebedu_lm": "ppl",
}


def _read(out, file):
    (path,) = out.rglob(file)
    with open(path, newline="") as lines:
        return list(csv.DictReader(lines))


def _check(out, workload):
    rows = _read(out, records.EVAL_FILE)
    metrics = {
        f"{split}/{name}"
        for split in ("train", "validation", "test")
        for name in ("loss", METRIC[workload])
    }
    assert metrics | COMMON <= set(rows[0])
    assert [float(row["global_step"]) for row in rows] == [0, 10, 20]
    assert all(row[name] != "" for row in rows for name in rows[0])
    times = [float(row["accumulated_submission_time"]) for row in rows]
    assert times[0] == 0 < times[1] < times[2]
    assert [float(row["score"]) for row in rows] == times
    logged = [row for row in _read(out, records.MEASUREMENTS_FILE) if row["grad_norm"]]
    assert [float(row["global_step"]) for row in logged] == [0, 10]
    assert all(float(row["loss"]) > 0 for row in logged)


@pytest.mark.parametrize(
    ("workload", "devices"), [("synthetic_mini", 1), ("synthetic_bn_mini", 4)]
)
def test_on_a_small_workload(tmp_path, drive, workload, devices):
    seen = drive(OFFICIAL, workload, tmp_path, devices=devices)
    _check(tmp_path, workload)
    assert seen["devices"]["device_count"] == devices
    assert seen["compiled"]["jit(train_step)"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["imagenet_resnet", "finewebedu_lm"])
@pytest.mark.parametrize("devices", [1, 4])
def test_on_the_real_workloads(tmp_path, drive, workload, devices):
    drive(OFFICIAL, workload, tmp_path, devices=devices)
    _check(tmp_path, workload)


def test_train_state_jit_in_each_call_no_prepare_and_done_when_it_says(tmp_path, drive):
    seen = drive(TRAIN_STATE, "synthetic_mini", tmp_path)
    assert seen["message"] == "target not reached: the submission is done"
    assert seen["compiled"]["jit(train_step)"] <= 2
    steps = [float(row["global_step"]) for row in _read(tmp_path, records.EVAL_FILE)]
    assert steps == [0, 10, 15]
    rows = _read(tmp_path, records.MEASUREMENTS_FILE)
    elapsed = [float(row["elapsed"]) for row in rows if row["elapsed"]]
    assert len(elapsed) == 15
    assert elapsed == sorted(elapsed)
    assert elapsed[0] < elapsed[-1]


def test_only_the_one_that_names_train_state_gets_it():
    assert not load_submission(OFFICIAL).wants_train_state
    assert load_submission(TRAIN_STATE).wants_train_state
