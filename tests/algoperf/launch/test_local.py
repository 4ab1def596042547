"""Processes of a sweep: what becomes of a trial whose process was killed."""

import os
import sys

import pytest

from algoperf import records
from algoperf.launch import local
from algoperf.records import Status


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job whose process is a shell command; the record says that it runs."""
    command = tmp_path / "command"

    def make(shell, status=Status.RUNNING):
        command.write_text(f"#!/bin/sh\n{shell}\n")
        command.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(command))
        record = {"schema_version": records.SCHEMA_VERSION, "status": status}
        records.write_json(tmp_path / records.RECORD_FILE, record)
        return local.Job(arguments=("--seed=1",), folder=tmp_path)

    return make


def test_arguments_and_exit_status(job, tmp_path):
    wanted = job(f'echo "$@" > {tmp_path}/arguments; exit 3')
    assert list(local.run_jobs([wanted], lambda: False)) == [(wanted, 3)]
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["-m", "algoperf", "run", "--seed=1", "--resume"]
    assert records.read_record(tmp_path)["status"] is Status.RUNNING


@pytest.mark.parametrize(("name", "hint"), [("KILL", True), ("SEGV", False)])
def test_a_killed_process_is_a_failed_trial(job, tmp_path, name, hint):
    ((_, code),) = local.run_jobs([job(f"kill -{name} $$")], lambda: False)
    assert code < 0
    record = records.read_record(tmp_path)
    assert record["status"] is Status.FAILED
    assert f"SIG{name}" in record["message"]
    assert ("memory" in record["message"]) is hint


def test_a_result_is_not_taken_back(job, tmp_path):
    list(local.run_jobs([job("kill -KILL $$", Status.REACHED)], lambda: False))
    assert records.read_record(tmp_path)["status"] is Status.REACHED


def test_stopping_ends_the_running_job_and_begins_no_other(job, tmp_path):
    ready = tmp_path / "ready"
    wanted = job(
        f"trap 'echo saved > {tmp_path}/saved; exit 0' TERM\n"
        f"touch {ready}\nwhile :; do sleep 0.05; done"
    )
    done = list(local.run_jobs([wanted, wanted], ready.exists))
    assert done == [(wanted, 0)]
    assert (tmp_path / "saved").exists()


def test_side_by_side_each_has_its_share_of_the_cores(job, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    # Each waits for the other, so one after another they would wait for ever.
    wanted = job(
        f"touch {both}/$$\n"
        f"while [ $(ls {both} | wc -l) -lt 2 ]; do sleep 0.05; done\n"
        f"grep Cpus_allowed_list /proc/self/status >> {tmp_path}/cores"
    )
    done = list(local.run_jobs([wanted] * 2, lambda: False, side_by_side=2))
    assert done == [(wanted, 0)] * 2
    if len(os.sched_getaffinity(0)) > 1:
        assert len(set((tmp_path / "cores").read_text().splitlines())) == 2


def test_stopping_ends_all_that_run_side_by_side(job, tmp_path):
    wanted = job(
        f"trap 'echo $$ >> {tmp_path}/saved; exit 0' TERM\n"
        f"echo >> {tmp_path}/ready\nwhile :; do sleep 0.05; done"
    )
    ready = tmp_path / "ready"

    def both_run():
        return ready.exists() and ready.read_text().count("\n") >= 2

    done = list(local.run_jobs([wanted] * 3, both_run, side_by_side=2))
    assert done == [(wanted, 0)] * 2
    assert (tmp_path / "saved").read_text().count("\n") == 2


def _until_asked(tmp_path, name):
    """A shell command that says that it runs, and when it was asked to end."""
    return (
        f"trap 'echo >> {tmp_path}/{name}; exit 0' TERM\n"
        f"touch {tmp_path}/ready\nwhile :; do sleep 0.05; done"
    )


def test_one_run_is_asked_to_end_and_the_next_begins(job, tmp_path):
    wanted = job(_until_asked(tmp_path, "saved"))
    ready = tmp_path / "ready"

    def should_end(running):
        assert running == wanted
        return ready.exists()

    done = []
    runs = local.run_jobs([wanted] * 2, lambda: False, should_end=should_end)
    for job_, code in runs:
        done.append((job_, code))
        ready.unlink()
    assert done == [(wanted, 0)] * 2
    assert (tmp_path / "saved").read_text().count("\n") == 2  # each was asked once


def test_an_error_of_the_caller_ends_what_runs_beside(job, tmp_path):
    first = tmp_path / "first"
    wanted = job(
        f"if mkdir {first}; then while ! [ -e {tmp_path}/ready ]; do sleep 0.05; done; "
        f"exit 0; fi\n{_until_asked(tmp_path, 'saved')}"
    )
    runs = local.run_jobs([wanted] * 3, lambda: False, side_by_side=2)
    assert next(runs) == (wanted, 0)
    runs.close()
    assert (tmp_path / "saved").read_text().count("\n") == 1  # the third never began
