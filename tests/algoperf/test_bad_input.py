"""What a user got wrong is one clear line, and nothing on disk has changed."""

import dataclasses
import json

import pytest
from synthetic import SYNTHETIC, kill_at, rows_of

from algoperf import records
from algoperf.checkpoint import Checkpoints
from algoperf.errors import UserError
from algoperf.loading import load_submission
from algoperf.records import Status
from algoperf.runner import run_trial
from algoperf.sharding import Placement
from algoperf.workload import derive


def _look(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def _assert_refused(config, says, **options):
    before = _look(config.out)
    with pytest.raises(UserError, match=says):
        run_trial(config, **options)
    assert _look(config.out) == before


@pytest.fixture
def killed(make_config):
    """A trial that was killed after its first checkpoint."""
    config = make_config()
    kill_at(config, 5)
    return config


def test_the_folder_of_a_finished_run(make_config):
    config = make_config(max_steps=4)
    run_trial(config)
    _assert_refused(config, r"holds a run already \(completed\); go on with --resume")


def test_the_folder_of_another_run(killed, tmp_path):
    _assert_refused(killed, r"holds a run already \(running\); go on with --resume")
    longer = dataclasses.replace(killed, max_steps=13)
    _assert_refused(longer, "holds a run already")
    changes = {
        "max_steps": {"max_steps": 13},
        "seeds": {"seed": 1},
        "hyperparameters": {"hyperparameters": {"learning_rate": 0.02}},
        "ruleset": {"ruleset": "self"},
        "eval_period_steps": {"eval_period_steps": 2},
        "batch_size": {"workload": derive(SYNTHETIC, default_batch_size=16)},
        "target": {"workload": derive(SYNTHETIC, target_metric_name="loss")},
        "step_hint": {"workload": derive(SYNTHETIC, step_hint=25)},
        "microbatches": {
            "workload": derive(SYNTHETIC, placement=Placement(microbatches=2))
        },
    }
    for name, change in changes.items():
        other = dataclasses.replace(killed, **change)
        says = f"holds another run: its {name} is .*choose another --out"
        _assert_refused(other, says, resume=True)
    path = tmp_path / "other" / "adam.py"
    path.parent.mkdir()
    path.write_text(killed.submission.path.read_text() + "# changed\n")
    other = dataclasses.replace(killed, submission=load_submission(path))
    says = "holds another run: .*adam.py, or a file that it imports, has changed since"
    _assert_refused(other, says, resume=True)
    assert run_trial(killed, resume=True)["status"] is Status.COMPLETED


def test_an_older_record_that_does_not_say_all_can_be_gone_on_with(killed):
    path = killed.folder / records.RECORD_FILE
    record = json.loads(path.read_text())
    for name in ("step_hint", "placement", "earlier_environments", "numerics"):
        del record[name]
    path.write_text(json.dumps(record))
    assert run_trial(killed, resume=True)["status"] is Status.COMPLETED


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_kill_has_left_of_the_first_write_is_no_run(make_config, resume):
    config = make_config(max_steps=4)
    config.folder.mkdir(parents=True)
    (config.folder / f".{records.RECORD_FILE}.0a1b.tmp").write_text('{"schema_ver')
    assert run_trial(config, resume=resume)["status"] is Status.COMPLETED


@pytest.mark.parametrize("function", ["update_params", "init_optimizer_state"])
def test_what_failed_before_its_first_step_makes_room(make_config, function):
    fails = f"\ndef {function}(*_, **arguments):\n    raise KeyError('mistyped')\n"
    broken = make_config(fails, max_steps=4)
    assert run_trial(broken)["status"] is Status.FAILED
    has_rows = (broken.folder / records.EVAL_FILE).exists()
    assert has_rows == (function == "update_params")
    before = _look(broken.out)
    assert run_trial(broken, resume=True)["status"] is Status.FAILED
    assert _look(broken.out) == before  # it has a result
    mended = make_config(max_steps=4)
    _assert_refused(mended, "has changed since", resume=True)
    watched = []

    def watch(_):
        watched.append(records.read_record(broken.folder)["message"])

    record = run_trial(mended, watch=watch)
    assert record["status"] is Status.COMPLETED
    assert set(watched) == {""}
    assert "traceback" not in record
    assert [row["global_step"] for row in rows_of(broken)] == [0, 4]


def test_what_failed_after_a_step_stays(make_config):
    fails = (
        "\ninner = update_params\n"
        "def update_params(**arguments):\n"
        "    if arguments['global_step']: raise KeyError('late')\n"
        "    return inner(**arguments)\n"
    )
    broken = make_config(fails, max_steps=4)
    assert run_trial(broken)["global_step"] == 1
    _assert_refused(make_config(max_steps=4), r"holds a run already \(failed\)")


def test_what_was_killed_before_its_first_evaluation_stays(make_config):
    """It may have made many steps; see `jobs.mark_killed`."""
    config = make_config(max_steps=4)
    kill_at(config, 1)
    record = records.read_record(config.folder)
    killed = record | {"status": Status.FAILED, "message": "killed by SIGKILL"}
    records.write_json(config.folder / records.RECORD_FILE, killed)
    _assert_refused(config, r"holds a run already \(failed\)")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_holds_something_else(make_config, resume):
    config = make_config()
    config.folder.mkdir(parents=True)
    (config.folder / "thesis.tex").write_text("precious")
    _assert_refused(config, "not empty and holds no record", resume=resume)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "running"}'])
