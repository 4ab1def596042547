"""Targets from runs: the paper's rule, on runs whose answer is plain."""

import dataclasses
import json
import lzma
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf import calibration, records, registry, run_store
from algoperf.calibration import Phase, Store
from algoperf.errors import UserError
from algoperf.records import Direction, Status
from algoperf.run_store import Run

MINIMIZE, MAXIMIZE = Direction.MINIMIZE, Direction.MAXIMIZE


def a_run(validation, test=None, trial=1, phase=Phase.SEARCH, point=None):
    test = validation if test is None else test
    rows = [
        {"step": i, "time": float(i), "validation": v, "test": t}
        for i, (v, t) in enumerate(zip(validation, test, strict=True))
    ]
    return Run(phase, "adamw", trial, point or {}, "completed", rows, 0.1, 1.0)


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
    changed = calibration.for_target_setting(workload, 0.75)
    assert changed.step_hint == round(0.75 * workload.step_hint)
    assert changed.max_allowed_runtime_sec == math.inf
    metric = workload.target_metric_name
    for value in (-1e300, 0.0, 1e300):
        results = {f"validation/{metric}": value, f"test/{metric}": value}
        assert not changed.has_reached_validation_target(results)
        assert not changed.has_reached_test_target(results)


def test_a_run_with_a_target_ends_there():
    workload = registry.find_workload("finewebedu_lm", "mini")
    changed = calibration.for_target_setting(workload, 1.0, until=20.0)
    name = f"validation/{workload.target_metric_name}"
    assert changed.has_reached_validation_target({name: 20.0})
    assert not changed.has_reached_validation_target({name: 20.1})
    assert changed.max_allowed_runtime_sec == math.inf


def test_targets_are_set_with_fewer_steps_than_a_submission_has():
    shares = {phase: phase.share for phase in Phase}
    assert shares[Phase.SEARCH] == shares[Phase.REPEATS] == shares[Phase.TIMED] == 0.75
    assert shares[Phase.FRESH] == shares[Phase.WEAK] == 1.0


def test_the_repeats_with_the_best_median_count():
    """One lucky run of another point is not enough, nor is a diverged one."""
    steady, lucky = {"learning_rate": 0.1}, {"learning_rate": 0.9}
    of_steady = [a_run([v], point=steady) for v in (1.5, 2.0, 2.5)]
    of_lucky = [a_run([v], point=lucky) for v in (0.5, 3.0, math.nan)]
    for direction in Direction:
        repeats = [*of_lucky, *of_steady]
        assert calibration.best_repeats(repeats, direction) == of_steady
        luckiest = a_run([0.1], point={"learning_rate": 0.5})  # but the only one
        assert calibration.best_repeats([*repeats, luckiest], direction) == of_steady
    assert calibration.best_repeats([], MINIMIZE) == []


def test_no_two_phases_have_one_seed():
    assert len({phase.seed for phase in Phase}) == len(Phase)


def test_the_first_evaluation_that_reaches_a_target():
    run = a_run([5.0, math.nan, 2.0, 1.0, 3.0])
    assert run.reached(2.0, MINIMIZE)["step"] == 2
    assert run.reached(0.5, MINIMIZE) is None
    assert run.reached(5.0, MAXIMIZE)["step"] == 0


@pytest.mark.parametrize(
    ("target", "direction", "wanted"),
    [
        (0.219013, MINIMIZE, 0.2191),
        (0.219013, MAXIMIZE, 0.2190),
        (0.427656, MAXIMIZE, 0.4276),
        (25.671, MINIMIZE, 25.68),
        (0.25, MINIMIZE, 0.25),
        (0.8845, MAXIMIZE, 0.8845),  # in binary a little less
        (0.3, MINIMIZE, 0.3),
        (0.3, MAXIMIZE, 0.3),
        (-1.23456, MINIMIZE, -1.234),
    ],
)
def test_rounding_makes_no_target_harder(target, direction, wanted):
    assert calibration.rounded(target, direction) == wanted


def test_the_budget_is_half_as_much_again_as_undisturbed_training():
    timed = a_run([1.0] * 21)  # 20 steps of 0.1 s, and 1 s of compilation
    assert calibration.budget_sec(timed) == pytest.approx(1.5 * (20 * 0.1 + 1.0))
    with pytest.raises(UserError, match="too short"):
        calibration.budget_sec(dataclasses.replace(timed, step_sec=None))


def write_record(folder, **changed):
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "status": Status.COMPLETED,
        "message": "",
        "hyperparameters": {"learning_rate": 0.5},
        "target": {"metric": "accuracy"},
        "step_time": {"seconds": 0.25},
        "compile": {"submission": 3.0, "evaluation": 2.0, "logging": 0.0},
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
    wanted = {
        "step": 5,
        "time": 2.5,
        "train_loss": 1.25,
        "validation": 0.5,
        "test": 0.25,
    }
    assert run_store.read_run(tmp_path, Phase.FRESH, "adamw", 3) == Run(
        "fresh", "adamw", 3, {"learning_rate": 0.5}, "completed", [wanted], 0.25, 3.0
    )


@pytest.mark.parametrize("status", [Status.FAILED, Status.RUNNING, Status.PREEMPTED])
def test_a_record_without_a_result_is_refused(tmp_path, status):
    write_record(tmp_path, status=status, message="because")
    with pytest.raises(UserError, match=f"is {status} because"):
        run_store.read_run(tmp_path, Phase.SEARCH, "adamw", 1)


FACTS = {"name": "w", "direction": "minimize", "step_hint": 4}


def test_a_store_gives_back_what_was_added(tmp_path):
    path = tmp_path / "deep" / "w.json.xz"
    store = Store.open(path, FACTS)
    repeats = [
        a_run([math.nan, float(v)], trial=v, phase=Phase.REPEATS) for v in (1, 2, 3)
    ]
    for run in (a_run([3.0, 2.0]), *reversed(repeats)):
        store.add(run, {"host": "h"})
    again = Store.open(path, FACTS)
    assert again.of(Phase.SEARCH) == [a_run([3.0, 2.0])]
    assert [run.trial for run in again.of(Phase.REPEATS)] == [1, 2, 3]
    assert math.isnan(again.of(Phase.REPEATS)[0].evaluations[0]["validation"])
    assert again.targets().validation == 2.0
    assert again.environments == [{"host": "h"}]
    json.loads(lzma.decompress(path.read_bytes()), parse_constant=pytest.fail)


def test_the_order_of_runs_does_not_change_the_file(tmp_path):
    runs = [a_run([1.0, 2.0], trial=i) for i in (1, 2, 3)]
    for name, order in (("a", runs), ("b", runs[::-1])):
        store = Store.open(tmp_path / name, FACTS)
        for run in order:
            store.add(run, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_runs_of_another_workload_are_not_mixed_in(tmp_path):
    path = tmp_path / "w.json.xz"
    Store.open(path, FACTS).add(a_run([1.0]), {})
    with pytest.raises(UserError, match="step_hint 4, which is 5 now"):
        Store.open(path, FACTS | {"step_hint": 5})
    with pytest.raises(UserError, match="step_hint 4, which is not given now"):
        Store.open(path, {k: v for k, v in FACTS.items() if k != "step_hint"})


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\xfd7zXZ", lzma.compress(b"[1"), lzma.compress(b'{"runs": [{}]}')],
)
def test_what_is_no_store_is_named(tmp_path, content):
    path = tmp_path / "w.json.xz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="is no store of runs"):
        Store.read(path)
