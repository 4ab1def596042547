"""Speed-ups, means with misses, fronts: closed forms, brute force and laws."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from algoperf.errors import UserError
from algoperf.records import Direction
from scoring import words
from scoring.compare import (
    BASELINE,
    at_budget,
    compare_to,
    cost_to_reach,
    default_reference,
    field_at_budget,
    gated_speedups,
    hypervolume,
    pareto,
    share_within,
    win_tie_loss,
)
from scoring.intervals import half_width, log_median
from scoring.read import Runs
from scoring.rules import Goal, load_rules
from scoring.score import score_runs
from scoring.time_to_target import TimeKind, Timing, workload_time

INF, NAN = np.inf, np.nan
RULES = load_rules("mini_fast")
HIGH = Goal(metric="accuracy", direction=Direction.MAXIMIZE, target=0.8)
LOW = Goal(metric="accuracy", direction=Direction.MINIMIZE, target=0.2)


def _score(runs):
    return score_runs(runs, RULES)


@pytest.fixture
def studies_of(make_trial):
    """Judges {submission: times of its studies on the first workload}."""

    def make(table):
        trials = [
            make_trial(
                name, study=k, times=[t or 1.0], values=[0.1 if t is None else 1]
            )
            for name, times in table.items()
            for k, t in enumerate(times)
        ]
        return _score(Runs(trials=tuple(trials), skipped=()))

    return make


def test_by_hand(mini_runs):
    result = _score(
        mini_runs({"a": (10, 10), "b": (20, 15), "c": (20.1, None), "d": (None, None)})
    )
    found = compare_to(result, "b")
    np.testing.assert_allclose(
        found.speedup_SB, [[2, 1.5], [1, 1], [20 / 20.1, NAN], [NAN, NAN]]
    )
    means = [math.sqrt(3), 1, 20 / 20.1, NAN]
    np.testing.assert_allclose(found.mean_speedup_S, means)
    np.testing.assert_array_equal(found.shared_S, [2, 2, 1, 0])
    np.testing.assert_array_equal(found.wins_S, [2, 0, 0, 0])
    np.testing.assert_array_equal(found.ties_S, [0, 2, 1, 0])  # within 2 %
    np.testing.assert_array_equal(found.losses_S, [0, 0, 1, 2])
    # One study has no interval; the reference has one with itself.
    assert np.isnan(found.mean_speedup_low_S[[0, 2, 3]]).all()
    assert found.mean_speedup_low_S[1] == found.mean_speedup_high_S[1] == 1


def test_intervals_are_those_of_log_medians(studies_of):
    table = {"a": [10.0, 12.0, 11.0], "b": [20.0, 26.0, 21.0]}
    found = compare_to(studies_of(table), "b")
    a, b = (log_median(np.array(times)) for times in table.values())
    variance = np.array([a.variance, b.variance])
    half = half_width(variance, np.array([2.0, 2.0]), 0.95)
    expected = np.exp(b.value - a.value + np.array([-half, 0, half]))
    got = (found.speedup_low_SB, found.speedup_SB, found.speedup_high_SB)
    np.testing.assert_allclose([table[0, 0] for table in got], expected)
    # The mean is over the one workload that was run.
    assert found.mean_speedup_low_S[0] == pytest.approx(expected[0])
    assert found.mean_speedup_high_S[0] == pytest.approx(expected[2])


def test_mean_over_two_workloads_pools_variances(make_trial):
    times = {
        ("a", 0): [10.0, 12.0, 11.0],
        ("a", 1): [30.0, 31.0, 40.0],
        ("b", 0): [20.0, 26.0, 21.0],
        ("b", 1): [33.0, 30.0, 34.0],
    }
    trials = []
    for (name, w), studies in times.items():
        workload = RULES.base_workloads[w]
        goal = RULES.goals[workload]
        options = {"metric": goal.metric, "values": [goal.target]}
        trials += [
            make_trial(name, workload, study=k, times=[t], **options)
            for k, t in enumerate(studies)
        ]
    found = compare_to(_score(Runs(trials=tuple(trials), skipped=())), "b")
    cells = {key: log_median(np.array(t)) for key, t in times.items()}
    variance = np.array([cells[key].variance for key in times]) / 4
    half = half_width(variance, np.full(4, 2.0), 0.95)
    logs = [cells["b", w].value - cells["a", w].value for w in (0, 1)]
    expected = np.exp(np.mean(logs) + np.array([-half, half]))
    assert found.mean_speedup_low_S[0] == pytest.approx(expected[0])
    assert found.mean_speedup_high_S[0] == pytest.approx(expected[1])


def test_win_tie_and_loss_follow_the_interval_where_there_is_one(studies_of):
    table = {
        "reference": [10.0, 10.5, 9.7],
        "unsure": [9.0, 8.0, 14.0],  # 11 % faster, but who knows
        "faster": [8.0, 8.1, 8.2],
        "slower": [12.0, 12.2, 12.1],
        "equal": [10.0, 10.0, 10.0],
    }
    result = studies_of(table)
    found = compare_to(result, "reference")
    words = dict(
        zip(
            result.submissions,
            zip(found.wins_S, found.ties_S, found.losses_S, strict=True),
            strict=True,
        )
    )
    assert words["unsure"] == (0, 1, 0)
    assert words["faster"] == (1, 0, 0)
    assert words["slower"] == (0, 0, 1)
    assert words["equal"] == (0, 1, 0)


@given(
    arrays(
        float,
        (3, 4),
        elements=st.one_of(st.floats(1, 10), st.just(INF), st.just(0.0)),
    )
)
def test_win_tie_and_loss_leave_out_what_nobody_reached(times_SB):
    unknown = np.full(times_SB.shape, NAN)
    found = win_tie_loss(times_SB, 0, unknown, unknown)
    total = np.sum(found, axis=0)
    neither = np.isinf(times_SB) & np.isinf(times_SB[0])
    np.testing.assert_array_equal(total, ~neither)
    for wins, _, losses, mine, reference in zip(
        *(table.ravel() for table in found),
        times_SB.ravel(),
        np.broadcast_to(times_SB[0], times_SB.shape).ravel(),
        strict=True,
    ):
        assert not wins or mine < reference
        assert not losses or mine > reference


def test_struck_times_have_no_speed_up(make_trial):
    rules = load_rules("v0.5")
    options = {"metric": "mean_average_precision", "values": [1.0]}
    trials = [
        make_trial(name, workload, times=[10.0], **options)
        for name, workload in (
            ("a", "ogbg"),
            ("a", "ogbg_model_size"),
            ("b", "ogbg"),
        )
    ]
    result = score_runs(Runs(trials=tuple(trials), skipped=()), rules)
    found = compare_to(result, "a")
    ogbg = rules.base_workloads.index("ogbg")
    assert np.isnan(found.speedup_SB[1, ogbg])
    assert found.losses_S[1] == 1
    where = "both reached the target and no held-out variant strikes it out"
    assert words.compared_where(result) == where


@pytest.mark.parametrize(
    ("mode", "shared", "speedup", "where"),
    [
        ("documented", 1, 0.1, "both reached the target"),
        ("official", 0, NAN, "both reached the target within 4 times the best"),
    ],
)
def test_a_time_beyond_r_max_is_compared_and_so_it_is_said(
    mini_runs, mode, shared, speedup, where
):
    runs = mini_runs({"baseline": (1, None), "slow": (10, None)})
    result = score_runs(runs, RULES, mode=mode)
    assert not result.counts[1, 0]
    found = compare_to(result, "baseline")
    assert found.shared_S[1] == shared
    np.testing.assert_allclose(found.mean_speedup_S[1], speedup)
    line = words.comparison_line(result, found)
    assert line.startswith(f"mean: geometric, over the workloads where {where}; tie: ")


def test_default_reference(mini_runs):
    def of(table):
        return default_reference(_score(mini_runs(table)))

    fast, slow, never = (10, 10), (20, 20), (None, None)
    assert of({"a": fast, "baseline": fast, "c": slow}) == "baseline"
    assert of({"a": fast, "b": slow, "c": never}) == "b"
    assert of({"a": fast, "baseline": never, "c": slow}) == "c"
    assert of({"a": fast}) is None
    assert of({"a": never, "b": never}) is None


def test_references_that_cannot_be(mini_runs):
    result = _score(mini_runs({"adamw": (10, 10), "b": (None, None)}))
    with pytest.raises(
        UserError, match=r"unknown reference 'adam'; did you mean adamw"
    ):
        compare_to(result, "adam")
    with pytest.raises(UserError, match="the reference b has no time to compare with"):
        compare_to(result, "b")


def test_gated_means_by_hand():
    times = np.array([[10.0, 10.0], [5.0, INF], [20.0, 2.5]])
    found = gated_speedups(times, 0, clamp=100)
    # Speed-ups 1 1, 2 1 (a miss) and 0.5 4; the best are 2 and 4.
    np.testing.assert_allclose(found, [[1 / 2, 1 / 4], [1, 1 / 4], [1 / 4, 1]])
    harmonic = 1 / (1 / found).mean(axis=1)
    np.testing.assert_allclose(harmonic, [1 / 3, 2 / 5, 2 / 5])


def test_gated_means_are_clamped():
    # One huge speed-up decides the harmonic mean alone, unless it is clamped.
    times = np.array([[1000.0, 10.0], [1.0, 10.0], [1000.0, 5.0]])
    loose = gated_speedups(times, 0, clamp=1e9)
    np.testing.assert_allclose(loose[0], [1 / 1000, 1 / 2])
    tight = gated_speedups(times, 0, clamp=10)
    np.testing.assert_allclose(tight[0], [1 / 10, 1 / 2])
    np.testing.assert_allclose(tight[1], [1, 1 / 2])
    twice = gated_speedups(times * [[1, 1], [1e-6, 1], [1, 1]], 0, clamp=10)
    np.testing.assert_allclose(twice, tight)


times = arrays(float, array_shapes(min_dims=2, max_dims=2), elements=st.floats(1, 5))


@given(times)
def test_gated_harmonic_mean_without_misses_is_one_over_the_mean_ratio(times_SB):
    found = gated_speedups(times_SB, 0, clamp=1e9)
    ratios = times_SB / times_SB.min(axis=0)
    np.testing.assert_allclose(1 / (1 / found).mean(axis=1), 1 / ratios.mean(axis=1))
    assert ((found > 0) & (found <= 1)).all()


def test_gated_means_leave_out_what_the_reference_missed(mini_runs):
    result = _score(mini_runs({"a": (10, 10), "b": (20, None)}))
    found = compare_to(result, "b")
    np.testing.assert_allclose(found.gated_harmonic_S, [1, 1 / 2])


def test_a_time_at_zero_has_no_log(mini_runs):
    result = _score(mini_runs({"a": (10, 10), "b": (20, 20)}))
    times = result.times.copy()
    times[0, 0] = 0.0
    zero = dataclasses.replace(result, times=times)
    found = compare_to(zero, "b")
    assert np.isnan(found.speedup_SB[0, 0])
    assert found.wins_S[0] == 2


def test_at_budget_by_hand(make_trial):
    trials = [
        make_trial(study=0, trial=1, times=[1, 2, 9], values=[0.1, 0.5, 0.9]),
        make_trial(study=0, trial=2, times=[1, 2, 3], values=[0.6, NAN, 0.2]),
        make_trial(study=1, times=[2, 4], values=[0.3, 0.7]),
        make_trial(study=2, times=[8], values=[0.9]),
    ]
    assert at_budget(trials, HIGH, 3) == 0.3  # of 0.6, 0.3 and nothing
    assert at_budget(trials, HIGH, 4) == 0.6
    assert at_budget(trials, HIGH, 9) == 0.9
    assert math.isnan(at_budget(trials, HIGH, 1))
    assert at_budget(trials, LOW, 9) == 0.3
    assert math.isnan(at_budget([], LOW, 9))
    assert at_budget(trials, HIGH, 0, Timing(kind=TimeKind.STEPS)) == 0.6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 9))
def test_at_budget_never_gets_worse_with_more(values, budget):
    from scoring.read import Trial

    columns = {
        "accumulated_submission_time": np.arange(len(values), dtype=float),
        "validation/accuracy": np.array(values),
    }
    facts = {"submission": "s", "study": 0, "workload": "w", "framework": "jax"}
    trial = Trial(trial=1, columns=columns, record=None, path=None, **facts)
    assert at_budget([trial], HIGH, budget + 1) >= at_budget([trial], HIGH, budget)
    assert at_budget([trial], LOW, budget + 1) <= at_budget([trial], LOW, budget)


def test_share_within_a_budget():
    times_SB = np.array([[1.0, 5.0], [2.0, INF]])
    np.testing.assert_array_equal(share_within(times_SB, 2.0), [0.5, 0.5])
    np.testing.assert_array_equal(share_within(times_SB, np.array([1, 5])), [1, 0])


def test_field_at_a_budget(mini_runs):
    runs = mini_runs({"a": (10, 30), "b": (20, None)})
    result = _score(runs)
    found = field_at_budget(runs, result, 20)
    np.testing.assert_array_equal(found.best_SB, [[0.9, NAN], [0.9, 99]])
    np.testing.assert_array_equal(found.share_S, [0.5, 0.5])
    assert (found.budget, found.unit) == (20, "seconds")
    with pytest.raises(UserError, match="must be positive, not 0"):
        field_at_budget(runs, result, 0)
    with pytest.raises(UserError, match="must be positive, not nan"):
        field_at_budget(runs, result, NAN)


def test_cost_to_reach(make_trial):
    trials = [make_trial(times=[1, 2, 3], values=[0.1, 0.5, 0.8])]
    assert cost_to_reach(trials, HIGH, 0.5) == 2
    assert cost_to_reach(trials, HIGH, 0.9) == INF
    assert cost_to_reach(trials, HIGH, HIGH.target) == workload_time(trials, HIGH)


numbers = st.one_of(st.integers(0, 5).map(float), st.just(INF), st.just(NAN))
points = arrays(
    float, st.tuples(st.integers(0, 9), st.integers(1, 3)), elements=numbers
)


def _dominates(one, other):
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@given(points)
def test_front_is_what_nothing_dominates(points_PM):
    rows = points_PM.tolist()
    usable = [row for row in rows if all(math.isfinite(x) for x in row)]
    expected = [
        all(map(math.isfinite, row)) and not any(_dominates(o, row) for o in usable)
        for row in rows
    ]
    np.testing.assert_array_equal(pareto(points_PM), expected)


grid = arrays(
    float,
    st.tuples(st.integers(0, 8), st.just(2)),
    elements=st.integers(0, 7).map(float),
)


@given(grid)
def test_hypervolume_counts_dominated_squares(points_P2):
    reference = np.array([6.0, 5.0])
    squares = sum(
        any(x <= i and y <= j for x, y in points_P2.tolist())
        for i in range(6)
        for j in range(5)
    )
    assert hypervolume(points_P2, reference) == squares


@given(grid, st.integers(0, 7), st.integers(0, 7))
def test_a_further_point_never_takes_away(points_P2, x, y):
    reference = np.array([6.0, 5.0])
    more = np.vstack([points_P2, [x, y]])
    before, after = hypervolume(points_P2, reference), hypervolume(more, reference)
    assert after >= before
    # A point grows the volume exactly if it lies on the new front, inside, and is new.
    is_new = pareto(more)[-1] and [x, y] not in points_P2.tolist() and x < 6 and y < 5
    assert (after > before) == is_new


def test_archive_of_2024(archive):
    from scoring.read import read_runs

    result = score_runs(read_runs([archive]), load_rules("v0.5"))
    reference = default_reference(result)
    assert reference == BASELINE
    found = compare_to(result, reference)
    known = np.isfinite(found.mean_speedup_low_S)
    assert known.sum() == 10  # schedule_free_prodigy has no time to compare
    assert (found.mean_speedup_low_S[known] <= found.mean_speedup_S[known]).all()
    # The winners of 2024 are faster than the baseline beyond chance.
    for name in ("shampoo_submission", "schedule_free_adamw"):
        assert found.mean_speedup_low_S[result.submissions.index(name)] > 1
