"""Processes of a sweep: what becomes of a trial whose process was killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from algoperf import hardware, locks, records
from algoperf.errors import OtherWriterError, UserError
from algoperf.launch import local
from algoperf.records import Status

PYTHON = sys.executable  # tests put a command of their own in its place


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


def _is_alive(pid_file):
    return locks._start_time(int(pid_file.read_text())) is not None


@pytest.mark.parametrize("end", ["kill -KILL $$", "exit 3"])
def test_what_a_trial_left_running_ends_with_it(job, tmp_path, end):
    """As the processes that make batches; what they share is tidied up by another."""
    worker, tidied = tmp_path / "worker", tmp_path / "tidied"
    wanted = job(
        f"sleep 300 &\nworker=$!\necho $worker > {worker}\n"
        f"(trap '' TERM; touch {tmp_path}/ready\n"
        f"while kill -0 $worker; do sleep 0.05; done; touch {tidied}) 2> /dev/null &\n"
        f"while [ ! -e {tmp_path}/ready ]; do sleep 0.05; done\n{end}"
    )
    list(local.run_jobs([wanted], lambda: False))
    assert not _is_alive(worker)
    assert tidied.exists()


def test_what_does_not_end_when_it_is_asked_is_killed(job, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "LEAVE_SEC", 0.2)
    worker, ready = tmp_path / "worker", tmp_path / "ready"
    wanted = job(
        f"(trap '' TERM; touch {ready}; while :; do sleep 0.05; done) &\n"
        f"echo $! > {worker}\n"
        f"while [ ! -e {ready} ]; do sleep 0.05; done\nkill -KILL $$"
    )
    list(local.run_jobs([wanted], lambda: False))
    for _ in range(100):  # the kernel may take a moment
        if not _is_alive(worker):
            break
        time.sleep(0.05)
    assert not _is_alive(worker)


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


@pytest.mark.parametrize(
    ("cores", "count", "size"),
    [(124, 8, 15), (8, 8, 1), (15, 8, 1), (7, 2, 3), (2, 3, 1), (1, 5, 1)],
)
def test_all_processes_have_as_many_cores(monkeypatch, cores, count, size):
    """Else `score` takes their records for those of different hardware."""
    monkeypatch.setattr(hardware, "usable_cores", lambda: list(range(100, 100 + cores)))
    shares = local._shares_of_cores(count)
    assert [len(share) for share in shares] == [size] * count
    used = set().union(*shares)
    assert used <= set(range(100, 100 + cores))
    assert len(used) == min(cores, size * count)
    monkeypatch.setattr(hardware, "core_count", lambda: cores)
    assert local.cores_of_each(count) == size
    assert local.cores_of_each(1) == cores
    monkeypatch.setattr(hardware, "core_count", lambda: 1)  # a container's limit
    assert local.cores_of_each(count) == 1


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


def test_a_trial_that_was_asked_to_stop_before_it_began_has_not_failed(job, tmp_path):
    """The signal comes while Python still imports: it ends the process at once."""
    wanted = job(f"touch {tmp_path}/ready; exec sleep 60", Status.PREEMPTED)
    ((_, code),) = local.run_jobs([wanted], (tmp_path / "ready").exists)
    assert code == -signal.SIGTERM
    assert records.read_record(tmp_path)["status"] is Status.PREEMPTED


def test_each_device_has_a_process_of_its_own(job, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    wanted = job(
        f"touch {both}/$$\n"
        f"while [ $(ls {both} | wc -l) -lt 2 ]; do sleep 0.05; done\n"
        f"echo $CUDA_VISIBLE_DEVICES $TPU_VISIBLE_CHIPS >> {tmp_path}/seen"
    )
    devices = ["gpu:1", "tpu:3"]
    done = list(local.run_jobs([wanted] * 2, lambda: False, devices=devices))
    assert done == [(wanted, 0)] * 2
    assert sorted((tmp_path / "seen").read_text().split()) == ["1", "3"]


def test_a_trial_of_another_process_is_waited_for(job, tmp_path):
    wanted = job(f"echo >> {tmp_path}/runs", Status.REACHED)
    lines = []
    with locks.hold(tmp_path):
        seen = threading.Event()

        def notice(line):
            lines.append(line)
            seen.set()

        found = []
        thread = threading.Thread(
            target=lambda: found.extend(
                local.run_jobs([wanted], lambda: False, notice=notice)
            )
        )
        thread.start()
        assert seen.wait(20)
        assert not (tmp_path / "runs").exists()
    thread.join(20)
    assert found == [(wanted, 0)]
    assert f"waiting for process {os.getpid()} on " in lines[0]


def test_a_trial_that_another_was_first_at_is_run_again(job, tmp_path):
    """Its lock was taken between the look and the start."""
    held, tries = tmp_path / "held", tmp_path / "tries"
    code = (
        "import pathlib, sys, time; from algoperf import locks\n"
        f"with locks.hold(pathlib.Path({str(tmp_path)!r})):\n"
        f"    pathlib.Path({str(held)!r}).touch(); time.sleep(2)\n"
    )
    other = f"{sys.executable} -c '{code.replace(chr(39), chr(34))}'"
    wanted = job(
        f"echo >> {tries}\n[ -e {held} ] && exit 0\n"
        f"setsid {other} < /dev/null > /dev/null 2>&1 &\n"
        f"while [ ! -e {held} ]; do sleep 0.05; done; exit 1"
    )
    done = list(local.run_jobs([wanted], lambda: False))
    assert done == [(wanted, 0)]
    assert tries.read_text().count("\n") == 2


def test_a_trial_that_another_has_finished_meanwhile_is_no_failure(job, tmp_path):
    """The other one held the lock as this one began, and has left it since."""
    tries = tmp_path / "tries"
    refused = OtherWriterError.exit_status
    wanted = job(f"[ -e {tries} ] && exit 0\ntouch {tries}; exit {refused}")
    assert list(local.run_jobs([wanted], lambda: False)) == [(wanted, 0)]


def test_a_broken_lock_stops_no_other_trial(job, tmp_path):
    """The trial's own process says what is wrong."""
    first = job(f"echo >> {tmp_path}/runs; exit 1")
    locks.path_of(first.folder).write_text("")
    second = local.Job(arguments=("--seed=2",), folder=tmp_path / "second")
    done = list(local.run_jobs([first, second], lambda: False))
    assert done == [(first, 1), (second, 1)]
    assert (tmp_path / "runs").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("names", "visible", "found"),
    [
        ([], None, []),
        (["nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"], None, "gpu"),
        (["nvidia0", "nvidia1"], "1,GPU-5a", ["gpu:1", "gpu:GPU-5a"]),
        (["nvidia0"], "", []),
        (["accel0", "accel1"], None, ["tpu:0", "tpu:1"]),
    ],
)
def test_accelerators(tmp_path, monkeypatch, names, visible, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name in names:
        (tmp_path / name).touch()
    if found == "gpu":
        found = ["gpu:0", "gpu:2", "gpu:10"]
    assert local.accelerators(tmp_path) == found


def test_choosing_devices():
    known = ["gpu:0", "gpu:1", "gpu:2"]
    assert local.choose_devices("each", known) == known
    assert local.choose_devices("all", known) == []
    assert local.choose_devices("each", []) == []
    assert local.choose_devices("2,0", known) == ["gpu:2", "gpu:0"]
    for wrong in ("3", "0,0", "", "gpu:0"):
        with pytest.raises(UserError, match="0, 1, 2"):
            local.choose_devices(wrong, known)
    with pytest.raises(UserError, match="none"):
        local.choose_devices("0", [])


def test_a_trial_knows_when_its_sweep_is_gone(job, tmp_path):
    seen = tmp_path / "parent"
    list(local.run_jobs([job(f"echo ${local.PARENT} > {seen}")], lambda: False))
    assert int(seen.read_text()) == os.getpid()
    code = (
        "import os, sys, time; from algoperf.launch import local\n"
        "parent = str(os.getppid())\n"
        "print(os.getpid(), local.is_left_behind(parent), flush=True)\n"
        "while not local.is_left_behind(parent): time.sleep(0.05)\n"
        f"open({str(tmp_path / 'noticed')!r}, 'w').close()\n"
    )
    middle = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {code!r}]); time.sleep(60)"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", middle], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().split()[1] == "False"
    process.kill()
    process.communicate()
    for _ in range(400):
        if (tmp_path / "noticed").exists():
            break
        time.sleep(0.05)
    assert (tmp_path / "noticed").exists()


def test_trials_that_another_host_runs_come_last(job, tmp_path):
    """Two hosts share the work of one sweep."""
    first = job("exit 0", Status.REACHED)
    second = local.Job(arguments=("--seed=2",), folder=tmp_path / "second")
    with locks.hold(first.folder) as lock:
        theirs = dataclasses.replace(lock.owner, host="elsewhere", token="theirs")
    lock.path.write_text(json.dumps(dataclasses.asdict(theirs)))
    lines, done = [], []
    for found, code in local.run_jobs(
        [first, second], lambda: len(lines) > 1, notice=lines.append
    ):
        done.append((found, code))
        assert not lines  # there was something to do
        threading.Timer(1.0, lines.append, ["stop"]).start()
    assert done == [(second, 0)]
    assert f"waiting for process {os.getpid()} on elsewhere" in lines[0]
    lock.path.unlink()
    assert list(local.run_jobs([first], lambda: False)) == [(first, 0)]
