"""A run that was stopped or killed and resumed ends as one that never was."""

import dataclasses
import itertools
import logging as python_logging
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from synthetic import (
    BATCH_NORM,
    assert_same_results,
    kill_at,
    replaced,
    rows_of,
    run_until,
    saved,
)

from algoperf import hardware, records
from algoperf.checkpoint import Checkpoints
from algoperf.loading import load_submission
from algoperf.recorder import Recorder
from algoperf.records import Status
from algoperf.registry import find_submission, find_workload
from algoperf.runner import run_trial
from algoperf.sharding import Placement
from algoperf.trials import TrialConfig
from algoperf.tuning import load_search_space, trial_point
from algoperf.workload import derive

DRIVER = Path(__file__).resolve().parents[1] / "helpers" / "drive.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trial with batch norm and dropout that ran without a stop."""
    config = TrialConfig(
        submission=load_submission(Path(__file__).parent / "submissions/adam.py"),
        workload=BATCH_NORM,
        hyperparameters={"learning_rate": 0.01, "dropout_rate": 0.2},
        out=tmp_path_factory.mktemp("whole"),
        max_steps=12,
        checkpoint_period_sec=0.0,
    )
    assert run_trial(config)["status"] is Status.COMPLETED
    return config


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory):
    """The same trial, killed two steps after a checkpoint."""
    config = dataclasses.replace(whole, out=tmp_path_factory.mktemp("killed"))
    kill_at(config, 10)
    return config


@pytest.fixture
def parts(whole, tmp_path):
    """The same trial, in a folder of its own, not run yet."""
    return dataclasses.replace(whole, out=tmp_path / "parts")


@pytest.mark.parametrize("step", [0, 4, 7])
def test_stopped_and_resumed(whole, parts, step):
    assert run_until(parts, step)["status"] is Status.PREEMPTED
    assert run_trial(parts, resume=True)["status"] is Status.COMPLETED
    assert_same_results(whole, parts)


def test_stopped_again_and_again(whole, parts):
    for step in (3, 8):
        assert run_until(parts, step, resume=True)["status"] is Status.PREEMPTED
    record = run_trial(parts, resume=True)
    assert record["preemption_count"] == 2
    assert_same_results(whole, parts)
    counts = [row[records.PREEMPTION_COUNT] for row in rows_of(parts)]
    assert counts == [0, 1, 1, 2]
    for part in range(3):
        assert (parts.folder / f"meta_data_{part}.json").exists()
        assert (parts.folder / f"flags_{part}.json").exists()


@pytest.mark.parametrize("step", [2, 11])
def test_killed_after_a_step_and_resumed(whole, parts, step):
    kill_at(parts, step)
    assert records.read_record(parts.folder)["status"] is Status.RUNNING
    assert run_trial(parts, resume=True)["status"] is Status.COMPLETED
    assert_same_results(whole, parts)


def test_killed_between_evaluation_and_checkpoint(whole, parts):
    kill_at(parts, 8, after_evaluation=True)
    assert rows_of(parts)[-1][records.GLOBAL_STEP] == 8
    assert saved(parts)[1]["step"] == 4
    run_trial(parts, resume=True)
    assert_same_results(whole, parts)


def test_what_a_resumed_trial_does_not_come_to_again_is_no_evaluation(whole, parts):
    """An evaluation after the last checkpoint; the trial ends before it is repeated."""
    kill_at(parts, 8, after_evaluation=True)
    record = run_trial(parts, resume=True, should_stop=lambda: True)
    assert record["status"] is Status.PREEMPTED
    assert record["global_step"] == 4
    assert [row[records.GLOBAL_STEP] for row in rows_of(parts)] == [0, 4]
    table = records.read_measurements(parts.folder / records.MEASUREMENTS_FILE)
    assert max(row[records.GLOBAL_STEP] for row in table) <= 4


def test_stopping_right_after_a_checkpoint_leaves_it_alone(parts, monkeypatch):
    """Saving again would first delete it, and a kill may come between the two."""
    steps: list[int] = []
    save = Checkpoints.save

    def count(self, step, *rest):
        steps.append(step)
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", count)
    assert run_until(parts, 4)["status"] is Status.PREEMPTED
    at_once = run_trial(parts, resume=True, should_stop=lambda: True)
    assert at_once["status"] is Status.PREEMPTED
    assert steps == [4]
    assert run_until(parts, 5, resume=True)["status"] is Status.PREEMPTED
    assert steps == [4, 5]


@pytest.mark.parametrize("name", ["data_selection", "prepare_for_eval"])
def test_an_error_after_the_request_to_stop_ends_no_trial(whole, parts, name):
    """As of a process that makes batches, which the same signal has ended."""
    function = getattr(parts.submission.functions, name)
    asked = []

    def interrupted(*arguments, **keywords):
        if keywords.get("global_step", arguments[6] if arguments else None) == 8:
            asked.append(True)
            raise RuntimeError("Worker process was terminated unexpectedly")
        return function(*arguments, **keywords)

    stopped = replaced(parts, **{name: interrupted})
    record = run_trial(stopped, should_stop=lambda: bool(asked))
    assert record["status"] is Status.PREEMPTED
    assert "asked to stop; go on with --resume (RuntimeError: W" in record["message"]
    assert "interrupted" in record["traceback"]
    record = run_trial(parts, resume=True)
    assert record["status"] is Status.COMPLETED
    assert "traceback" not in record
    assert_same_results(whole, parts)


