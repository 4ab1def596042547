"""Times to target of trials, studies and workloads, and which of them count."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf.records import Direction, reaches
from scoring.rules import Goal
from scoring.time_to_target import (
    Mode,
    TimeKind,
    Timing,
    counted_times,
    evaluation_times,
    first_reached,
    median_time,
    step_seconds,
    study_times,
    trial_time,
    workload_studies,
    workload_time,
)

HIGH = Goal(metric="accuracy", direction=Direction.MAXIMIZE, target=0.8)
LOW = Goal(metric="accuracy", direction=Direction.MINIMIZE, target=0.8)
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("goal", "values", "expected"),
    [
        (HIGH, [0.1, 0.8, 0.9], 20),  # equality reaches
        (HIGH, [0.1, 0.81, 0.2], 20),  # falling back does not matter
        (HIGH, [NAN, NAN, NAN], INF),
        (HIGH, [NAN, 0.1, INF], 30),
        (LOW, [0.9, NAN, 0.8], 30),
        (LOW, [0.9, 0.81, NAN], INF),
        (LOW, [0.5, 0.4, 0.3], 10),
    ],
)
def test_first_evaluation_at_least_as_good(make_trial, goal, values, expected):
    trial = make_trial(times=[10, 20, 30], values=values)
    assert trial_time(trial, goal) == expected


def test_evaluation_without_a_time_does_not_count(make_trial):
    trial = make_trial(times=[NAN, INF, 30], values=[0.9, 0.9, 0.9])
    assert first_reached(trial, HIGH) == 2


def test_trial_without_evaluations_or_without_the_metric_misses(make_trial):
    assert trial_time(make_trial(), HIGH) == INF
    other = make_trial(times=[1], metric="wer", values=[0.0])
    assert trial_time(other, HIGH) == INF


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(numbers, min_size=1, max_size=9), numbers, st.sampled_from(Direction))
def test_reaching_is_what_records_say(values, target, direction):
    from scoring.read import Trial

    goal = Goal(metric="m", direction=direction, target=target)
    columns = {
        "accumulated_submission_time": np.arange(len(values), dtype=float),
        goal.column: np.array(values),
    }
    trial = Trial(
        submission="s",
        study=0,
        workload="w",
        framework="jax",
        trial=1,
        columns=columns,
        record=None,
        path=None,
    )
    hits = [i for i, v in enumerate(values) if reaches(v, target, direction)]
    assert first_reached(trial, goal) == (hits[0] if hits else None)


def test_official_takes_the_first_trial_among_equal_indices(make_trial):
    slow, fast = (
        make_trial(trial=trial, times=[time], values=[0.9])
        for trial, time in ((1, 50), (2, 40))
    )
    assert study_times([fast, slow], HIGH, Mode.OFFICIAL).tolist() == [50, 40]


@pytest.mark.parametrize(
    ("studies", "expected"),
    [
        ([30], 30),
        ([30, 10, 20], 20),
        ([30, 10, None], 30),  # misses take part
        ([30, None, None], INF),
        ([30, 10], 20),  # the mean of both
        ([30, None], INF),
        ([None, None], INF),
        ([], INF),
    ],
)
def test_workload_is_the_median_over_studies(make_trial, studies, expected):
    trials = [
        make_trial(study=i, times=[time or 1], values=[0.0 if time is None else 1.0])
        for i, time in enumerate(studies)
    ]
    assert workload_time(trials, HIGH) == expected


IDEALIZED, STEPS = Timing(kind=TimeKind.IDEALIZED), Timing(kind=TimeKind.STEPS)
INTERPOLATED = Timing(interpolate=True)


def test_steps_and_idealized_time(make_trial):
    # The third evaluation is at step 2, after 30 seconds on a busy machine.
    record = {"status": "reached", "step_time": {"seconds": 0.25}}
    trial = make_trial(times=[5, 10, 30], values=[0.1, 0.2, 0.9], record=record)
    assert trial_time(trial, HIGH) == 30
    assert trial_time(trial, HIGH, STEPS) == 2
    assert trial_time(trial, HIGH, IDEALIZED) == 0.5
    assert workload_time([trial], HIGH, timing=IDEALIZED) == 0.5


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"step_time": None},
        {"step_time": {"seconds": None}},
        {"step_time": {"seconds": 0}},
        {"step_time": {"seconds": -1.0}},
        {"step_time": {"seconds": NAN}},
        {"step_time": {"seconds": 10**400}},
        {"step_time": {"seconds": True}},
        {"step_time": {"seconds": "1"}},
        {"step_time": 1.0},
    ],
)
def test_without_a_step_time_idealized_time_is_a_miss(make_trial, record):
    trial = make_trial(times=[5], values=[0.9], record=record)
    assert step_seconds(trial) is None
    assert trial_time(trial, HIGH, IDEALIZED) == INF
    assert trial_time(trial, HIGH, STEPS) == 0
    assert np.isnan(evaluation_times(trial, TimeKind.IDEALIZED)).all()


def test_a_trial_without_evaluations_has_no_times(make_trial):
    for kind in TimeKind:
        assert evaluation_times(make_trial(), kind).size == 0


@pytest.mark.parametrize(
    ("timing", "unit", "words"),
    [
        (Timing(), "seconds", "seconds of submission time"),
        (IDEALIZED, "seconds", "seconds of idealized time"),
        (STEPS, "steps", "steps"),
        (INTERPOLATED, "seconds", "seconds of submission time, interpolated"),
    ],
)
def test_times_have_a_unit_and_words(timing, unit, words):
    assert timing.unit == unit
    assert str(timing) == words


@pytest.mark.parametrize(
    ("goal", "values", "expected"),
    [
        (HIGH, [0.1, 0.6, 1.0], 25),  # half of the way from 0.6 to 1
        (HIGH, [0.1, 0.6, 0.8], 30),
        (HIGH, [0.9, 0.6, 1.0], 10),  # there is none before the first
        (HIGH, [0.6, NAN, 1.0], 20),  # from the last that has a value
        (HIGH, [NAN, NAN, 1.0], 30),
        (HIGH, [0.1, 0.6, INF], 30),
        (HIGH, [0.1, 0.2, 0.3], INF),
        (LOW, [1.0, 0.9, 0.7], 25),
    ],
)
def test_interpolation_by_hand(make_trial, goal, values, expected):
    trial = make_trial(times=[10, 20, 30], values=values)
    assert trial_time(trial, goal, INTERPOLATED) == pytest.approx(expected)


def test_steps_are_interpolated_too(make_trial):
    trial = make_trial(times=[10, 20, 30], values=[0.1, 0.6, 1.0])
    timing = Timing(kind=TimeKind.STEPS, interpolate=True)
    assert trial_time(trial, HIGH, timing) == pytest.approx(1.5)


def _trial(values):
    from scoring.read import Trial

    columns = {
        "accumulated_submission_time": np.arange(1.0, len(values) + 1),
        "global_step": np.arange(1.0, len(values) + 1),
        "validation/accuracy": np.array(values),
    }
    facts = {"submission": "s", "study": 0, "workload": "w", "framework": "jax"}
    return Trial(trial=1, columns=columns, record=None, path=None, **facts)


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=9),
    st.floats(-10, 10),
    st.sampled_from(Direction),
)
def test_interpolation_stays_between_the_evaluations(values, target, direction):
    goal = Goal(metric="accuracy", direction=direction, target=target)
    trial = _trial(values)
    end = trial_time(trial, goal)
    found = trial_time(trial, goal, INTERPOLATED)
    if end == INF:
        assert found == INF
    else:
        assert max(end - 1, 1) <= found <= end


@given(st.floats(0.1, 5), st.floats(-5, 5), st.floats(0.05, 0.95), st.integers(2, 9))
def test_interpolation_of_a_straight_line_is_exact(slope, start, share, count):
    values = start + slope * np.arange(count)
    target = start + slope * share * (count - 1)
    goal = Goal(metric="accuracy", direction=Direction.MAXIMIZE, target=target)
    found = trial_time(_trial(values), goal, INTERPOLATED)
    assert found == pytest.approx(1 + share * (count - 1))


def test_trials_of_a_study_stand_in_the_order_of_the_mode(make_trial):
    trials = [
        make_trial(trial=1, times=[10, 20], values=[0.1, 0.9]),
        make_trial(trial=2, times=[25, 30], values=[0.9, 0.9]),  # index 0, but slower
        make_trial(trial=3, times=[5, 6], values=[0.1, 0.1]),
        make_trial(trial=4, times=[9, 15], values=[0.1, 0.9]),
    ]
    np.testing.assert_array_equal(study_times(trials, HIGH), [15, 20, 25, INF])
    official = study_times(trials, HIGH, Mode.OFFICIAL)
    np.testing.assert_array_equal(official, [25, 20, 15, INF])


@pytest.mark.parametrize("mode", Mode)
def test_studies_of_a_workload(make_trial, mode):
    trials = [
        make_trial(study=study, trial=trial, times=[time], values=[0.9])
        for study, trial, time in ((7, 1, 40), (2, 1, 20), (2, 2, 10), (5, 1, 50))
    ]
    studies = workload_studies(trials, HIGH, mode)
    best = [times[0] for times in studies]
    assert best == [20 if mode is Mode.OFFICIAL else 10, 50, 40]
    assert median_time(studies) == workload_time(trials, HIGH, mode) == 40
    assert median_time(()) == INF


@pytest.mark.parametrize("mode", Mode)
def test_base_counts_only_where_its_variant_is_near_the_best(mode):
    base = np.array([[1.0, 1.0], [1.1, 1.0], [1.2, 1.0], [1.3, 1.0]])
    variant = np.array([[INF], [10.0], [40.0], [40.1]])
    counted = counted_times(base, variant, [0], 4.0, mode)
    np.testing.assert_array_equal(counted[:, 0], [INF, 1.1, 1.2, INF])
    np.testing.assert_array_equal(counted[:, 1], [1, 1, 1, 1])


def test_official_compares_with_a_best_that_is_struck_out_later():
    base, variant = np.array([[1.0], [5.0]]), np.array([[INF], [10.0]])
    documented = counted_times(base, variant, [0], 4.0)
    official = counted_times(base, variant, [0], 4.0, Mode.OFFICIAL)
    np.testing.assert_array_equal(documented, [[INF], [5.0]])
    np.testing.assert_array_equal(official, [[INF], [INF]])


def test_official_best_on_a_variant_needs_its_base():
    base, variant = np.array([[INF], [1.0]]), np.array([[10.0], [41.0]])
    documented = counted_times(base, variant, [0], 4.0)
    official = counted_times(base, variant, [0], 4.0, Mode.OFFICIAL)
    np.testing.assert_array_equal(documented, [[INF], [INF]])
    np.testing.assert_array_equal(official, [[INF], [1.0]])


@pytest.mark.parametrize("mode", Mode)
def test_counting_leaves_its_input_alone(mode):
    base, variant = np.array([[1.0], [9.0]]), np.array([[INF], [1.0]])
    before = base.copy(), variant.copy()
    counted_times(base, variant, [0], 4.0, mode)
    np.testing.assert_array_equal(base, before[0])
    np.testing.assert_array_equal(variant, before[1])
