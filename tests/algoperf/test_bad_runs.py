"""A trial that goes wrong is a result: a status, a message, a readable record."""

import dataclasses
import itertools
import json
import re

import pytest
from synthetic import SYNTHETIC, Synthetic, replaced, rows_of

from algoperf import records, spec
from algoperf.records import Status
from algoperf.runner import run_study, run_trial
from algoperf.trials import trial_configs
from algoperf.workload import derive
from scoring import load_rules, read_runs, score_runs

WRAP = """
_original = {name}
def {name}(*arguments, **keywords):
    step = keywords.get("global_step", arguments[6] if len(arguments) > 6 else 0)
    if step == {step}:
        {statement}
    return _original(*arguments, **keywords)
"""


def _wrap(name, statement, step=5):
    return WRAP.format(name=name, statement=statement, step=step)


@pytest.fixture
def assert_not_reached(tmp_path):
    """Reads the record as `algoperf score` does: the trial counts as a miss."""
    path = tmp_path / "rules.json"
    goal = {"metric": "accuracy", "direction": "maximize", "validation_target": 0.999}
    once = {"studies": 1, "trials": 1}
    rules = {
        "name": "synthetic",
        "r_max": 4.0,
        "rulesets": {"external": once, "self": once},
        "base_workloads": [SYNTHETIC.name],
        "held_out": {},
        "workloads": {SYNTHETIC.name: goal},
    }
    path.write_text(json.dumps(rules))

    def check(config, status):
        assert records.read_record(config.folder)["status"] is status
        runs = read_runs([config.out])
        assert [trial.status for trial in runs.trials] == [status]
        assert not runs.skipped
        result = score_runs(runs, load_rules(path))
        assert result.times.tolist() == [[float("inf")]]
        assert result.scores.tolist() == [0.0]

    return check


def test_a_loss_that_is_not_finite_is_divergence(make_config, assert_not_reached):
    config = make_config(hyperparameters={"learning_rate": 1e38})
    record = run_trial(config)
    assert record["status"] is Status.DIVERGED
    assert "train/loss is" in record["message"]
    assert "at step 4; try a lower learning rate" in record["message"]
    assert [row["global_step"] for row in rows_of(config)] == [0, 4]
    assert_not_reached(config, Status.DIVERGED)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("update_params", 5),
        ("data_selection", 5),
        ("prepare_for_eval", 8),
        ("init_optimizer_state", 0),
    ],
)
def test_an_exception_is_kept_with_its_place(
    make_config, assert_not_reached, name, step
):
    text = _wrap(name, 'raise RuntimeError("not\\ntoday")', step)
    config = make_config(text)
    record = run_trial(config)
    assert record["status"] is Status.FAILED
    lines = config.submission.path.read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "raise RuntimeError" in text)
    place = f"({config.submission.path}:{line})"
    assert record["message"] == f"RuntimeError: not {place}"
    assert "Traceback" in record["traceback"]
    assert f'raise RuntimeError("not\\ntoday")' in record["traceback"]  # noqa: F541
    written = [] if step == 0 else [row["global_step"] for row in rows_of(config)]
    assert written == {0: [], 5: [0, 4], 8: [0, 4]}[step]
    assert_not_reached(config, Status.FAILED)


