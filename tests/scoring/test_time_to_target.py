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
    counted_times,
    first_reached,
    study_time,
    trial_time,
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


def test_study_is_its_fastest_trial_or_the_earliest_index(make_trial):
    trials = [
        make_trial(trial=1, times=[10, 20], values=[0.1, 0.9]),
        make_trial(trial=2, times=[25, 30], values=[0.9, 0.9]),  # index 0, but slower
        make_trial(trial=3, times=[5, 6], values=[0.1, 0.1]),
    ]
    assert study_time(trials, HIGH) == 20
    assert study_time(trials, HIGH, Mode.OFFICIAL) == 25
    assert study_time(trials[2:], HIGH, Mode.OFFICIAL) == INF
    assert study_time([], HIGH) == INF


def test_official_takes_the_first_trial_among_equal_indices(make_trial):
    slow, fast = (
        make_trial(trial=trial, times=[time], values=[0.9])
        for trial, time in ((1, 50), (2, 40))
    )
    assert study_time([fast, slow], HIGH, Mode.OFFICIAL) == 50


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
