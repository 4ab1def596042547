"""The story of a trial: what it does, in which order, and what it leaves."""

import csv
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from synthetic import (
    BATCH_NORM,
    SYNTHETIC,
    assert_same_results,
    replaced,
    rows_of,
    saved,
)

from algoperf import records
from algoperf.records import Status
from algoperf.runner import run_study, run_trial
from algoperf.trials import trial_configs
from algoperf.workload import derive

HERE = Path(__file__).parent
OFFICIAL = {
    "accumulated_submission_time",
    "accumulated_eval_time",
    "accumulated_logging_time",
    "global_step",
    "preemption_count",
    "score",
    "total_duration",
    "train/loss",
    "train/accuracy",
    "validation/loss",
    "validation/accuracy",
    "validation/num_examples",
    "test/loss",
    "test/accuracy",
    "test/num_examples",
}


@pytest.fixture
def columns():
    """Reads the header of a CSV of the record."""

    def read(config, file=records.EVAL_FILE):
        with open(config.folder / file, newline="") as lines:
            return next(csv.reader(lines))

    return read


def test_a_trial_leaves_a_whole_record(make_config, columns):
    config = make_config(study=2, trial=3, seed=5)
    record = run_trial(config, flags={"a": 1})
    folder = config.folder
    assert folder.parts[-3:] == ("study_2", "synthetic_mini_jax", "trial_3")
    written = records.read_record(folder)
    assert written == json.loads(json.dumps(record))
    assert written["status"] is Status.COMPLETED
    assert written["message"] == "target not reached: max_steps"
    assert written["global_step"] == written["data_position"] == 12
    assert written["batch_size"] == 32
    assert written["seeds"]["seed"] == 5
    assert written["target"]["metric"] == "accuracy"
    assert written["devices"]["device_count"] == jax.device_count()
    assert written["versions"]["jax"] == jax.__version__
    assert written["submission"]["sha256"] == config.submission.sha256
    assert written["num_parameters"] == SYNTHETIC.num_parameters
    assert set(columns(config)) == OFFICIAL
    assert [row["global_step"] for row in rows_of(config)] == [0, 4, 8, 12]
    assert {"loss", "grad_norm"} <= set(columns(config, records.MEASUREMENTS_FILE))
    assert json.loads((folder / "hparams.json").read_text()) == config.hyperparameters
    assert json.loads((folder / "flags_0.json").read_text()) == {"a": 1}
    assert json.loads((folder / "meta_data_0.json").read_text())["host"]["cores"]
    assert not list(folder.glob(".*"))  # no temporary file


def test_training_makes_the_model_better(make_config):
    config = make_config(max_steps=40, eval_period_steps=40)
    run_trial(config)
    first, last = rows_of(config)
    assert last["validation/loss"] < 0.8 * first["validation/loss"]


def test_functions_are_called_in_order_with_the_official_arguments(make_config):
    config = make_config(max_steps=4, eval_period_steps=2)
    functions, calls = config.submission.functions, []

    def watched(name):
        function = getattr(functions, name)

        def call(*arguments, **keywords):
            step = keywords["global_step"] if keywords else arguments[6]
            calls.append((name, int(step)))
            return function(*arguments, **keywords)

        return call

    names = ("data_selection", "update_params", "prepare_for_eval")
    run_trial(replaced(config, **{name: watched(name) for name in names}))
    select, update, prepare = names
    assert calls == [
        *[(select, 0), (update, 0), (select, 1), (update, 1), (prepare, 2)],
        *[(select, 2), (update, 2), (select, 3), (update, 3), (prepare, 4)],
    ]


def test_the_submission_sees_the_evaluations_and_a_read_only_workload(make_config):
    config = make_config(max_steps=6, eval_period_steps=2)
    update, seen = config.submission.functions.update_params, []

    def watched(**arguments):
        seen.append([step for step, _ in arguments["eval_results"]])
        with pytest.raises(dataclasses.FrozenInstanceError):
            arguments["workload"].validation_target_value = 0.0
        assert arguments["eval_results"][0][1]["validation/loss"] > 0
        return update(**arguments)

    record = run_trial(replaced(config, update_params=watched))
    assert record["status"] is Status.COMPLETED, record["message"]
    assert seen == [[0], [0], [0, 2], [0, 2], [0, 2, 4], [0, 2, 4]]