def test_a_submission_that_exits_ends_its_trial_alone(make_config):
    config = make_config(_wrap("update_params", "raise SystemExit(0)"))
    configs = [config, dataclasses.replace(config, trial=2, max_steps=4)]
    found = run_study(configs)
    assert [r["status"] for r in found] == [Status.FAILED, Status.COMPLETED]
    assert found[0]["message"].startswith("SystemExit: 0 (")


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError()",
        "RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes')",
        "__import__('jax').errors.JaxRuntimeError('RESOURCE_EXHAUSTED: full')",
    ],
)
def test_no_memory_says_so(make_config, assert_not_reached, error):
    config = make_config(_wrap("update_params", f"raise {error}"))
    record = run_trial(config)
    assert record["status"] is Status.FAILED
    assert record["message"].startswith("out of memory, try a smaller batch")
    assert_not_reached(config, Status.FAILED)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("update_params", "None", "got NoneType"),
        ("update_params", "(1, 2)", "got 2 values"),
        ("prepare_for_eval", "{'params': 1}", "got dict"),
    ],
)
def test_a_wrong_return_value_is_named(
    make_config, assert_not_reached, name, value, says
):
    step = 5 if name == "update_params" else 8
    config = make_config(_wrap(name, f"return {value}", step))
    record = run_trial(config)
    assert record["status"] is Status.FAILED
    wanted = f"{name} must return (optimizer_state, params, model_state), {says}"
    assert wanted in record["message"]
    assert_not_reached(config, Status.FAILED)


@pytest.mark.parametrize("name", ["update_params", "prepare_for_eval"])
def test_params_of_another_type_are_named(make_config, assert_not_reached, name):
    """At the first step: later the model would compute with less, unsaid."""
    config = make_config(
        f"""
import jax
_original = {name}
def {name}(**arguments):
    state, params, model_state = _original(**arguments)
    return state, jax.tree.map(lambda p: p.astype("bfloat16"), params), model_state
"""
    )
    record = run_trial(config)
    assert record["status"] is Status.FAILED
    wanted = (
        rf"TypeError: {name} changes the shapes or dtypes of the params: \['.*'\] was "
    )
    wanted += r"float32\[(.*)\], is bfloat16\[\1\]"
    assert re.fullmatch(wanted, record["message"])
    assert_not_reached(config, Status.FAILED)


def test_a_hyperparameter_read_late_is_named(make_config, assert_not_reached):
    statement = "keywords['hyperparameters'].momentum"
    config = make_config(_wrap("update_params", statement))
    record = run_trial(config)
    assert record["status"] is Status.FAILED
    assert "adam reads the hyperparameter 'momentum'" in record["message"]
    assert_not_reached(config, Status.FAILED)


@pytest.mark.parametrize(("ruleset", "budget"), [("external", 100), ("self", 150)])
def test_a_spent_budget_ends_the_trial_between_evaluations(
    make_config, assert_not_reached, clock, ruleset, budget
):
    point = {"learning_rate": 0.01} if ruleset == "external" else None
    config = make_config(
        workload=derive(SYNTHETIC, max_allowed_runtime_sec=100.0, eval_period_steps=4),
        ruleset=ruleset,
        hyperparameters=point,
        max_steps=None,
    )
    update, seen = config.submission.functions.update_params, []

    def slow(**arguments):
        clock.sleep(9.0)
        seen.append(arguments["hyperparameters"])
        return update(**arguments)

    record = run_trial(replaced(config, update_params=slow), now=clock)
    assert record["status"] is Status.BUDGET
    assert record["budget_sec"] == budget
    assert record["message"] == f"{budget} s are spent"
    steps = budget // 9 + 1
    assert record["global_step"] == steps
    assert record["clock"]["submission"] == 9.0 * steps
    assert [row["global_step"] for row in rows_of(config)] == [*range(0, steps, 4)]
    assert all(row["accumulated_submission_time"] <= budget for row in rows_of(config))
    assert (seen[0] is None) == (ruleset == "self")
    assert record["hyperparameters"] == point
    assert_not_reached(config, Status.BUDGET)


def test_a_budget_spent_while_preparing_ends_the_trial_unevaluated(
    make_config, assert_not_reached, clock
):
    config = make_config(workload=derive(SYNTHETIC, max_allowed_runtime_sec=100.0))
    prepare = config.submission.functions.prepare_for_eval

    def slow(**arguments):
        clock.sleep(60.0)
        return prepare(**arguments)

    record = run_trial(replaced(config, prepare_for_eval=slow), now=clock)
    assert record["status"] is Status.BUDGET
    assert record["clock"]["submission"] == 120
    assert [row["global_step"] for row in rows_of(config)] == [0, 4]
    assert_not_reached(config, Status.BUDGET)


