"""Every submission has ranges that `algoperf tune` can take."""

import json

import pytest

from algoperf import coordinate_search, registry, tuning
from algoperf.cli import tune

SUBMISSIONS = registry.submission_paths()
NAMES = sorted(SUBMISSIONS)


def ranges_of(name):
    assert (SUBMISSIONS[name].parent / tune.RANGES_FILE).is_file()
    return tune.find_ranges(SUBMISSIONS[name], None)


def points_of(name):
    space = tuning.load_search_space(SUBMISSIONS[name].parent / tune.SPACE_FILE)
    return space if isinstance(space, list) else [tuning.trial_point(space, 0, 1)]


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
def test_the_first_point_is_within_the_ranges(name):
    """So the search can find what the literature says; types agree as well."""
    point = points_of(name)[0]
    for hyperparameter, part in ranges_of(name).items():
        value = point[hyperparameter]
        if "feasible_points" in part:
            kinds = {type(choice) for choice in part["feasible_points"]}
            assert kinds == {type(value)}, hyperparameter
        if hyperparameter == "learning_rate":
            assert part["min"] <= value <= part["max"]
            assert part["scaling"] == "log"
            assert 10 <= part["max"] / part["min"] <= 1000


def test_equal_families_have_equal_ranges():
    """What sets targets is tuned in what it was calibrated in."""
    for name in ("adamw", "nadamw"):
        target_setting = SUBMISSIONS[name].with_name("target_setting.json")
        ranges = {
            hyperparameter: {k: v for k, v in part.items() if k != "start"}
            for hyperparameter, part in ranges_of(name).items()
        }
        assert ranges == json.loads(target_setting.read_text())
