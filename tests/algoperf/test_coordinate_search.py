"""Points that a tuning tries: on functions whose optimum is plain, with no training."""

import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf import coordinate_search, tuning
from algoperf.coordinate_search import Plan, Proposal, next_points
from algoperf.errors import UserError

RANGES = {
    "learning_rate": {"min": 1e-4, "max": 1e-1, "scaling": "log"},
    "momentum": {"min": 0.5, "max": 0.99},
    "depth": {"feasible_points": [4, 1, 2, 8]},
    "nesterov": {"feasible_points": [True, False]},
    "grad_clip": {"feasible_points": [1.0]},
    "warmup": {"min": 5, "max": 5},
}
exponents = st.integers(-30, 20)


@st.composite
def parts(draw):
    """A range of any of the kinds."""
    kind = draw(st.sampled_from(["log", "linear", "numbers", "words"]))
    if kind == "log":
        low = draw(exponents) / 5
        return {
            "min": 10**low,
            "max": 10 ** (low + draw(st.integers(0, 20)) / 5),
            "scaling": "log",
        }
    if kind == "linear":
        low = draw(exponents) / 7
        return {"min": low, "max": low + draw(st.integers(0, 30)) / 7}
    if kind == "numbers":
        return {"feasible_points": draw(st.lists(exponents, min_size=1, max_size=5))}
    words = st.sampled_from(["a", "b", True, False, 1, None])
    return {"feasible_points": draw(st.lists(words, min_size=1, max_size=4))}


@st.composite
def plans(draw):
    ranges = {f"x{i}": draw(parts()) for i in range(draw(st.integers(1, 4)))}
    ranges["free"] = {"min": 0.0, "max": 1.0}
    budget = draw(st.integers(1, 40))
    return Plan(
        ranges=ranges,
        budget=budget,
        search=draw(st.integers(1, budget)),
        seed=draw(st.integers(0, 5)),
        intervals=draw(st.integers(1, 10)),
        least_gain=draw(st.sampled_from([0.0, 0.01])),
    )


def noise(point):
    """A score that follows from the point alone; like noise."""
    return random.Random(json.dumps(point)).uniform(-1, 1)


def followed(plan, score=noise):
    """Follows a plan batch by batch; returns trials and scores."""
    scores = {}
    while batch := next_points(plan, scores):
        scores |= {p.trial: score(p.point) for p in batch}
    return coordinate_search.tried(plan, scores), scores


def _is_within(value, part):
    if "feasible_points" in part:
        return any(value is v or value == v for v in part["feasible_points"])
    return part["min"] <= value <= part["max"]


@given(plans())
@settings(max_examples=60)
def test_no_point_comes_twice_or_leaves_the_ranges(plan):
    trials, scores = followed(plan)
    assert len(trials) <= plan.budget
    assert [p.trial for p in trials] == list(range(1, len(trials) + 1))
    keys = [json.dumps(p.point, sort_keys=True) for p in trials]
    assert len(set(keys)) == len(keys)
    for proposal in trials:
        assert list(proposal.point) == list(plan.ranges)
        assert all(
            _is_within(proposal.point[n], part) for n, part in plan.ranges.items()
        )
    assert next_points(plan, scores) == []


