"""`algoperf check`: every violation has a name, a good submission has none."""

import dataclasses

import pytest
from synthetic import BATCH_NORM

from algoperf import contract
from algoperf.loading import load_submission
from algoperf.workload import derive

GOOD = """
import functools
import jax
import numpy as np
import optax
from algoperf import spec
from algoperf.submission import from_optax
(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,
 data_selection) = from_optax(lambda workload, point: optax.sgd(0.1, momentum=0.9))
"""

BAD = {
    "get_batch_size must raise ValueError": """
def get_batch_size(name):
    return {}[name] if name.startswith("a_") else 128
""",
    "must return a dict with 'inputs' and 'targets'": """
select = data_selection
def data_selection(*arguments):
    batch = dict(select(*arguments))
    return {"target": batch.pop("targets"), **batch}
""",
    "update_params changes the shapes or dtypes of the params: ['": """
update = update_params
def update_params(**arguments):
    state, params, model_state = update(**arguments)
    params = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    return state, params, model_state
""",
    "changes the shapes or dtypes of the optimizer_state": """
update = update_params
def update_params(**arguments):
    (state, step), params, model_state = update(**arguments)
    return (dict(trace=state), step), params, model_state
""",
    "must return (optimizer_state, params, model_state)": """
update = update_params
def update_params(**arguments):
    return update(**arguments)[:2]
""",
    "is a str, which no checkpoint can hold": """
init = init_optimizer_state
def init_optimizer_state(*arguments):
    state, step = init(*arguments)
    return state, step, "a word"
def update_params(**arguments):
    raise spec.TrainingCompleteError()
""",
    "did not change in 4 steps": """
(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,
 data_selection) = from_optax(lambda workload, point: optax.sgd(0.0))
""",
    "are not finite after 4 steps": """
(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,
 data_selection) = from_optax(lambda workload, point: optax.sgd(float("nan")))
""",
    "jit a function once": """
update = update_params
def update_params(**arguments):
    state, params, model_state = update(**arguments)
    params = jax.jit(lambda tree: jax.tree.map(lambda p: p * 1.0, tree))(params)
    return state, params, model_state
""",
    "stopped and resumed ends with other parameters": """
update = update_params
calls = [0]
def update_params(**arguments):
    state, params, model_state = update(**arguments)
    calls[0] += 1
    params = jax.tree.map(lambda p: p * (1.0 + 0.01 * calls[0]), params)
    return state, params, model_state
""",
    "get_batch_size must raise ValueError for a name that it does not know, it ret": """
def get_batch_size(workload_name):
    return {"synthetic_mini": 64, "synthetic_batch_norm_mini": 64}.get(workload_name)
""",
    "train/loss is nan at step 4": """
update = update_params
def update_params(**arguments):
    state, params, model_state = update(**arguments)
    return state, params, jax.tree.map(lambda x: x * float("nan"), model_state)
""",
    "RuntimeError: not today": """
def prepare_for_eval(**arguments):
    raise RuntimeError("not today")
""",
}


def _try_out(tmp_path, text):
    file = tmp_path / "attempt.py"
    file.write_text(text)
    return contract.try_out(load_submission(file), BATCH_NORM, {"x": 1.0}, steps=4)


def test_a_good_submission_has_none(tmp_path):
    found = _try_out(tmp_path, GOOD)
    assert (found.violations, found.unread) == ([], ["x"])


def test_hyperparameters_that_nothing_reads_are_named(tmp_path):
    for code, unread in {
        "point.x": [],
        "point._asdict()": [],
        "[*point]": [],
        "point[0]": [],
        "getattr(point, 'y', 1)": ["x"],
    }.items():
        text = GOOD.replace("optax.sgd(0.1", f"{code} and optax.sgd(0.1")
        assert _try_out(tmp_path, text).unread == unread, code
    text = GOOD + BAD["RuntimeError: not today"]  # what it reads later, none knows
    assert _try_out(tmp_path, text).unread == []


def test_no_time_ends_what_is_tried(tmp_path):
    """Two compilations may take longer than the budget, and one need not."""
    file = tmp_path / "attempt.py"
    file.write_text(GOOD)
    hurried = derive(BATCH_NORM, max_allowed_runtime_sec=1e-9)
    submission, seen = load_submission(file), []
    update = submission.functions.update_params

    def counted(**arguments):
        seen.append(arguments["global_step"])
        return update(**arguments)

    functions = submission.functions._replace(update_params=counted)
    submission = dataclasses.replace(submission, functions=functions)
    assert contract.try_out(submission, hurried, {"x": 1.0}, steps=4).violations == []
    assert seen == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("says", BAD)
def test_a_violation_is_named(tmp_path, says):
    found = _try_out(tmp_path, GOOD + BAD[says]).violations
    assert sum(says in violation for violation in found) == 1, found


@pytest.mark.parametrize("options", ["static_argnums=0", ""])
def test_a_point_may_go_through_jit(tmp_path, options):
    """Static or not: what is compiled for it once is not compiled again."""
    text = f"""
update = update_params
@functools.partial(jax.jit, {options})
def scaled(point, params):
    return jax.tree.map(lambda p: p * (1.0 - 1e-3 * point.x), params)
def update_params(**arguments):
    state, params, model_state = update(**arguments)
    return state, scaled(arguments["hyperparameters"], params), model_state
"""
    found = _try_out(tmp_path, GOOD + text)
    assert (found.violations, found.unread) == ([], [])
