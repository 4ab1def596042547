"""How a trial ends that an error ends on one of its hosts."""

import pytest

from algoperf import failures
from algoperf.errors import UserError
from algoperf.hosts import Hosts
from algoperf.loading import load_submission
from algoperf.records import Status
from algoperf.runner import run_trial


class OneOfTwo(Hosts):
    """A host whose other one ends the trial with an error that can be mended."""

    told: BaseException | None = None

    def failure(self, error, text):
        self.told = error
        raise UserError("on host 0: asked to stop")


def test_a_host_that_is_asked_to_stop_tells_the_others_that_they_can_go_on(make_config):
    hosts = OneOfTwo(1, 2)
    status, message = failures.outcome(make_config(), EOFError("gone"), hosts, True)
    assert status is Status.PREEMPTED
    assert message == "asked to stop; go on with --resume (EOFError: gone)"
    assert isinstance(hosts.told, UserError)


def test_an_error_that_nobody_asked_for_is_a_failure(make_config):
    found = failures.outcome(make_config(), EOFError("gone"), Hosts(), False)
    assert found == (Status.FAILED, "EOFError: gone")


SELF_TUNED = """
import optax
from algoperf.submission import from_optax

(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,
 data_selection) = from_optax(
    lambda workload, point: optax.sgd(point.momentum), self_tuned={"rate": 0.1}
)
"""
OWN = """
from algoperf.submission import from_optax

(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,
 data_selection) = from_optax(None, self_tuned={})


def init_optimizer_state(workload, params, model_state, hyperparameters, rng):
    return hyperparameters.momentum
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SELF_TUNED, "which its self_tuned lacks; add it there, beside rate"),
        (OWN, "reads 'momentum' of hyperparameters, and --ruleset self gives none; ru"),
    ],
)
def test_what_self_tuning_lacks_is_said(make_config, tmp_path, text, says):
    file = tmp_path / "own.py"
    file.write_text(text)
    submission = load_submission(file)
    with pytest.raises(UserError, match=says):
        run_trial(
            make_config(submission=submission, ruleset="self", hyperparameters=None)
        )


def test_another_none_is_not_taken_for_the_hyperparameters(make_config, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("hyperparameters.momentum", "(None).momentum"))
    submission = load_submission(file)
    record = run_trial(
        make_config(submission=submission, ruleset="self", hyperparameters=None)
    )
    assert "'NoneType' object has no attribute 'momentum'" in record["message"]
    assert "own.py:" in record["message"]


def test_a_logged_array_is_named_where_it_is_logged(make_config, write_submission):
    submission = write_submission(
        """
own_update = update_params
def update_params(**arguments):
    logger = arguments["workload"].metrics_logger
    logger.append_scalar_metrics({"norms": arguments["rng"]}, 0)
    return own_update(**arguments)
"""
    )
    record = run_trial(make_config(submission=submission))
    assert record["status"] is Status.FAILED
    assert "append_scalar_metrics: norms has shape (2,); log" in record["message"]
    assert "adam.py:" in record["message"]
