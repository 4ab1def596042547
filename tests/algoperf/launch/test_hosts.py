"""Several hosts, as processes on this machine; and what launchers say of hosts."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shards import largest_difference

from algoperf import records
from algoperf.errors import STOP_SIGNALS, OtherRunError, UserError
from algoperf.launch import hosts
from algoperf.launch.hosts import HostConfig
from algoperf.launch.jobs import UNFINISHED
from algoperf.records import Status

HELPERS = Path(__file__).resolve().parents[2] / "helpers"
LOSSES = ("train/loss", "validation/loss", "test/loss")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("gpu-a[3-5]-ib,b1", "gpu-a3-ib"),
        ("rack[1-2]node[3-4],b1", "rack1node3"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert hosts.first_node(nodes) == first


def test_hosts_that_read_another_search_space_are_not_alike():
    one, other = (
        hosts.facts_in_common({"out": "runs"}, "sha", [{"learning_rate": rate}])
        for rate in (0.1, 0.2)
    )
    differing = [name for name in one if one[name] != other[name]]
    assert differing == ["the hyperparameters"]


SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


@pytest.mark.parametrize(
    ("kind", "environment", "expected"),
    [
        ("slurm", SLURM, HostConfig(f"gpu03:{61440 + 12345 % 4096}", 2, 1)),
        (
            "slurm",
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_LOCALID": "3"},
            HostConfig(f"gpu03:{61440 + 12345 % 4096}", 2, 1, 3),
        ),
        (
            "slurm",
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "16(x2)", "SLURM_LOCALID": "9"},
            HostConfig(f"gpu03:{61440 + 12345 % 4096}", 2, 1, 9),
        ),
        (
            "open_mpi",
            MPI,
            HostConfig(f"10.96.0.1:{61440 + 1531576320 % 4096}", 4, 3, 1),
        ),
        (
            "open_mpi",
            {**MPI, "COORDINATOR_ADDRESS": "a:1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            HostConfig("a:1", 4, 3),
        ),
        (
            "kubernetes",
            {
                "COORDINATOR_ADDRESS": "run-0.run:8476",
                "NUM_HOSTS": "8",
                "JOB_COMPLETION_INDEX": "5",
            },
            HostConfig("run-0.run:8476", 8, 5),
        ),
        (
            "tpu",
            {"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3", "TPU_WORKER_ID": "2"},
            HostConfig("t0:8476", 4, 2),
        ),
        ("tpu", {}, HostConfig(None, None, None)),
    ],
)
def test_launchers_say_which_host_this_is(kind, environment, expected):
    assert hosts.from_environment(kind, environment) == expected


@pytest.mark.parametrize("kind", ["slurm", "open_mpi", "kubernetes"])
def test_a_variable_that_is_missing_is_named(kind):
    with pytest.raises(UserError, match=f"--hosts {kind}, .* has no [A-Z_]+; start"):
        hosts.from_environment(kind, {})


def test_flags_that_do_not_fit_are_refused():
    assert hosts.from_flags("a:1", 2, 1) == HostConfig("a:1", 2, 1)
    with pytest.raises(UserError, match="is no HOST:PORT"):
        hosts.from_flags("node1", 2, 0)
    with pytest.raises(UserError, match="ports go to 65535"):
        hosts.from_flags("node1:99999", 2, 0)
    with pytest.raises(UserError, match="--host_index 2 is not among --num_hosts 2"):
        hosts.from_flags("node1:80", 2, 2)


@pytest.mark.parametrize(
    ("status", "expected", "message"),
    [
        (Status.RUNNING, Status.PREEMPTED, "lost"),
        (Status.FAILED, Status.FAILED, "failed: why"),
    ],
)
def test_a_survivor_writes_how_the_trial_ended(tmp_path, status, expected, message):
    record = {"schema_version": records.SCHEMA_VERSION, "message": "why"}
    records.write_json(tmp_path / records.RECORD_FILE, {**record, "status": status})
    assert hosts.mark_ended(tmp_path, Status.PREEMPTED, "lost") == message
    assert records.read_record(tmp_path)["status"] is expected
    assert hosts.mark_ended(tmp_path / "none", Status.FAILED, "lost") == "lost"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], hosts.NOT_TOGETHER),
        ([{"failure": ["preempted", "on host 0: flag"]}], "on host 0: flag"),
        ([{"folder": "a"}], "another host is lost"),
        ([{"folder": "a"}, {"failure": ["failed", "bug"]}], "bug"),
        (
            [{"folder": "a"}, {"failure": ["failed", "of a"]}, {"folder": "b"}],
            "another host is lost",
        ),
    ],
)
def test_an_aborted_host_says_what_it_heard_of_the_last_trial(said, expected):
    status, message = hosts._aborted(said, signal.SIGABRT)
    assert status == 1
    assert expected in message


def test_a_program_that_failed_elsewhere_is_no_preemption(tmp_path):
    record = {"schema_version": records.SCHEMA_VERSION, "status": Status.RUNNING}
    records.write_json(tmp_path / records.RECORD_FILE, record)
    said = [{"folder": str(tmp_path)}, {"failure": ["failed", "on host 1: bug"]}]
    assert hosts._aborted(said, signal.SIGABRT) == (1, "on host 1: bug")
    assert records.read_record(tmp_path)["status"] is Status.FAILED


@pytest.mark.parametrize(
    ("status", "expected"), [(Status.RUNNING, UNFINISHED), (Status.COMPLETED, 1)]
)
def test_an_interrupt_is_asked_to_go_on_only_without_a_result(
    tmp_path, status, expected
):
    record = {"schema_version": records.SCHEMA_VERSION, "status": status, "message": ""}
    records.write_json(tmp_path / records.RECORD_FILE, record)
    said = [{"folder": str(tmp_path)}]
    assert hosts._aborted(said, signal.SIGINT)[0] == expected


def test_a_host_that_was_killed_does_not_call_another_lost():
    status, message = hosts._aborted([{"folder": "a"}], signal.SIGKILL)
    assert status == 1
    assert "this host was killed" in message
    assert "--resume" in message


def test_the_stack_of_an_abort_is_not_passed_on(capfd):
    reader, writer = os.pipe()
    os.write(writer, b"E1126 13:39:05.1 agent.cc:1] polled an error\n")
    os.write(writer, b"F1126 13:39:06.166300   27417 client.h:80] Terminating\n")
    os.write(writer, b"*** Check failure stack trace: ***\n    @ 0x7fef4f040634 absl\n")
    os.close(writer)
    hosts._pass_errors_on(reader)
    assert capfd.readouterr().err == "E1126 13:39:05.1 agent.cc:1] polled an error\n"


def test_a_port_that_is_taken_is_an_error_at_once():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at port {port}"):
            hosts.connect(HostConfig(f"localhost:{port}", 2, 0))


def test_what_a_killed_child_had_half_written_is_left_out():
    reader, writer = os.pipe()
    hosts._send(writer, "folder", "a")
    os.write(writer, b'{"failure": ["fai')
    os.close(writer)
    said: list = []
    hosts._receive(reader, said)
    assert said == [{"folder": "a"}]


def test_a_full_disk_does_not_hide_why_a_trial_ended(tmp_path, monkeypatch):
    record = {"schema_version": records.SCHEMA_VERSION, "status": Status.RUNNING}
    records.write_json(tmp_path / records.RECORD_FILE, record)

    def full(*_):
        raise UserError("cannot write")

    monkeypatch.setattr(records, "write_json", full)
    assert hosts.mark_ended(tmp_path, Status.PREEMPTED, "lost") == "lost"


def test_an_unreachable_coordinator_is_an_error_in_time():
    with pytest.raises(UserError, match="cannot reach the coordinator 127"):
        hosts.connect(HostConfig("127.0.0.1:9", 2, 1), timeout_sec=6)


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Run:
    """The processes of one run of drive_hosts.py."""

    def __init__(self, out, *arguments, count=2, only=None, devices=1):
        port = _free_port()
        self.processes = []
        self.logs = []
        for index in range(count):
            own = [f"--port={port}", f"--hosts={count}", f"--index={index}"]
            own += (only or {}).get(index, [])
            log = out.parent / f"{out.name}_{port}_{index}.txt"
            self.logs.append(log)
            flag = f"--xla_force_host_platform_device_count={devices}"
            with open(log, "w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            HELPERS / "drive_hosts.py",
                            out,
                            *arguments,
                            *own,
                        ],
                        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, timeout=300):
        """Returns the exit statuses."""
        end = time.monotonic() + timeout
        return [p.wait(max(1, end - time.monotonic())) for p in self.processes]

    def wait_for_step(self, step, index):
        end = time.monotonic() + 200
        while f"step {step}\n" not in self.text(index):
            assert time.monotonic() < end, self.text(index)
            assert self.processes[index].poll() is None, self.text(index)
            time.sleep(0.1)

    def text(self, index):
        return self.logs[index].read_text()

    def last_line(self, index):
        return self.text(index).splitlines()[-1]


def _record(out):
    (path,) = out.rglob(records.RECORD_FILE)  # one, whatever the number of hosts
    return records.read_record(path.parent)


def _losses(out):
    (path,) = out.rglob(records.EVAL_FILE)
    rows = records.read_measurements(path, required=())
    return [row[name] for row in rows for name in LOSSES]


def _steps(out):
    (path,) = out.rglob(records.EVAL_FILE)
    rows = records.read_measurements(path, required=())
    return [row[records.GLOBAL_STEP] for row in rows]


@pytest.mark.slow
def test_two_hosts_are_one_run(tmp_path):
    """Metrics, and the record that one of them writes."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert Run(alone, count=1).wait() == [0]
    run = Run(together)
    assert run.wait() == [0, 0], run.text(0) + run.text(1)
    assert largest_difference([_losses(alone), _losses(together)]) < 1e-5
    assert len(_losses(alone)) == 9
    record = _record(together)
    assert record["status"] is Status.COMPLETED
    assert record["devices"]["process_count"] == 2
    for index in range(2):
        assert json.loads(run.last_line(index))["status"] == "completed"
    other = Run(together, "--steps=9", "--resume")
    assert other.wait() == [OtherRunError.exit_status] * 2
    assert "holds another run: its max_steps is 8" in other.last_line(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.long)]
)
def test_more_hosts_and_devices_with_fsdp(tmp_path, count, devices):
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert Run(alone, count=1).wait() == [0]
    run = Run(together, "--placement=fsdp", count=count, devices=devices)
    assert run.wait() == [0] * count, run.text(0)
    assert largest_difference([_losses(alone), _losses(together)]) < 1e-5
    assert _record(together)["devices"]["device_count"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "count_after"), [(0, 1), pytest.param(1, 2, marks=pytest.mark.long)]
)
def test_a_killed_host_ends_the_trial_and_a_restart_goes_on(
    tmp_path, killed, count_after
):
    out, whole = tmp_path / "out", tmp_path / "whole"
    long = ("--steps=16", "--seconds_a_step=1")
    run = Run(out, *long)
    run.wait_for_step(6, killed)
    run.processes[killed].send_signal(signal.SIGKILL)
    began = time.monotonic()
    statuses = run.wait(60)
    assert time.monotonic() - began < 60
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] == 1, run.text(1 - killed)
    assert "another host is lost; go on with --resume" in run.last_line(1 - killed)
    assert "stack trace" not in run.text(1 - killed)
    record = _record(out)
    assert record["status"] is Status.PREEMPTED
    assert "another host is lost" in record["message"]

    again = Run(out, "--steps=16", "--resume", count=count_after)
    assert again.wait() == [0] * count_after, again.text(0)
    assert "step 4\n" in again.text(0)
    assert "step 3\n" not in again.text(0)  # from the checkpoint
    assert _record(out)["status"] is Status.COMPLETED
    assert Run(whole, "--steps=16", count=1).wait() == [0]
    assert _steps(out) == _steps(whole) == [0, 4, 8, 12, 16]
    assert largest_difference([_losses(whole), _losses(out)]) < 1e-5