@given(plans(), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_neither_order_nor_interruption_changes_the_points(plan, generator):
    """Trials finish in any order, some at a time; each time all is asked anew."""
    trials, scores = followed(plan)
    known = {}
    while batch := next_points(plan, known):
        assert not {p.trial for p in batch} & set(known)
        done = generator.sample(batch, generator.randint(1, len(batch)))
        known |= {p.trial: noise(p.point) for p in done}
    assert known == scores
    assert coordinate_search.tried(plan, known) == trials


def _starting(**values):
    return {
        name: {**part, "start": values[name]} if name in values else part
        for name, part in RANGES.items()
    }


START = {"learning_rate": 0.0123456, "momentum": 0.9, "depth": 8, "nesterov": False}


def test_the_start_is_the_first_trial_and_the_others_stay():
    without = Plan(ranges=RANGES, budget=10, search=4, seed=3)
    plan = Plan(ranges=_starting(**START), budget=10, search=4, seed=3)
    first = coordinate_search.search_points(plan)
    assert first[0] == {**START, "grad_clip": 1.0, "warmup": 5}
    assert first[1:] == coordinate_search.search_points(without)[:3]
    trials, _ = followed(plan, lambda point: abs(point["learning_rate"] - 0.0123456))
    assert trials[4].start == 1  # the descent goes on from it, as from any other
    assert plan.start == trials[0].point
    assert without.start is None
    alone = Plan(ranges=_starting(**START), budget=10, search=1)
    assert coordinate_search.search_points(alone) == [plan.start]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": None}, "range of learning_rate has a start, that of depth has none"),
        ({"momentum": 0.999}, "the start of momentum, 0.999, is not in its range"),
        ({"momentum": "0.9"}, "the start of momentum, '0.9', is not in its range"),
        ({"depth": 3}, "the start of depth, 3, is not in its range"),
        ({"nesterov": 1}, "the start of nesterov, 1, is not in its range"),
    ],
)
def test_a_start_that_is_none(changed, message):
    values = {n: v for n, v in {**START, **changed}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        coordinate_search.check(Plan(ranges=_starting(**values), budget=4, search=2))


ordered = {n: RANGES[n] for n in ("learning_rate", "momentum", "depth")}


@given(
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.1, 10)] * 3),
    st.integers(0, 3),
    st.integers(1, 5),
)
@settings(max_examples=40)
def test_the_optimum_of_a_separable_convex_function_is_found(share, size, seed, search):
    plan = Plan(ranges=ordered, budget=500, search=search, seed=seed, least_gain=0.0)
    # As the grid goes through the best point of the search, the function, which must
    # not depend on it, is one of logarithms, lengths and places in the choice.
    scale = {"learning_rate": math.log, "momentum": float, "depth": math.log}
    ends = {"learning_rate": (1e-4, 1e-1), "momentum": (0.5, 0.99), "depth": (1, 8)}

    def score(point):
        total = 0.0
        for name, s, weight in zip(ordered, share, size, strict=True):
            low, high = map(scale[name], ends[name])
            x = (scale[name](point[name]) - low) / (high - low)
            total += weight * abs(x - s) ** 1.5
        return total

    trials, _ = followed(plan, score)
    assert len(trials) < plan.budget  # no neighbour is better
    start = min(trials[:search], key=lambda p: score(p.point))
    best = min(trials, key=lambda p: score(p.point))
    for name in ordered:
        values = coordinate_search.grid(plan, name, start.point[name]).values
        least = min(score({**start.point, name: v}) for v in values)
        assert score({**start.point, name: best.point[name]}) == pytest.approx(least)


def test_a_descent_by_hand():
    plan = Plan(
        ranges={
            "x": {"min": 0.0, "max": 8.0},
            "word": {"feasible_points": ["a", "b", "c"]},
        },
        budget=50,
        search=1,
        intervals=8,
    )
    (first,) = next_points(plan, {})
    assert (first.trial, first.changed, first.start) == (1, "", 0)
    x, word = first.point["x"], first.point["word"]
    lower, upper = next_points(plan, {1: 5.0})
    assert [lower.trial, upper.trial] == [2, 3]
    assert lower.point == {"x": pytest.approx(x - 1, abs=1e-9), "word": word}
    assert upper == Proposal(3, {"x": upper.point["x"], "word": word}, "x", 1)
    # The upper one is better, so the one above it is next, and nothing below again.
    (next_up,) = next_points(plan, {1: 5.0, 2: 6.0, 3: 4.0})
    assert (next_up.changed, next_up.start) == ("x", 3)
    assert next_up.point["x"] > upper.point["x"]
    # That is better by too little: from trial 3, words are next, all of them.
    scores = {1: 5.0, 2: 6.0, 3: 4.0, 4: 3.995}
    words = next_points(plan, scores)
    assert [p.changed for p in words] == ["word", "word"]
    assert {p.point["word"] for p in words} == {"a", "b", "c"} - {word}
    assert all(p.point["x"] == upper.point["x"] for p in words)
    # None is better, and x is settled: over, after 6 of 50 trials.
    scores |= {5: 9.0, 6: math.inf}
    assert next_points(plan, scores) == []
    # A better word makes x, at its new neighbours, worth another look.
    again = next_points(plan, scores | {6: 1.0})
    assert [p.changed for p in again] == ["x", "x"]
    assert all(p.start == 6 for p in again)


def test_the_search_takes_a_halton_sequence_in_the_order_of_the_ranges():
    plan = Plan(ranges=RANGES, budget=20, search=8, seed=3)
    free = {n: RANGES[n] for n in ("learning_rate", "momentum", "depth", "nesterov")}
    assert plan.free == free
    assert plan.bases == dict(zip(free, (2, 3, 5, 7), strict=True))
    letters = dict(zip(free, "abcd", strict=True))  # `trial_point` sorts by name
    for proposal in next_points(plan, {}):
        drawn = tuning.trial_point(
            {letters[n]: part for n, part in free.items()}, 3, proposal.trial
        )
        wanted = {name: drawn[letter] for name, letter in letters.items()}
        assert proposal.point["grad_clip"] == 1.0
        assert proposal.point["warmup"] == 5
        for name in ("depth", "nesterov"):
            assert proposal.point[name] is wanted[name]
        for name in ("learning_rate", "momentum"):
            assert proposal.point[name] == pytest.approx(wanted[name], rel=6e-3)
            assert len(f"{proposal.point[name]:.10g}".strip("0.")) <= 5