@pytest.mark.parametrize("ends", ["max_steps", "target", "diverged"])
def test_killed_between_the_last_checkpoint_and_the_end(
    make_config, tmp_path, monkeypatch, ends
):
    facts = {}
    if ends == "target":
        facts["workload"] = derive(BATCH_NORM, validation_target_value=0.01)
    if ends == "diverged":
        facts["hyperparameters"] = {"learning_rate": 1e38}
    config = make_config(**facts)
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finish", _killed)
        with pytest.raises(KeyboardInterrupt):
            run_trial(config)
    rows = rows_of(config)
    record = run_trial(config, resume=True)
    again = run_trial(dataclasses.replace(config, out=tmp_path / "whole"))
    assert record["status"] is again["status"]
    assert record["message"] == again["message"]
    assert record["global_step"] == again["global_step"]
    steps = [row[records.GLOBAL_STEP] for row in rows_of(config)]
    assert steps == [row[records.GLOBAL_STEP] for row in rows]


def _killed(*_):
    raise KeyboardInterrupt


@pytest.fixture
def run_on(monkeypatch):
    """Runs a trial on what says that it is such a device, up to a step if given."""

    def run(kind, config, step=math.inf):
        with monkeypatch.context() as patch:
            patch.setattr(hardware, "describe_devices", lambda: {"device_kind": kind})
            return run_until(config, step, resume=True)

    return run


def test_what_earlier_parts_ran_on_stays_in_the_record(parts, run_on):
    parts = dataclasses.replace(parts, budget_ratio=math.inf)
    assert run_on("A", parts, 2)["earlier_environments"] == []
    assert run_on("A", parts, 3)["earlier_environments"] == []
    sharded = dataclasses.replace(parts.workload, placement=Placement("fsdp"))
    parts = dataclasses.replace(parts, workload=sharded)
    for kind, step in [("B", 4), ("A", 6), ("B", 12)]:
        record = run_on(kind, parts, step)
        assert record["devices"] == {"device_kind": kind}
        assert record["placement"]["kind"] == "fsdp"
    assert record["status"] is Status.COMPLETED
    written = records.read_record(parts.folder)["earlier_environments"]
    found = [(e["devices"]["device_kind"], e["placement"]["kind"]) for e in written]
    assert found == [("A", "replicated"), ("B", "fsdp"), ("A", "fsdp")]
    names = {"host", "devices", "versions", "git_revision", "placement"}
    assert all(set(environment) == names for environment in written)


def test_what_begins_anew_has_no_earlier_part(parts, run_on):
    kill_at(parts, 2)  # before the first checkpoint
    record = run_on("B", parts)
    assert record["status"] is Status.COMPLETED
    assert record["earlier_environments"] == []


def _kinds(environments):
    return [environment["devices"]["device_kind"] for environment in environments]


def test_an_error_before_the_checkpoint_is_read_forgets_no_part(
    parts, run_on, monkeypatch
):
    """Asked to stop while it begins, on a third machine; then it goes on on the 2nd."""
    parts = dataclasses.replace(parts, budget_ratio=math.inf)
    run_on("A", parts, 4)
    assert _kinds(run_on("B", parts, 6)["earlier_environments"]) == ["A"]

    def interrupted(*_):
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "restore", interrupted)
        record = run_on("C", parts, 0)
    assert record["status"] is Status.PREEMPTED
    assert record["devices"] == {"device_kind": "B"}
    assert _kinds(record["earlier_environments"]) == ["A"]
    record = run_on("B", parts)
    assert record["status"] is Status.COMPLETED
    assert _kinds(record["earlier_environments"]) == ["A"]


def test_a_part_that_was_killed_before_it_saved_anything_is_none(
    parts, run_on, monkeypatch
):
    run_on("A", parts, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", _killed)
        with pytest.raises(KeyboardInterrupt):
            run_on("B", parts, 6)
    written = records.read_record(parts.folder)
    assert _kinds([*written["earlier_environments"], written]) == ["A", "B"]
    record = run_on("A", parts)
    assert record["status"] is Status.COMPLETED
    assert record["earlier_environments"] == []


def test_a_checkpoint_of_an_older_version_does_not_say_what_it_ran_on(
    parts, run_on, monkeypatch
):
    history = Recorder.history

    def without(self):
        rows = history(self)
        del rows["environments"]
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "history", without)
        run_on("A", parts, 4)
        run_on("B", parts, 6)
    record = run_on("C", parts)
    assert record["status"] is Status.COMPLETED
    assert _kinds(record["earlier_environments"]) == ["A", "B"]