@pytest.mark.slow
def test_what_one_host_raises_ends_the_trial_on_both(tmp_path):
    run = Run(tmp_path / "out", only={1: ["--fail_at=5"]})
    assert run.wait(120) == [1, 1]
    record = _record(tmp_path / "out")
    assert record["status"] is Status.FAILED
    assert record["message"] == "on host 1: ValueError: a bug on one host"
    assert json.loads(run.last_line(0))["message"] == record["message"]


@pytest.mark.slow
def test_hosts_that_disagree_say_so_before_training(tmp_path):
    run = Run(tmp_path / "out", only={1: ["--seed=1"]})
    began = time.monotonic()
    assert run.wait(60) == [1, 1]
    assert time.monotonic() - began < 60
    for index in range(2):
        assert run.last_line(index) == (
            "algoperf: hosts 0 and 1 differ in --seed: 0 and 1; start the same run on "
            "every host"
        )
    assert not list((tmp_path / "out").rglob(records.RECORD_FILE))


ALONE = """
import contextlib, time
from pathlib import Path
from algoperf.cli.common import StopRequest
from algoperf.errors import OtherRunError
from algoperf.hosts import Hosts
from algoperf.launch import hosts

@contextlib.contextmanager
def alone(config, heard):
    yield Hosts()

hosts._together = alone
"""
SUPERVISED = f"""{ALONE}
def run(hosts, announce):
    with StopRequest() as stop:
        print("ready", flush=True)
        while not stop.is_asked:
            time.sleep(0.01)
    print("saved", flush=True)
    return 0

raise SystemExit(hosts.supervised(None, run))
"""
CONNECTING = """
import contextlib, itertools
from algoperf.launch import hosts

@contextlib.contextmanager
def waiting(config, heard):
    print("connecting", flush=True)
    sum(itertools.repeat(0, 10**10))  # as deaf to handlers in Python as JAX
    yield

hosts._together = waiting
raise SystemExit(hosts.supervised(None, lambda hosts, announce: 1))
"""
INTERRUPTED_TWICE = f"""{ALONE}
def run(hosts, announce):
    with StopRequest() as stop:
        announce(Path(FOLDER))
        print("ready", flush=True)
        while not stop.is_asked:
            time.sleep(0.01)
        print("saving", flush=True)
        time.sleep(60)

raise SystemExit(hosts.supervised(None, run))
"""
REFUSED = f"""{ALONE}
def run(hosts, announce):
    raise OtherRunError("the folder holds another run")

raise SystemExit(hosts.supervised(None, run))
"""


