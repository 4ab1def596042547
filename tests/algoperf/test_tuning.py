"""Search spaces: what is taken, what is refused, and which point a trial gets."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc
from synthetic import SYNTHETIC

from algoperf.errors import UserError
from algoperf.trials import Seeds, TrialConfig, study_seed, trial_configs
from algoperf.tuning import (
    as_namedtuple,
    is_point,
    load_search_space,
    trial_point,
    watched,
)

RANGES = {
    "learning_rate": {"min": 1e-4, "max": 1e-1, "scaling": "log"},
    "momentum": {"min": 0.5, "max": 0.99},
    "depth": {"feasible_points": [1, 2, "many"]},
}
POINTS = [{"learning_rate": 0.1 * i} for i in range(8)]
seeds = st.integers(0, 2**32 - 1)
positive = st.floats(1e-30, 1e30)


def _base(seed=0, study=0):
    facts = {"workload": SYNTHETIC, "out": None, "submission": None}
    return TrialConfig(**facts, seed=seed, study=study)


@given(seed=seeds, trial=st.integers(1, 8))
@settings(max_examples=25)
@pytest.mark.parametrize("space", [RANGES, POINTS], ids=["ranges", "points"])
def test_a_trial_alone_is_the_one_among_many(space, seed, trial):
    base = _base(seed)
    (alone,) = trial_configs(base, space, [trial])
    assert alone == trial_configs(base, space, range(1, 9))[trial - 1]


@given(seed=seeds, trial=st.integers(1, 300))
@settings(max_examples=50)
def test_points_are_within_their_ranges(seed, trial):
    point = trial_point(RANGES, seed, trial)
    assert list(point) == sorted(RANGES)
    assert 1e-4 <= point["learning_rate"] <= 1e-1
    assert 0.5 <= point["momentum"] <= 0.99
    assert point["depth"] in (1, 2, "many")


@given(low=positive, factor=st.floats(1, 1e6), seed=seeds)
@settings(max_examples=50)
@pytest.mark.parametrize("scaling", ["linear", "log"])
def test_any_range_is_kept_to_the_last_digit(low, factor, seed, scaling):
    high = low * factor
    space = {"x": {"min": low, "max": high, "scaling": scaling}}
    assert low <= trial_point(space, seed, 1)["x"] <= high


def test_a_range_of_one_value_is_that_value():
    space = {"x": {"min": 3, "max": 3, "scaling": "log"}}
    assert {trial_point(space, seed, 1)["x"] for seed in range(20)} == {3}


def test_log_scaling_spreads_over_the_decades():
    values = [trial_point(RANGES, 0, i)["learning_rate"] for i in range(1, 61)]
    decades = np.histogram(np.log10(values), bins=3, range=(-4, -1))[0]
    assert decades.min() >= 17  # of 20


def test_feasible_points_come_about_equally_often():
    values = [trial_point(RANGES, 0, i)["depth"] for i in range(1, 61)]
    assert all(values.count(choice) >= 15 for choice in (1, 2, "many"))


@pytest.mark.parametrize("seed", range(3))
def test_points_fill_the_square_better_than_random_ones(seed):
    space = {name: {"min": 0, "max": 1} for name in "xy"}
    points = [tuple(trial_point(space, seed, i).values()) for i in range(1, 65)]
    generator = np.random.default_rng(seed)
    others = [qmc.discrepancy(generator.random((64, 2))) for _ in range(50)]
    assert qmc.discrepancy(points) < np.quantile(others, 0.1)


def test_studies_and_seeds_get_other_points():
    base = _base()
    others = [base, _base(study=1), _base(seed=1)]
    found = {
        trial_configs(b, RANGES, [1])[0].hyperparameters["momentum"] for b in others
    }
    assert len(found) == 3


def test_seeds_differ_between_studies_trials_and_purposes():
    derived = [
        Seeds.derive(s, i, k) for s in (0, 1) for i in range(3) for k in range(5)
    ]
    assert len({seeds.trial_seed for seeds in derived}) == len(derived)
    assert len({seeds.data_seed for seeds in derived}) == len(derived)
    keys = {tuple(derived[0].key(purpose).tolist()) for purpose in range(4)}
    assert len(keys) == 4
    assert Seeds.derive(7, 2, 3) == Seeds.derive(7, 2, 3)
    assert Seeds.derive(7, 2, 3).study_seed == study_seed(7, 2)


def test_self_tuning_has_no_hyperparameters():
    (config,) = trial_configs(_base(), None, [1])
    assert config.hyperparameters is None
    assert as_namedtuple(None) is None


def test_a_point_is_read_by_attribute():
    point = as_namedtuple({"learning_rate": 0.1, "label_smoothing": None})
    assert point.learning_rate == 0.1
    assert hash(point) == hash(as_namedtuple(point._asdict()))
    assert is_point(point)
    assert not is_point((0.1, None))
    assert not hasattr(point, "dropout_rate")


def test_what_is_read_of_a_watched_point_is_known():
    read = set()
    point = as_namedtuple({"learning_rate": 0.1, "beta": 0.9, "decay": 0.0})
    seen = watched(point, read)
    assert is_point(seen)
    assert not hasattr(seen, "gamma")
    assert (seen == point, hash(seen) == hash(point), read) == (True, True, set())
    assert seen.beta == 0.9
    assert read == {"beta"}
    assert getattr(seen, "decay", 1.0) == 0.0
    assert read == {"beta", "decay"}
    assert seen._asdict() == point._asdict()
    assert read == set(point._fields)


def test_more_trials_than_points_is_refused():
    with pytest.raises(UserError, match=r"trial 9 asked for, but .* lists 8"):
        trial_configs(_base(), POINTS, range(1, 10))
    with pytest.raises(UserError, match="from 1"):
        trial_point(POINTS, 0, 0)


def test_configs_keep_what_they_do_not_set():
    base = dataclasses.replace(_base(), max_steps=5)
    assert all(c.max_steps == 5 for c in trial_configs(base, POINTS, [2, 4]))


@pytest.mark.parametrize("space", [RANGES, POINTS])
def test_a_good_space_is_read_as_it_is(tmp_path, space):
    (tmp_path / "space.json").write_text(json.dumps(space))
    assert load_search_space(tmp_path / "space.json") == space


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable JSON"),
        ("{'a': 1}", "not readable JSON"),
        ("\xff", "not readable JSON"),
        ("3", "must be a non-empty list or object"),
        ("null", "must be a non-empty list or object"),
        ("[]", "must be a non-empty list or object"),
        ("{}", "must be a non-empty object"),
        ("[{}]", "point 1 must be a non-empty object"),
        ('[{"a": 1}, 5]', "point 2 must be a non-empty object"),
        ('[{"a b": 1}]', "'a b' is no name"),
        ('[{"_a": 1}]', "'_a' is no name"),
        ('[{"1a": 1}]', "'1a' is no name"),
        ('[{"lambda": 1}]', "'lambda' is no name"),
        ('{"a": 1}', "'a' must be an object"),
        ('{"a": [1, 2]}', "'a' must be an object"),
        ('{"a": {}}', "'a' needs numbers min and max"),
        ('{"a": {"min": 1}}', "'a' needs numbers min and max"),
        ('{"a": {"min": "1", "max": 2}}', "'a' needs numbers min and max"),
        ('{"a": {"min": NaN, "max": 2}}', "'a' needs numbers min and max"),
        ('{"a": {"min": 1, "max": 1e999}}', "'a' needs numbers min and max"),
        ('{"a": {"min": 2, "max": 1}}', "min 2 is above max 1"),
        (
            '{"a": {"min": 0, "max": 1, "scaling": "log"}}',
            "log scaling needs min > 0, not 0",
        ),
        ('{"a": {"min": 0, "max": 1, "scaling": "cubic"}}', "allowed: linear, log"),
        ('{"a": {"feasible_points": []}}', "feasible_points must be a non-empty"),
        ('{"a": {"feasible_points": 3}}', "feasible_points must be a non-empty"),
        ('{"class": {"min": 0, "max": 1}}', "'class' is no name"),
    ],
)
def test_a_malformed_space_is_refused(tmp_path, text, says):
    path = tmp_path / "space.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=says) as caught:
        load_search_space(path)
    assert str(path) in str(caught.value)


def test_a_missing_space_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="--tuning_search_space, or use --ruleset self"):
        load_search_space(tmp_path / "none.json")
