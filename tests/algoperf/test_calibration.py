"""Targets from runs: the paper's rule, on runs whose answer is plain."""

import json
import lzma
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf import calibration, records, registry
from algoperf.calibration import Run
from algoperf.errors import UserError
from algoperf.records import Direction, Status

MINIMIZE, MAXIMIZE = Direction.MINIMIZE, Direction.MAXIMIZE


def a_run(validation, test=None, trial=1):
    test = validation if test is None else test
    rows = [
        {"step": i, "time": float(i), "validation": v, "test": t}
        for i, (v, t) in enumerate(zip(validation, test, strict=True))
    ]
    return Run("adamw", trial, {}, "completed", rows, 0.1, 1.0)


def test_the_best_evaluation_goes_by_direction_and_passes_over_nan():
    run = a_run([3.0, 1.0, math.nan, 2.0])
    assert run.best(MINIMIZE)["step"] == 1
    assert run.best(MAXIMIZE)["step"] == 0
    assert a_run([math.nan, math.inf]).best(MINIMIZE) is None


def test_the_best_run_may_have_its_best_in_the_middle():
    runs = [a_run([5.0, 2.0, 4.0], trial=1), a_run([5.0, 3.0, 2.5], trial=2)]
    assert calibration.best_run(runs, MINIMIZE).trial == 1
    runs = [a_run([0.1, 0.9, 0.2], trial=1), a_run([0.3, 0.5, 0.8], trial=2)]
    assert calibration.best_run(runs, MAXIMIZE).trial == 1


def test_targets_by_hand():
    # Of four, the third smallest loss is the middle one that three reach.
    repeats = [
        a_run([9.0, 1.0], [9.0, 1.5]),
        a_run([9.0, 2.0], [9.0, 2.8]),
        a_run([9.0, 3.0], [9.0, 2.5]),
        a_run([9.0, 4.0], [9.0, 9.0]),
    ]
    found = calibration.targets(repeats, MINIMIZE)
    assert (found.validation, found.test, found.spread) == (3.0, 2.8, (1.0, 4.0))


def test_there_is_no_test_target_without_a_test_split():
    nothing = [math.nan, math.nan]
    found = calibration.targets([a_run([2.0, 1.0], nothing)], MINIMIZE)
    assert (found.validation, found.test) == (1.0, None)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_at_least_half_of_the_repeats_reach_both_targets(best):
    for direction in Direction:
        runs = [a_run([value], [value + 1]) for value in best]
        found = calibration.targets(runs, direction)
        reached = [
            value
            for value in best
            if records.reaches(value, found.validation, direction)
            and records.reaches(value + 1, found.test, direction)
        ]
        assert 2 * len(reached) >= len(best)
        assert found.validation in best


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_a_metric_turned_round_gives_the_targets_turned_round(best):
    low = calibration.targets([a_run([v], [2 * v]) for v in best], MINIMIZE)
    high = calibration.targets([a_run([-v], [-2 * v]) for v in best], MAXIMIZE)
    assert (low.validation, low.test) == (-high.validation, -high.test)


def test_when_all_diverge_it_is_said():
    runs = [a_run([math.nan])]
    with pytest.raises(UserError, match="every run of the search diverged"):
        calibration.best_run(runs, MINIMIZE)
    with pytest.raises(UserError, match="every repeat diverged"):
        calibration.targets(runs, MINIMIZE)


@pytest.mark.parametrize("name", ["imagenet_resnet", "finewebedu_lm"])
def test_nothing_but_the_steps_ends_a_target_setting_run(name):
    workload = registry.find_workload(name, "mini")
    changed = calibration.for_target_setting(workload)
    assert changed.step_hint == round(0.75 * workload.step_hint)
    assert changed.max_allowed_runtime_sec == math.inf
    metric = workload.target_metric_name
    for value in (-1e300, 0.0, 1e300):
        results = {f"validation/{metric}": value, f"test/{metric}": value}
        assert not changed.has_reached_validation_target(results)
        assert not changed.has_reached_test_target(results)


def write_record(folder, **changed):
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "status": Status.COMPLETED,
        "message": "",
        "trial": 3,
        "hyperparameters": {"learning_rate": 0.5},
        "target": {"metric": "accuracy"},
        "step_time": {"seconds": 0.25},
        "compile": {"trace": 1.0, "backend": 2.0},
    }
    folder.mkdir(exist_ok=True)
    records.write_json(folder / records.RECORD_FILE, record | changed)
    row = {
        records.GLOBAL_STEP: 5,
        records.SUBMISSION_TIME: 2.5,
        "train/loss": 1.25,
        "validation/accuracy": 0.5,
        "test/accuracy": 0.25,
    }
    records.write_measurements(folder / records.EVAL_FILE, [row])


def test_a_record_is_read(tmp_path):
    write_record(tmp_path)
    run = calibration.read_run(tmp_path, "adamw")
    wanted = {
        "step": 5,
        "time": 2.5,
        "train_loss": 1.25,
        "validation": 0.5,
        "test": 0.25,
    }
    assert run == Run(
        "adamw", 3, {"learning_rate": 0.5}, "completed", [wanted], 0.25, 3.0
    )


@pytest.mark.parametrize("status", [Status.FAILED, Status.RUNNING, Status.PREEMPTED])
def test_a_record_without_a_result_is_refused(tmp_path, status):
    write_record(tmp_path, status=status, message="because")
    with pytest.raises(UserError, match=f"is {status} because"):
        calibration.read_run(tmp_path, "adamw")


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "x.json.xz"
    calibration.save(path, {"a": [1, math.nan], "b": "c"})
    assert calibration.load(path) == {"a": [1, None], "b": "c"}
    first = path.read_bytes()
    calibration.save(path, {"b": "c", "a": [1, math.nan]})
    assert path.read_bytes() == first
    assert json.loads(lzma.decompress(first))


def test_what_is_no_calibration_is_named(tmp_path):
    with pytest.raises(UserError, match="no calibration"):
        calibration.load(tmp_path / "missing")
    (tmp_path / "cut").write_bytes(b"\xfd7zXZ")
    with pytest.raises(UserError, match="no calibration"):
        calibration.load(tmp_path / "cut")