def test_a_broken_record(killed, text):
    (killed.folder / records.RECORD_FILE).write_text(text)
    _assert_refused(killed, "record.json cannot be read", resume=True)


def test_a_record_of_a_newer_version(killed):
    path = killed.folder / records.RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    _assert_refused(killed, "has schema version 2, this code reads 1", resume=True)


def test_a_missing_hyperparameter(make_config):
    config = make_config(hyperparameters={"lr": 0.1, "beta2": 0.9})
    says = "'learning_rate', which its search space lacks; .*beside lr, beta2"
    _assert_refused(config, f"adam reads the hyperparameter {says}")
    assert not config.out.exists()


def test_a_batch_size_that_does_not_fit(make_config, monkeypatch):
    config = make_config(workload=derive(SYNTHETIC, default_batch_size=30))
    monkeypatch.setattr("jax.device_count", lambda: 4)
    _assert_refused(config, "batch size of adam is 30, .* the 4 devices")
    assert not config.out.exists()


def test_an_output_folder_that_cannot_be_made(make_config, tmp_path):
    (tmp_path / "file").write_text("precious")
    config = make_config(out=tmp_path / "file" / "runs")
    with pytest.raises(UserError, match=r"cannot make .*choose another --out"):
        run_trial(config)
    assert (tmp_path / "file").read_text() == "precious"


def test_checkpoints_of_another_structure(killed):
    """Same file, other state: it reads something from outside."""
    state = killed.submission.functions.init_optimizer_state

    def more(*arguments):
        return state(*arguments), 0.5

    functions = killed.submission.functions._replace(init_optimizer_state=more)
    submission = dataclasses.replace(killed.submission, functions=functions)
    other = dataclasses.replace(killed, submission=submission)
    _assert_refused(other, "saved state and a fresh one differ in", resume=True)


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_while_recording(make_config, monkeypatch, function):
    config = make_config()
    kept = []

    def full(*_):
        raise OSError(28, "No space left on device")

    def watch(progress):
        if progress.step == 6:
            kept.append(_look(config.folder))
            monkeypatch.setattr(f"algoperf.records.os.{function}", full)

    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        run_trial(config, watch=watch)
    monkeypatch.undo()
    assert _look(config.folder) == kept[0]
    record = run_trial(config, resume=True)
    assert record["status"] is Status.COMPLETED
    assert [row["global_step"] for row in rows_of(config)] == [0, 4, 8, 12]


def test_a_full_disk_while_saving_can_be_resumed(make_config, tmp_path, monkeypatch):
    config = make_config()

    def full(*_):
        raise UserError("cannot save a checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        with pytest.raises(UserError, match="cannot save a checkpoint"):
            run_trial(config)
    record = records.read_record(config.folder)
    assert record["status"] is Status.PREEMPTED
    assert record["message"] == "cannot save a checkpoint"
    assert run_trial(config, resume=True)["status"] is Status.COMPLETED