def test_the_clock_goes_on_where_the_checkpoint_was(parts):
    ticks = itertools.count()
    run_until(parts, 6, now=lambda: float(next(ticks)))
    before = saved(parts)[1]["clock"]
    later = itertools.count(10**6)  # another process, another origin
    record = run_trial(parts, resume=True, now=lambda: float(next(later)))
    for phase, seconds in record["clock"].items():
        assert before[phase] <= seconds < before[phase] + 1000
    totals = [row[records.TOTAL_TIME] for row in rows_of(parts)]
    assert totals == sorted(totals)
    assert record["step_time"]["windows"] >= 0


def test_optimizer_state_of_all_kinds_is_restored(make_config, tmp_path):
    """Counters in Python and NumPy decide the training, if they are not lost."""
    text = (
        "import jax, numpy as np\n"
        "init, update = init_optimizer_state, update_params\n"
        "def init_optimizer_state(*arguments):\n"
        "    return init(*arguments), {'calls': 0, 'mean': np.zeros(2)}\n"
        "def update_params(**arguments):\n"
        "    state, own = arguments.pop('optimizer_state')\n"
        "    state, params, rest = update(**arguments, optimizer_state=state)\n"
        "    own = {'calls': own['calls'] + 1, 'mean': own['mean'] * 0.5 + 1}\n"
        "    factor = 1 - 0.01 * own['calls'] * own['mean'][0].astype(np.float32)\n"
        "    params = jax.tree.map(lambda p: p * np.float32(factor), params)\n"
        "    return (state, own), params, rest\n"
    )
    config = make_config(text)
    run_until(config, 5)
    run_trial(config, resume=True)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    run_trial(whole)
    assert_same_results(config, whole)
    assert saved(config)[0].optimizer_state[1]["calls"] == 12


def _empty(path):
    path.write_bytes(b"")


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.usefixtures("_collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("arrays/d/*", _cut),
        ("arrays/d/*", Path.unlink),
        ("arrays/_METADATA", _empty),
        ("facts/metadata", _cut),
    ],
)
def test_the_checkpoint_before_a_broken_one_is_used(
    whole, killed, parts, file, damage, caplog
):
    shutil.copytree(killed.out, parts.out)
    (broken,) = (parts.folder / "checkpoint_8").glob(file)
    damage(broken)
    with caplog.at_level(python_logging.WARNING):
        record = run_trial(parts, resume=True)
    assert record["status"] is Status.COMPLETED, record["message"]
    assert "checkpoint 8 cannot be read" in caplog.text
    assert_same_results(whole, parts)


def test_resuming_a_finished_trial_touches_nothing(whole):
    def look():
        files = [p for p in whole.folder.rglob("*") if p.is_file()]
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}

    def never(*_, **__):
        raise AssertionError("was called")

    before = look()
    silent = replaced(whole, init_optimizer_state=never, update_params=never)
    record = run_trial(silent, resume=True)
    assert record["status"] is Status.COMPLETED
    assert look() == before


def _drive(out, *more):
    command = [sys.executable, DRIVER, find_submission("adamw"), "imagenet_resnet"]
    steps = ["--max_steps=60", "--eval_period_steps=10"]
    return subprocess.Popen([*map(str, command), str(out), *steps, *more])


@pytest.mark.slow
def test_sigkill_at_a_random_moment_of_a_real_run(tmp_path):
    submission = load_submission(find_submission("adamw"))
    workload = find_workload("imagenet_resnet", "mini")
    space = load_search_space(submission.default_search_space)
    usual = {
        "submission": submission,
        "workload": workload,
        "hyperparameters": trial_point(space, 0, 1),
    }
    one = TrialConfig(out=tmp_path / "whole", **usual)
    two = TrialConfig(out=tmp_path / "parts", **usual)
    assert _drive(one.out).wait() == 0
    process = _drive(two.out)
    moment = random.uniform(10, 45)
    while not (saw := _last_step(two)) or saw < moment - 10:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(random.uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert records.read_record(two.folder)["status"] is Status.RUNNING
    assert _drive(two.out, "--resume").wait() == 0
    assert_same_results(one, two)


def _last_step(config):
    if not (config.folder / records.EVAL_FILE).exists():
        return 0
    return rows_of(config)[-1][records.GLOBAL_STEP]


HALVED = """
import jax

def halve(state, params):
    return jax.tree.map(lambda x: x / 2, params)

(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, eval_params=halve)
"""


@pytest.mark.parametrize("stop_at", [4, 6])  # just after an evaluation, and between
def test_other_params_than_trained_are_evaluated(make_config, stop_at):
    """Evaluations change nothing in training, and a resumed run is the same."""
    config = make_config(HALVED)
    straight = dataclasses.replace(config, out=config.out / "straight")
    assert run_trial(straight)["status"] is Status.COMPLETED
    run_until(config, stop_at)
    assert run_trial(config, resume=True)["status"] is Status.COMPLETED
    assert_same_results(config, straight)
    plain = make_config(out=config.out / "plain")
    assert run_trial(plain)["status"] is Status.COMPLETED
    halved, whole = saved(straight)[0].params, saved(plain)[0].params
    jax.tree.map(lambda h, w: np.testing.assert_array_equal(h, w / 2), halved, whole)
