"""One contract test over all bundled submissions."""

import dataclasses
import json

import jax
import pytest
from synthetic import BATCH_NORM

from algoperf import contract, registry, spec, tuning
from algoperf.errors import UserError
from algoperf.loading import load_submission

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
    assert len({json.dumps(point, sort_keys=True) for point in space}) == len(space)


def _try_out(name, problem, steps):
    submission = _load(name)
    point = tuning.trial_point(
        tuning.load_search_space(submission.default_search_space), 0, 1
    )
    return contract.try_out(submission, problem, point, steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    """With batch statistics, stopped and resumed too."""
    found = _try_out(name, BATCH_NORM, steps=4)
    assert (found.violations, found.unread) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("muon", "imagenet_resnet"),
        ("schedule_free_adamw", "finewebedu_lm"),
        ("data_selection", "ogbg"),
        ("sam", "librispeech_conformer"),
    ],
)
def test_contract_on_a_workload(name, workload):
    jax.clear_caches()
    problem = registry.find_workload(workload, "mini")
    assert _try_out(name, problem, steps=3).violations == []


@pytest.mark.parametrize("name", ["prodigy", "schedule_free_adamw"])
def test_a_setting_for_the_self_tuning_ruleset(name):
    functions = _load(name).functions
    params, state = BATCH_NORM.init_model_fn(jax.random.PRNGKey(0))
    functions.init_optimizer_state(BATCH_NORM, params, state, None, None)


def test_the_ensemble_needs_classes():
    functions = _load("infinite_compute").functions
    problem = dataclasses.replace(BATCH_NORM, loss_type=spec.LossType.CTC_LOSS)
    with pytest.raises(UserError, match="the loss of synthetic_bn_mini is CTC_LOSS"):
        functions.init_optimizer_state(problem, None, None, None, None)
