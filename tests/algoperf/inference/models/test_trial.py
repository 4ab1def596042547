"""Parameters of a trial, from its folder: what is read, and what is an error."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from algoperf import records
from algoperf.checkpoint import Checkpoints, read_part
from algoperf.errors import UserError
from algoperf.inference.models import trial
from algoperf.runner import TrainState

RECORD = {
    "schema_version": records.SCHEMA_VERSION,
    "status": "completed",
    "submission": {"name": "adamw"},
    "workload": "finewebedu_lm_mini",
    "ruleset": "external",
    "study": 1,
    "trial": 2,
    "seeds": {"trial_seed": 7},
    "start_time": "2026-01-01T00:00:00+00:00",
}


def params_of(step):
    return {"a": {"kernel": jnp.full((2, 3), step, jnp.float32)}, "b": jnp.arange(step)}


def write_trial(folder, steps, evaluated):
    """A trial folder with checkpoints; the optimizer's state is as large again."""
    folder.mkdir(parents=True)
    (folder / records.RECORD_FILE).write_text(json.dumps(RECORD))
    checkpoints = Checkpoints(folder)
    for step in steps:
        params = params_of(step)
        state = TrainState(params, None, {"params": params, "count": 1}, step)
        rows = [{"global_step": at, "validation/ppl": 9.0 + at} for at in evaluated]
        checkpoints.save(step, state, {"step": step, "eval_rows": rows})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return write_trial(out / "adamw" / "trial_2", (3, 5), evaluated=(0, 3, 5))


def test_the_newest_parameters_are_read(folder):
    found = trial.read_trial(folder)
    assert found.step == 5
    assert set(found.params) == {"a", "b"}
    np.testing.assert_array_equal(found.params["a"]["kernel"], np.full((2, 3), 5.0))
    np.testing.assert_array_equal(found.params["b"], np.arange(5))
    assert found.evaluation == {"global_step": 5, "validation/ppl": 14.0}
    assert found.identity["submission"] == "adamw"
    assert found.identity["trial_seed"] == 7


def test_reading_changes_nothing(folder):
    before = sorted(path for path in folder.rglob("*"))
    trial.read_trial(folder)
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_broken_checkpoint_is_passed_over(tmp_path):
    folder = write_trial(tmp_path / "trial", (3, 5), evaluated=(3,))
    for path in (folder / "checkpoint_5").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    found = trial.read_trial(folder)
    assert found.step == 3
    assert found.evaluation["validation/ppl"] == 12.0


def test_parameters_that_were_not_evaluated_say_so(tmp_path):
    folder = write_trial(tmp_path / "trial", (4,), evaluated=(3,))
    assert trial.read_trial(folder).evaluation is None


def test_other_parts_are_read_by_their_name(folder):
    arrays, facts = read_part(folder, "optimizer_state")
    assert sorted(arrays) == [
        "['count']",
        "['params']['a']['kernel']",
        "['params']['b']",
    ]
    assert facts["step"] == 5


def test_trials_are_found_below_a_folder(folder):
    assert trial.find_trials(folder.parents[1]) == [folder]
    assert trial.find_trials(folder) == [folder]


def test_what_holds_no_trial_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no record"):
        trial.find_trials(tmp_path)
    with pytest.raises(UserError, match="is missing"):
        trial.read_trial(tmp_path)
    (tmp_path / records.RECORD_FILE).write_text(json.dumps(RECORD))
    with pytest.raises(UserError, match="--checkpoint_period_sec 0"):
        trial.read_trial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [records.RECORD_FILE]
