"""Submissions that train with `jax.pmap` run as they are, on one device and on more."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import BATCH_NORM, saved

from algoperf import contract, pmap_layout, records, runner
from algoperf.errors import UserError
from algoperf.loading import load_submission
from algoperf.submission import SubmissionFunctions

PMAP = Path(__file__).parent / "submissions" / "official_pmap"
WHOLE = """
import jax, optax
from algoperf.submission import from_optax

(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,
 data_selection) = from_optax(
    lambda workload, hyperparameters: optax.chain(
        optax.clip(10.0), optax.sgd(hyperparameters.learning_rate, momentum=0.9)
    ),
    batch_sizes={"synthetic": 32},
)
"""


CHECK = """
import json, sys
from pathlib import Path
from synthetic import BATCH_NORM
from algoperf import contract
from algoperf.loading import load_submission

found = contract.try_out(
    load_submission(Path(sys.argv[1])), BATCH_NORM, {"learning_rate": 0.1}, steps=4
)
print(json.dumps(found.violations))
"""


def _losses(out):
    (path,) = out.rglob(records.EVAL_FILE)
    with open(path, newline="") as lines:
        return [float(row["validation/loss"]) for row in csv.DictReader(lines)]


def test_it_keeps_the_contract_and_goes_on_bit_for_bit_from_a_checkpoint():
    submission = load_submission(PMAP)
    assert (
        contract.try_out(submission, BATCH_NORM, {"learning_rate": 0.1}, 4).violations
        == []
    )


def test_it_trains_as_the_same_rule_on_whole_batches(tmp_path, make_config):
    whole = tmp_path / "whole.py"
    whole.write_text(WHOLE)
    params = []
    for path in (whole, PMAP):
        config = make_config(submission=load_submission(path), max_steps=4)
        assert runner.run_trial(config)["status"] == "completed"
        params.append(jax.tree.leaves(saved(config)[0].params))
    for one, other in zip(*params, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_on_four_devices_it_trains_as_on_whole_batches(tmp_path, drive):
    whole = tmp_path / "whole.py"
    whole.write_text(WHOLE)
    drive(whole, "synthetic_mini", tmp_path / "whole")
    seen = drive(PMAP, "synthetic_mini", tmp_path / "pmap", devices=4)
    assert seen["devices"]["device_count"] == 4
    expected = _losses(tmp_path / "whole")
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(_losses(tmp_path / "pmap"), expected, rtol=1e-5)


@pytest.mark.slow
def test_on_four_devices_it_keeps_the_contract():
    flag = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", CHECK, PMAP],
        cwd=Path(__file__).parents[1] / "helpers",
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def _functions(update):
    return SubmissionFunctions(
        get_batch_size=lambda name: 4,
        init_optimizer_state=lambda workload, params, state, point, rng: params,
        update_params=update,
        prepare_for_eval=update,
        data_selection=lambda workload, queue, *others: (next(queue), others),
    )


def test_the_axis_of_devices_comes_and_goes():
    seen = []

    def update(**arguments):
        seen.append(arguments)
        state = jax.tree.map(lambda x: x + 1, arguments["model_state"])
        return "optimizer", arguments["current_param_container"], state

    functions = pmap_layout.with_device_axis(_functions(update))
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    state = {"mean": jnp.zeros(3), "count": jnp.zeros((), jnp.int32)}
    inside = functions.init_optimizer_state(None, params, state, None, None)
    np.testing.assert_array_equal(inside["w"], params["w"][None])
    arguments = {"current_param_container": params, "model_state": state}
    optimizer, new_params, new_state = functions.update_params(**arguments)
    assert optimizer == "optimizer"
    assert seen[0]["model_state"]["mean"].shape == (1, 3)
    np.testing.assert_array_equal(new_params["w"], params["w"])
    np.testing.assert_array_equal(new_state["mean"], np.ones(3))
    assert new_state["count"].dtype == jnp.int32
    assert int(new_state["count"]) == 1
    queue = iter([{"inputs": jnp.zeros((8, 5))}])
    batch, (_, params_there, state_there) = functions.data_selection(
        None, queue, None, params, state
    )
    assert batch["inputs"].shape == (1, 8, 5)
    assert params_there["w"].shape == (1, 2, 3)
    assert state_there["mean"].shape == (1, 3)


def test_what_is_no_answer_is_handed_on_for_the_runner_to_name():
    functions = pmap_layout.with_device_axis(_functions(lambda **_: "nothing"))
    outputs = functions.update_params(current_param_container={}, model_state={})
    assert outputs == "nothing"


def test_it_runs_on_one_host_only(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    functions = pmap_layout.with_device_axis(_functions(lambda **_: None))
    with pytest.raises(UserError, match="one host"):
        functions.init_optimizer_state(None, {}, {}, None, None)
