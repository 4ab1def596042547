"""One contract test over all bundled submissions."""

import json

import jax
import pytest

from algoperf import contract, registry, tuning
from algoperf.submission import load_submission

NAMES = sorted(registry.submission_paths())


def _load(name):
    return load_submission(registry.find_submission(name))


@pytest.mark.parametrize("name", NAMES)
def test_docstring_and_search_space(name):
    submission = _load(name)
    assert submission.name == name
    first_line = submission.path.read_text().splitlines()[0]
    assert first_line.startswith('"""')
    assert len(first_line) > 20
    space = tuning.load_search_space(submission.default_search_space)
    assert tuning.trial_point(space, 0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_points_of_a_list_are_different(name):
    space = tuning.load_search_space(_load(name).default_search_space)
    if isinstance(space, list):
        assert len({json.dumps(point, sort_keys=True) for point in space}) == len(space)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["imagenet_resnet", "finewebedu_lm"])
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, workload):
    submission = _load(name)
    point = tuning.trial_point(
        tuning.load_search_space(submission.default_search_space), 0, 1
    )
    jax.clear_caches()
    problem = registry.find_workload(workload, "mini")
    assert contract.violations(submission, problem, point, steps=3) == []