def test_data_that_cannot_be_read_fail_the_trial(
    make_config, assert_not_reached, monkeypatch
):
    dataset = Synthetic.dataset

    def broken(workload, split, batch_size, seed):
        found = dataset(workload, split, batch_size, seed)
        return found.map(unreadable) if split == "train" else found

    def unreadable(batch):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Synthetic, "dataset", broken)
    config = make_config()
    record = run_trial(config)
    assert record["status"] is Status.FAILED
    assert record["message"].startswith("OSError: the disk is gone")
    assert "unreadable" in record["traceback"]
    assert_not_reached(config, Status.FAILED)


@pytest.mark.parametrize(("last", "steps"), [(6, [0, 4, 6]), (8, [0, 4, 8])])
@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_submission_that_is_done_gets_one_last_evaluation(
    make_config, assert_not_reached, last, steps, is_stopped
):
    """And no second one where a period ends with it, also if stopped just there."""
    config = make_config()
    update, made = config.submission.functions.update_params, []

    def until_last(**arguments):
        if arguments["global_step"] == last:
            raise spec.TrainingCompleteError
        made.append(arguments["global_step"])
        return update(**arguments)

    config = replaced(config, update_params=until_last)
    if is_stopped:
        record = run_trial(config, should_stop=lambda: len(made) == last)
        assert record["status"] is Status.PREEMPTED
    record = run_trial(config, resume=True)
    assert made == list(range(last))
    assert record["status"] is Status.COMPLETED
    assert record["message"] == "target not reached: the submission is done"
    assert [row["global_step"] for row in rows_of(config)] == steps
    assert_not_reached(config, Status.COMPLETED)


def test_the_target_ends_the_trial_at_its_evaluation(make_config, tmp_path):
    whole = make_config(max_steps=40, out=tmp_path / "whole")
    run_trial(whole)
    rows = rows_of(whole)
    values = [row["validation/accuracy"] for row in rows]
    best = max(values[1:])
    assert best > values[0]
    config = make_config(
        max_steps=40, workload=derive(SYNTHETIC, validation_target_value=best)
    )
    record = run_trial(config)
    assert record["status"] is Status.REACHED
    assert record["global_step"] == rows[values.index(best)]["global_step"]
    assert rows_of(config)[-1]["global_step"] == record["global_step"]
    assert (config.folder / f"checkpoint_{record['global_step']}").is_dir()


def test_other_trials_go_on_after_a_bad_one(make_config):
    text = _wrap(
        "update_params", "assert keywords['hyperparameters'].learning_rate < 1", 2
    )
    space = [{"learning_rate": rate} for rate in (0.01, 2.0, 1e38, 0.02)]
    configs = trial_configs(make_config(text), space, range(1, 5))
    statuses = [record["status"] for record in run_study(configs)]
    completed, failed = Status.COMPLETED, Status.FAILED
    assert statuses == [completed, failed, failed, completed]
    for config, status in zip(configs, statuses, strict=True):
        assert records.read_record(config.folder)["status"] is status


def test_the_record_can_be_read_at_any_moment_of_a_run(make_config):
    config = make_config()
    statuses = []

    def watch(_):
        statuses.append(records.read_record(config.folder)["status"])
        if (config.folder / records.EVAL_FILE).exists():
            rows_of(config)
            read_runs([config.out])

    run_trial(config, watch=watch)
    assert set(statuses) == {Status.RUNNING}
    assert len(statuses) == 12 + 4


def test_a_failed_trial_says_how_far_it_came(make_config):
    ticks = itertools.count()
    config = make_config(_wrap("update_params", "1 / 0", 7))
    record = run_trial(config, now=lambda: float(next(ticks)))
    assert record["global_step"] == 7
    assert record["clock"]["submission"] > 0
    again = run_trial(dataclasses.replace(config), resume=True)
    assert again["status"] is Status.FAILED
