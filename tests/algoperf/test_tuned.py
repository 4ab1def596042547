"""Scores of a tuning by hand, and which points it chooses."""

import itertools
import math
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf import calibration, coordinate_search, registry, tuned
from algoperf.calibration import Phase
from algoperf.coordinate_search import Plan
from algoperf.run_store import Run, Store
from algoperf.tuned import Goal, Tuning

LOSS = Goal("loss", "minimize", 0.5, step_hint=100, steps=100)
CALIBRATION = Path(__file__).parents[2] / "docs" / "calibration"
NINE = [w.base_workload for w in registry.select_workloads(["all"], "mini")]
ACCURACY = Goal("accuracy", "maximize", 0.8, step_hint=200, steps=100)


def a_run(values, status="completed", trial=1, workload="w"):
    rows = [
        {"step": 10.0 * i, "time": 1.0 * i, "validation": v, "test": v}
        for i, v in enumerate(values)
    ]
    return Run("tune", workload, trial, {}, status, rows, 0.1, 1.0)


@pytest.mark.parametrize(
    ("values", "goal", "step"),
    [
        ([4.0, 1.0, 0.5], LOSS, 20.0),
        ([4.0, 1.0, 0.0], LOSS, 15.0),  # halfway from 10 to 20
        ([4.0, 1.0, 0.51], LOSS, None),
        ([4.0, math.nan, 0.1], LOSS, 20.0),
        ([0.1], LOSS, 1.0),  # the untrained model; not log 0
        ([0.0, 0.6, 1.0, 0.0], ACCURACY, 15.0),
        ([0.0, 0.8], ACCURACY, 10.0),
    ],
)
def test_steps_to_the_target(values, goal, step):
    found = tuned.steps_to_target(a_run(values), goal)
    assert found is None if step is None else found == pytest.approx(step)


def test_a_reached_target_counts_by_its_share_of_the_step_hint():
    assert tuned.loss(a_run([4.0, 1.0, 0.5]), LOSS) == pytest.approx(math.log(0.2))
    assert tuned.loss(a_run([0.0, 0.8]), ACCURACY) == pytest.approx(math.log(0.05))


def test_a_miss_counts_four_times_the_steps_and_the_gap():
    # In logarithms from 8 to 1/2 there are 4 halvings; one is missing at 1.
    assert tuned.gap(a_run([8.0, 1.0, 2.0]), LOSS) == pytest.approx(0.25)
    assert tuned.loss(a_run([8.0, 1.0]), LOSS) == pytest.approx(math.log(4) + 0.25)
    # From 0.1 to 0.8; 0.45 is halfway. Half of the step hint was allowed.
    assert tuned.gap(a_run([0.1, 0.45]), ACCURACY) == pytest.approx(0.5)
    assert tuned.loss(a_run([0.1, 0.45]), ACCURACY) == pytest.approx(math.log(2) + 0.5)


def test_gaps_of_runs_that_went_wrong_are_whole():
    assert tuned.gap(a_run([math.nan, math.nan], "diverged"), LOSS) == 1.0
    assert tuned.gap(a_run([4.0, 9.0, math.inf], "diverged"), LOSS) == 1.0
    assert tuned.gap(a_run([math.nan, 2.0]), LOSS) == 1.0  # no way from its start


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_gap_is_measured_from_the_first_finite_evaluation(first):
    assert tuned.gap(a_run([first, 8.0, 1.0]), LOSS) == pytest.approx(0.25)
    assert tuned.gap(a_run([first, 0.1, 0.45]), ACCURACY) == pytest.approx(0.5)