def test_a_folder_of_another_run_has_the_exit_status_that_it_has_alone():
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "algoperf: the folder holds another run\n"
    assert done.returncode == OtherRunError.exit_status


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_that_ask_to_stop_reach_the_host_that_trains(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("saved\n", None)
    assert process.returncode == 0


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_that_is_asked_while_hosts_connect_is_no_failure(number):
    process = subprocess.Popen(
        [sys.executable, "-c", CONNECTING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "connecting\n"
    process.send_signal(number)
    try:
        errors = process.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its child too, however deaf
    assert errors == "algoperf: asked to stop before training\n"
    assert process.returncode == (UNFINISHED if number == signal.SIGINT else 0)


def test_a_second_interrupt_ends_a_host_that_is_being_saved(tmp_path):
    record = {"schema_version": records.SCHEMA_VERSION, "status": Status.RUNNING}
    records.write_json(tmp_path / records.RECORD_FILE, record)
    program = INTERRUPTED_TWICE.replace("FOLDER", repr(str(tmp_path)))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in ("ready\n", "saving\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert errors == f"algoperf: {hosts.KILLED}\n"
    assert process.returncode == UNFINISHED
    assert records.read_record(tmp_path)["status"] is Status.PREEMPTED


@pytest.mark.slow
def test_a_stop_asked_of_one_host_stops_both(tmp_path):
    """They agree on the step; both could be asked too."""
    out = tmp_path / "out"
    run = Run(out, "--steps=100", "--seconds_a_step=0.5", "--stop_on_sigterm")
    run.wait_for_step(5, 1)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait(120) == [0, 0], run.text(0) + run.text(1)
    record = _record(out)
    assert record["status"] is Status.PREEMPTED
    assert record["message"].startswith("asked to stop")
    for index in range(2):
        assert json.loads(run.last_line(index))["step"] == record["global_step"]
    (checkpoint,) = out.rglob(f"{records.CHECKPOINT_PREFIX}_{record['global_step']}")
    assert checkpoint.is_dir()


@pytest.mark.slow
def test_the_command_on_two_hosts(tmp_path):
    command = [sys.executable, "-m", "algoperf", "run", "--submission=adamw"]
    command += ["--workload=finewebedu_lm", "--max_steps=2", "--eval_period_steps=2"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    alone, together = tmp_path / "alone", tmp_path / "together"
    subprocess.run([*command, f"--out={alone}"], env=environment, check=True)
    command += [f"--out={together}", "--num_hosts=2", "--sharding=fsdp"]
    command += [f"--coordinator=127.0.0.1:{_free_port()}"]
    processes = [
        subprocess.Popen([*command, f"--host_index={index}"], env=environment)
        for index in range(2)
    ]
    assert [process.wait(200) for process in processes] == [0, 0]
    assert largest_difference([_losses(alone), _losses(together)]) < 1e-5
    record = _record(together)
    assert record["devices"]["process_count"] == 2
    assert record["placement"]["kind"] == "fsdp"
