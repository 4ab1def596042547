"""Every submission has ranges that `algoperf tune` can take."""

import json

import pytest

from algoperf import coordinate_search, registry, tuning
from algoperf.cli import tune

SUBMISSIONS = registry.submission_paths()
NAMES = sorted(SUBMISSIONS)
# What changes how long a step takes, or how many gradients it is.
OF_COST = {"checkpoints", "clients", "echoes", "ensemble_share", "gap", "local_steps"}
OF_COST |= {"members", "pool", "precondition_every", "rank", "recipe", "restarts"}
OF_COST |= {"step_hint_factor"}


def ranges_of(name):
    assert (SUBMISSIONS[name].parent / tune.RANGES_FILE).is_file()
    return tune.find_ranges(SUBMISSIONS[name], None)


def points_of(name):
    space = tuning.load_search_space(SUBMISSIONS[name].parent / tune.SPACE_FILE)
    assert isinstance(space, list)  # of ranges, some would draw what others choose
    return space


@pytest.mark.parametrize("name", NAMES)
def test_ranges_name_what_the_points_name(name):
    ranges = ranges_of(name)
    for point in points_of(name):
        assert set(point) == set(ranges)
    plan = coordinate_search.Plan(ranges=ranges, budget=4, search=4)
    fewest = {"sgd": 1}.get(name, 3)
    assert fewest <= len(plan.free) <= 6
    assert next(iter(ranges)) == "learning_rate"
    assert len(coordinate_search.next_points(plan, {})) == 4
    assert plan.start is not None  # else some would begin ahead of others


@pytest.mark.parametrize("name", NAMES)
def test_the_points_are_within_the_ranges(name):
    """So the search can find what the literature says; types agree as well.

    A point that differs in what has one value in the ranges is another method, or costs
    another number of gradients; it is not what is searched.
    """
    first, ranges = points_of(name)[0], ranges_of(name)
    fixed = {key for key, part in ranges.items() if len(choices(part)) == 1}
    for point in points_of(name):
        if any(point[key] not in choices(ranges[key]) for key in fixed):
            assert point is not first
            continue
        for key in set(ranges) - fixed:
            assert is_within(point[key], ranges[key]), (key, point)
    for key, part in ranges.items():
        kinds = {type(choice) for choice in choices(part)} or {float}
        assert kinds == {type(first[key])}, key
    rate = ranges["learning_rate"]
    assert rate["scaling"] == "log"
    assert 10 <= rate["max"] / rate["min"] <= 1000


def choices(part):
    return part.get("feasible_points", ())


def is_within(value, part):
    if "feasible_points" in part:
        return value in choices(part)
    return part["min"] <= value <= part["max"]


@pytest.mark.parametrize("name", NAMES)
def test_what_changes_the_cost_of_a_step_has_one_value(name):
    """Tuning counts steps; see docs/tuning.md."""
    for key, part in ranges_of(name).items():
        assert key not in OF_COST or len(choices(part)) == 1, key


def test_equal_families_have_equal_ranges():
    """What sets targets is tuned in what it was calibrated in."""
    for name in ("adamw", "nadamw"):
        target_setting = SUBMISSIONS[name].with_name("target_setting.json")
        ranges = {
            hyperparameter: {k: v for k, v in part.items() if k != "start"}
            for hyperparameter, part in ranges_of(name).items()
        }
        assert ranges == json.loads(target_setting.read_text())