def test_what_a_range_is_called_changes_no_point():
    """Else one algorithm would try other learning rates than its sibling by name."""
    points = [
        coordinate_search.search_points(
            Plan(
                ranges={
                    "learning_rate": RANGES["learning_rate"],
                    name: RANGES["momentum"],
                },
                budget=5,
                search=5,
            )
        )
        for name in ("alpha", "zeta")
    ]
    assert [list(p.values()) for p in points[0]] == [
        list(p.values()) for p in points[1]
    ]


def test_a_grid_reaches_both_ends_in_even_intervals():
    plan = Plan(ranges=RANGES, budget=1, search=1, intervals=6)
    values = coordinate_search.grid(plan, "learning_rate", 0.002).values
    assert values[0] == 1e-4
    assert values[-1] == 1e-1
    assert 0.002 in values
    ratios = [b / a for a, b in itertools.pairwise(values)]
    inner = ratios[1:-1]
    assert inner == pytest.approx([10**0.5] * len(inner), rel=0.01)
    assert all(10**0.1 < r < 10**0.63 for r in ratios)
    assert plan.spacing("learning_rate") == "times 3.16"
    depth = coordinate_search.grid(plan, "depth", 2)
    assert depth.around(2) == [1, 4]
    assert depth.around(8) == [4]
    assert plan.spacing("depth") == "next in the list"
    assert plan.spacing("nesterov") == "all others"


@pytest.mark.parametrize(("part", "tried"), [(0.2, False), (0.3, True)])
def test_an_end_near_the_value_is_not_tried_anew(part, tried):
    """In parts of an interval."""
    plan = Plan(ranges={"x": {"min": 0.0, "max": 6.0}}, budget=1, search=1, intervals=6)
    low = coordinate_search.grid(plan, "x", part)
    assert low.around(part)[:-1] == ([0.0] if tried else [])
    assert low.values[-1] == 6.0
    high = coordinate_search.grid(plan, "x", 6.0 - part)
    assert high.around(6.0 - part)[1:] == ([6.0] if tried else [])
    assert high.values[0] == 0.0


def test_a_whole_start_in_a_narrow_range_has_neighbours():
    part = {"min": 1990, "max": 2020, "start": 2000}
    plan = Plan(ranges={"x": part}, budget=6, search=1)
    values, scores = [], {}
    while points := next_points(plan, scores):
        values += [proposal.point["x"] for proposal in points]
        scores |= {proposal.trial: float(proposal.trial) for proposal in points}
    assert values[0] == 2000
    assert len(set(values)) == len(values) > 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"search": 0}, "--search from 1"),
        ({"search": 9}, "a budget of 8"),
        ({"ranges": {"x": {"min": 1, "max": 1}}}, "nothing to tune"),
        ({"ranges": {"x": {"feasible_points": [2, 2]}}}, "nothing to tune"),
    ],
)
def test_plans_that_cannot_be_followed(changed, says):
    plan = Plan(**{"ranges": RANGES, "budget": 8, "search": 4, **changed})
    with pytest.raises(UserError, match=says):
        next_points(plan, {})


def test_few_points_end_the_search_before_the_budget():
    plan = Plan(ranges={"x": {"feasible_points": [1, 2, 3]}}, budget=9, search=9)
    trials, scores = followed(plan)
    assert sorted(p.point["x"] for p in trials) == [1, 2, 3]
    assert next_points(plan, scores) == []


def test_with_equal_budgets_a_descent_does_better_than_search_alone():
    """Noisy bowls of three ranges, one of them steep, as a learning rate is."""
    ranges = {name: {"min": 0.0, "max": 1.0} for name in "xyz"}
    left = {5: 0.0, 15: 0.0}
    for repetition, search in itertools.product(range(12), left):
        generator = random.Random(repetition)
        optimum = {name: generator.uniform(0.15, 0.85) for name in ranges}

        def regret(point, optimum=optimum):
            steepness = {"x": 5.0, "y": 1.0, "z": 0.5}
            return sum(steepness[n] * (point[n] - optimum[n]) ** 2 for n in ranges)

        def score(point, regret=regret):
            return regret(point) + 0.02 * noise(point)

        plan = Plan(ranges=ranges, budget=15, search=search, seed=repetition)
        trials, scores = followed(
            plan, lambda p, regret=regret: regret(p) + 0.02 * noise(p)
        )
        best = min(trials, key=lambda p: scores[p.trial])
        left[search] += regret(best.point) / 12
    assert left[5] < 0.8 * left[15]