def test_data_selection_may_take_more_than_one_batch(make_config):
    config = make_config(max_steps=4)
    select = config.submission.functions.data_selection

    def every_second(workload, queue, *rest):
        next(queue)
        return select(workload, queue, *rest)

    config = replaced(config, data_selection=every_second)
    assert run_trial(config)["data_position"] == 8
    assert saved(config)[1]["data_position"] == 8


def test_evaluations_are_due_by_submission_time_too(make_config):
    ticks = itertools.count()
    workload = derive(
        SYNTHETIC,
        eval_period_steps=None,
        eval_period_time_sec=20.0,
        max_allowed_runtime_sec=1e6,
    )
    config = make_config(workload=workload, max_steps=40)
    run_trial(config, now=lambda: float(next(ticks)))
    times = [row[records.SUBMISSION_TIME] for row in rows_of(config)]
    assert len(times) >= 4
    gaps = [b - a for a, b in itertools.pairwise(times[:-1])]
    assert all(20 <= gap < 45 for gap in gaps)


def test_the_same_config_gives_the_same_numbers_and_others_do_not(
    make_config, tmp_path
):
    base = make_config(workload=BATCH_NORM)
    same = dataclasses.replace(base, out=tmp_path / "same")
    others = [
        dataclasses.replace(base, **change)
        for change in (
            {"trial": 2},
            {"study": 1},
            {"seed": 1, "out": tmp_path / "seed"},
        )
    ]
    for config in (base, same, *others):
        run_trial(config)
    assert_same_results(base, same)
    losses = {rows_of(config)[-1]["train/loss"] for config in (base, *others)}
    assert len(losses) == 4


def test_a_study_runs_its_trials_and_no_trial_uses_anothers_compilation(make_config):
    space = [{"learning_rate": 0.01}, {"learning_rate": 0.01}]
    configs = trial_configs(make_config(max_steps=4), space, [1, 2])
    finished = []
    found = run_study(configs, finished=lambda config, _: finished.append(config.trial))
    assert [record["trial"] for record in found] == finished == [1, 2]
    first, second = (record["compile"]["submission"] for record in found)
    assert second > 0.3 * first


def test_a_stopped_study_starts_no_further_trial(make_config):
    configs = trial_configs(make_config(), [{"learning_rate": 0.1}] * 2, [1, 2])
    stop = []
    found = run_study(
        configs, should_stop=lambda: bool(stop), watch=lambda *_: stop.append(1)
    )
    assert [record["status"] for record in found] == [Status.PREEMPTED]


@pytest.mark.parametrize("workload", [SYNTHETIC, BATCH_NORM], ids=lambda w: w.name)
def test_the_train_step_is_compiled_once(make_config, workload):
    compiled = []

    def listen(event, duration, fun_name="", **_):
        if event.endswith("backend_compile_duration") and fun_name == "jit(step)":
            compiled.append(fun_name)

    config = make_config(workload=workload, max_steps=20, eval_period_steps=10)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run_trial(config)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1
    assert saved(config)[1]["step"] == 20


@pytest.mark.parametrize("workload", ["synthetic_mini", "synthetic_bn_mini"])
def test_the_train_step_is_compiled_once_on_four_devices(tmp_path, drive, workload):
    seen = drive(HERE / "submissions/adam.py", workload, tmp_path, devices=4)
    assert seen["devices"]["device_count"] == 4
    assert seen["compiled"]["jit(step)"] == 1
    assert seen["compiled"]["jit(evaluation_step)"] == 1


def test_four_devices_train_as_one_does(tmp_path, drive):
    tables = []
    for devices in (1, 4):
        out = tmp_path / str(devices)
        drive(HERE / "submissions/adam.py", "synthetic_mini", out, devices=devices)
        tables.append(records.read_measurements(*out.rglob(records.EVAL_FILE)))
    for one, four in zip(*tables, strict=True):
        assert four["validation/loss"] == pytest.approx(
            one["validation/loss"], rel=1e-4
        )


def test_importing_the_runner_starts_no_device():
    code = (
        "import algoperf.runner, jax; "
        "assert not jax._src.xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