def test_no_sweep_has_the_seed_of_a_tuning():
    seeds = [tuned.run_seed(seed) for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert min(seeds) > 2**30  # sweeps count theirs from 0


@pytest.mark.parametrize(
    ("names", "deviation", "chance"),
    [(["imagenet_resnet", "finewebedu_lm"], 0.04, 0.07), (NINE, 0.09, 0.20)],
)
def test_what_docs_say_of_seeds_is_what_repeats_say(names, deviation, chance):
    """And it stays rare that one of two equal neighbours seems better."""
    losses = []
    for name in names:
        workload = registry.find_workload(name, "mini")
        store = calibration.Store.read(CALIBRATION / f"{name}_mini.json.xz")
        steps = workload.step_hint
        goal = Goal(
            workload.target_metric_name,
            str(workload.target_direction),
            workload.validation_target_value,
            step_hint=steps,
            steps=steps,
        )
        losses.append([tuned.loss(run, goal) for run in store.of(Phase.FRESH)])
    variance = sum(map(statistics.variance, losses)) / len(names) ** 2
    assert math.sqrt(variance) == pytest.approx(deviation, abs=0.005)
    generator = random.Random(0)
    seems_better = 0
    for _ in range(4000):
        here, *others = (
            statistics.fmean(map(generator.choice, losses)) for _ in range(3)
        )
        seems_better += min(others) < here - coordinate_search.LEAST_GAIN
    assert seems_better / 4000 == pytest.approx(chance, abs=0.02)


def test_a_stopped_run_never_counts_as_reached():
    run = a_run([4.0, 0.1], tuned.STOPPED)
    assert tuned.steps_to_target(run, LOSS) is None
    assert tuned.loss(run, LOSS) >= math.log(4)


values = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@given(values, values)
@settings(max_examples=50)
def test_reaching_the_target_beats_missing_it(one, other):
    reached = a_run([*one, 0.4])
    missed = a_run([0.5 + v for v in other])
    assert tuned.loss(reached, LOSS) < tuned.loss(missed, LOSS)


losses = st.dictionaries(
    st.integers(1, 9),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    min_size=1,
    max_size=7,
)


@given(losses, st.integers(1, 5))
@settings(max_examples=60)
def test_choosing(losses, size):
    chosen = tuned.choose(losses, size)
    assert len(chosen) == len(set(chosen)) == min(size, len(losses))
    means = {trial: math.fsum(row) / 3 for trial, row in losses.items()}
    assert means[chosen[0]] == min(means.values())

    def together(trials):
        rows = [losses[trial] for trial in trials]
        return statistics.fmean(map(min, zip(*rows, strict=True)))

    if len(chosen) > 1:  # against all pairs that hold the best
        pairs = itertools.product(chosen[:1], set(losses) - set(chosen[:1]))
        assert together(chosen[:2]) == pytest.approx(min(map(together, pairs)))


def test_the_second_point_is_the_one_that_helps_where_the_first_is_slow():
    losses = {1: [0.0, 2.0], 2: [0.1, 2.0], 3: [9.0, 0.0]}
    assert tuned.choose(losses, 2) == [1, 3]
    assert tuned.choose(losses, 5) == [1, 3, 2]


def test_a_trial_has_a_score_when_all_its_workloads_are_done(tmp_path):
    plan = Plan(ranges={"x": {"min": 0.0, "max": 1.0}}, budget=2, search=2)
    goals = {"v": LOSS, "w": ACCURACY}
    tuning = Tuning("adam", plan, goals, Store(tmp_path / "s.json.xz", {}))
    assert [p.trial for p in tuning.waiting()] == [1, 2]
    tuning.store.add(a_run([4.0, 1.0, 0.5], trial=2, workload="v"), {})
    assert tuning.scores() == {}
    tuning.store.add(a_run([0.0, 0.8], trial=2, workload="w"), {})
    wanted = (math.log(0.2) + math.log(0.05)) / 2
    assert tuning.scores() == {2: pytest.approx(wanted)}
    assert [p.trial for p in tuning.waiting()] == [1]
    assert [p.trial for p in tuning.chosen()] == [2]


def test_facts_tell_ranges_in_another_order_apart(tmp_path):
    def facts(*names):
        plan = Plan(
            ranges={n: {"min": 0.0, "max": 1.0} for n in names}, budget=2, search=1
        )
        return tuned.facts(Tuning("adam", plan, {}, Store(tmp_path, {})))

    assert facts("x", "y") != facts("y", "x")
    assert facts("x", "y") == facts("x", "y")
