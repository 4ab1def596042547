"""Starts this process as one host of a run: who leads, how many, and which one.

From flags, or from what Slurm, Open MPI, Kubernetes or a TPU says in the environment.
"""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from algoperf import records
from algoperf.errors import STOP_SIGNALS, UserError
from algoperf.hosts import LOST, Hosts, OtherHostError
from algoperf.launch.jobs import UNFINISHED, is_finished
from algoperf.records import Status

CONNECT_SEC = 45.0  # from the start until all hosts must be there
HEARTBEAT_SEC = 30  # after so long a silent host counts as lost
SHUTDOWN_SEC = 10  # at the end hosts wait for each other, so long at most
PORT = 8476
NOT_TOGETHER = (
    f"not all hosts came together within {CONNECT_SEC:.0f} s, or one gave up; start "
    "--num_hosts of them, all with the same --num_hosts and --coordinator, at about "
    "the same time"
)
KILLED = (
    "this host was killed, by hand or for lack of memory; go on with --resume, on as "
    "many hosts as there are"
)
_FATAL = re.compile(rb"F\d{4} \d\d:\d\d:\d\d")  # of XLA: the process is aborted


Announce = Callable[[Path], None]  # gets the folder of each trial that begins


@dataclasses.dataclass(frozen=True)
class HostConfig:
    """One host of a run. All but `coordinator` of one host is the same on each."""

    coordinator: str | None  # 'name:port' of host 0; None: JAX finds it (TPU)
    num_hosts: int | None
    index: int | None
    local_device: int | None = None  # the only one that this process uses


def from_flags(coordinator: str, num_hosts: int, index: int) -> HostConfig:
    """Returns the host that flags describe.

    Raises:
      UserError: they do not fit together.
    """
    match = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if match is None or not 0 < int(match[1]) < 2**16:
        raise UserError(
            f"--coordinator {coordinator} is no HOST:PORT, as in node1:8476; ports go "
            "to 65535"
        )
    if not 0 <= index < num_hosts:
        raise UserError(
            f"--host_index {index} is not among --num_hosts {num_hosts}; hosts count "
            "from 0"
        )
    return HostConfig(coordinator, num_hosts, index)


def from_environment(kind: str, environment: Mapping[str, str]) -> HostConfig:
    """Returns the host that a launcher's variables describe.

    Args:
      kind: 'slurm', 'open_mpi', 'kubernetes' (an Indexed Job or a JobSet, with
        COORDINATOR_ADDRESS and NUM_HOSTS set in its manifest) or 'tpu'.
      environment: such as `os.environ`.

    Raises:
      UserError: a variable is missing.
    """
    if kind == "tpu" and "TPU_WORKER_HOSTNAMES" not in environment:
        return HostConfig(None, None, None)  # JAX asks the metadata server
    try:
        return _READERS[kind](environment)
    except KeyError as error:
        raise UserError(
            f"--hosts {kind}, but the environment has no {error.args[0]}; start the "
            "run with that launcher, or give --coordinator, --num_hosts and "
            "--host_index"
        ) from error


def _slurm(environment: Mapping[str, str]) -> HostConfig:
    # A port that jobs on one machine do not share, as JAX chooses it.
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    count = int(environment["SLURM_NTASKS"])
    # Such as '2(x3),1': two tasks on three nodes, one on the fourth.
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    shares_nodes = any(int(n) > 1 for n in re.findall(r"(?:^|,)(\d+)", tasks))
    local = int(environment["SLURM_LOCALID"]) if shares_nodes else None
    return HostConfig(
        f"{first_node(nodes)}:{port}", count, int(environment["SLURM_PROCID"]), local
    )


def first_node(nodes: str) -> str:
    """Returns the first name of a Slurm node list such as 'gpu[003-007,9],login1'."""
    match = re.match(r"(?:[^,\[\]]|\[[^,\-\]]+[^\]]*\])+", nodes)
    if match is None:
        raise UserError(f"cannot read the node list {nodes!r}")
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", match[0])


def _open_mpi(environment: Mapping[str, str]) -> HostConfig:
    index, count = (
        int(environment[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE")
    )
    coordinator = environment.get("COORDINATOR_ADDRESS")
    if coordinator is None:
        uri = environment["OMPI_MCA_orte_hnp_uri"]  # '123;tcp://10.0.0.1,10.1.0.1:4321'
        address = re.search(r"tcp6?://([^,:/]+)", uri)
        if address is None:
            raise KeyError("COORDINATOR_ADDRESS")
        job = int(uri.partition(".")[0].partition(";")[0])
        coordinator = f"{address[1]}:{61440 + job % 4096}"
    local_size = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    local = int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]) if local_size > 1 else None
    return HostConfig(coordinator, count, index, local)


def _kubernetes(environment: Mapping[str, str]) -> HostConfig:
    return HostConfig(
        environment["COORDINATOR_ADDRESS"],
        int(environment["NUM_HOSTS"]),
        int(environment["JOB_COMPLETION_INDEX"]),
    )


def _tpu(environment: Mapping[str, str]) -> HostConfig:
    names = environment["TPU_WORKER_HOSTNAMES"].split(",")
    return HostConfig(
        f"{names[0]}:{PORT}", len(names), int(environment["TPU_WORKER_ID"])
    )


_READERS: Mapping[str, Callable[[Mapping[str, str]], HostConfig]] = {
    "slurm": _slurm,
    "open_mpi": _open_mpi,
    "kubernetes": _kubernetes,
    "tpu": _tpu,
}


def connect(config: HostConfig, timeout_sec: float = CONNECT_SEC) -> Hosts:
    """Starts `jax.distributed` and returns this host among the others.

    Must run before anything asks JAX for devices.

    Raises:
      UserError: the coordinator cannot be reached, or not all hosts came in time.
    """
    deadline = time.monotonic() + timeout_sec
    if config.index and config.coordinator:
        _wait_for(config.coordinator, deadline)
    elif config.coordinator:
        _check_free(config.coordinator)
    import jax

    # Of use where the devices are CPUs, no matter elsewhere.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_hosts,
            config.index,
            config.local_device,
            cluster_detection_method="deactivate" if config.coordinator else None,
            initialization_timeout=max(1, round(deadline - time.monotonic())),
            heartbeat_timeout_seconds=HEARTBEAT_SEC,
            shutdown_timeout_seconds=SHUTDOWN_SEC,
        )
    except Exception as error:  # whatever the network makes JAX raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"the {config.num_hosts} hosts of the run did not come together at "
            f"{config.coordinator} within {timeout_sec:.0f} s ({reason})"
        ) from error
    # JAX has no public name for its store; Orbax uses this one too.
    from jax._src import distributed

    state = distributed.global_state
    return Hosts(state.process_id, state.num_processes, state.client)


def _wait_for(coordinator: str, deadline: float) -> None:
    """Waits until host 0 listens; JAX would end the process without a word."""
    name, _, port = coordinator.rpartition(":")
    reason: OSError | None = None
    while time.monotonic() < deadline - 5:
        try:
            socket.create_connection((name.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            reason = error
            time.sleep(0.5)
        else:
            return
    raise UserError(
        f"cannot reach the coordinator {coordinator} ({reason}); is host 0 up, the "
        "address right and the port open?"
    )


def _check_free(coordinator: str) -> None:
    """Raises UserError where host 0 could not listen; JAX would crash."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as listener:
        # A port of a run that has just ended may be taken again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise UserError(
                f"cannot listen at port {port} ({error.strerror}); give all hosts a "
                "--coordinator with another"
            ) from error


def facts_in_common(
    values: Mapping[str, Any], submission_sha256: str, points: Sequence[Any]
) -> dict[str, Any]:
    """Returns what must be alike on all hosts: code, versions, flags, hyperparameters.

    Args:
      values: the flags.
      submission_sha256: of the submission, whose path may differ.
      points: the hyperparameters of each trial, which each host reads for itself.
    """
    from algoperf import hardware

    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in ("algoperf", "workloads"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.read_bytes())
    flags = {
        f"--{name}": value
        for name, value in values.items()
        if name not in ("host_index", "data_dir", "out", "submission")
    }
    flags["--out"] = str(Path(values["out"]).absolute())
    return {
        "the code": digest.hexdigest()[:16],
        "the submission": submission_sha256[:16],
        "the hyperparameters": json.dumps(points),
        **hardware.describe_versions(),
        **flags,
    }


@contextlib.contextmanager
def _together(
    config: HostConfig, heard: Callable[[Status, str], None]
) -> Iterator[Hosts]:
    """Connects; at the end says what went wrong and waits for the others.

    Unless they are lost.
    """
    hosts = connect(config)
    stop = hosts.listen(heard)
    try:
        yield hosts
    except UserError as error:
        hosts.stop(error)
        raise
    finally:
        stop()
        if hosts.count > 1 and not hosts.is_broken:
            import jax

            jax.distributed.shutdown()


def supervised(config: HostConfig, run: Callable[[Hosts, Announce], int]) -> int:
    """Runs as a host in a child process; says how its trial ended if it is aborted.

    JAX aborts the process, with no chance to write, when host 0 is gone or another one
    has been silent for HEARTBEAT_SEC. Call before JAX has started any thread.

    Args:
      config: which host this is.
      run: gets this host and a function to call with the folder of each trial that
        begins; returns an exit status.
    """
    reader, writer = os.pipe()
    errors, error_writer = os.pipe()
    # Held back until there are handlers: the child may train before there are.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    child = os.fork()
    if child == 0:
        # Until there are handlers Ctrl-C ends it, as the other signals do: Python's own
        # handler would print a stack, and not before JAX, which connects, returns.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        os.close(reader)
        os.close(errors)
        os.dup2(error_writer, 2)
        os.setpgrp()  # Ctrl-C on the terminal comes once, from the parent
        _die_with_parent()
        status = 1
        try:
            heard = functools.partial(_send, writer, "failure")
            with _together(config, lambda *failure: heard(failure)) as hosts:
                status = run(
                    hosts, lambda f: _send(writer, "folder", str(f.absolute()))
                )
        except (UserError, OtherHostError) as error:
            print(f"algoperf: {error}", file=sys.stderr)
            status = error.exit_status if isinstance(error, UserError) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    os.close(error_writer)
    before = {
        number: signal.signal(number, lambda number, _: _pass_on(child, number))
        for number in STOP_SIGNALS
    }
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    said: list[Mapping[str, Any]] = []
    # In threads: a full pipe would stop the child; and a process that the child has
    # left behind may hold it open.
    listeners = [
        threading.Thread(target=_receive, args=(reader, said), daemon=True),
        threading.Thread(target=_pass_errors_on, args=(errors,), daemon=True),
    ]
    for listener in listeners:
        listener.start()
    _, code = os.waitpid(child, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    for listener in listeners:
        listener.join(timeout=5)
    status = os.waitstatus_to_exitcode(code)
    if status < 0:
        status, message = _aborted(said, signal.Signals(-status))
        print(f"algoperf: {message}", file=sys.stderr)
    return status


def _aborted(said: Sequence[Mapping[str, Any]], by: signal.Signals) -> tuple[int, str]:
    """Returns the exit status of an aborted host, and what to say of it.

    Writes it into its trial's record, too.

    Args:
      said: {"folder": path} when a trial began, {"failure": [status, text]} when
        another host's was heard of.
      by: the signal that ended it.
    """
    starts = [i for i, what in enumerate(said) if "folder" in what]
    of_trial = said[starts[-1] :] if starts else said
    heard = [what["failure"] for what in of_trial if "failure" in what]
    is_interrupt = by is signal.SIGINT and not heard
    if not starts:
        if by in STOP_SIGNALS and not heard:  # it came before there were handlers
            return UNFINISHED if is_interrupt else 0, "asked to stop before training"
        return 1, heard[0][1] if heard else f"{NOT_TOGETHER} ({by.name})"
    # SIGINT is a second Ctrl-C then: `run` has a handler for the first.
    is_killed = is_interrupt or by is signal.SIGKILL
    lost = Status.PREEMPTED, KILLED if is_killed else f"{LOST} ({by.name})"
    status, message = heard[0] if heard else lost
    folder = Path(of_trial[0]["folder"])
    message = mark_ended(folder, Status(status), message)
    return UNFINISHED if is_interrupt and not is_finished(folder) else 1, message


def mark_ended(folder: Path, status: Status, message: str) -> str:
    """Says in a running trial's record how it ended; returns how it stands.

    Any survivor may write: host 0, which usually does, may be the one that is lost.
    """
    if not (folder / records.RECORD_FILE).exists():
        return message
    record = records.read_record(folder)
    if record["status"] is not Status.RUNNING:
        return f"{record['status']}: {record['message']}"
    record["status"], record["message"] = status, message
    with contextlib.suppress(UserError):  # a full disk may be what ended the trial
        records.write_json(folder / records.RECORD_FILE, record)
    return message


def _send(writer: int, what: str, value: Any) -> None:
    os.write(writer, f"{json.dumps({what: value})}\n".encode())


def _receive(reader: int, said: list[Mapping[str, Any]]) -> None:
    with os.fdopen(reader) as lines:
        for line in lines:
            if line.endswith("\n"):  # else the child was killed while it wrote
                said.append(json.loads(line))


def _pass_errors_on(reader: int) -> None:
    """Writes what the child does, up to where XLA aborts it and prints its stack.

    What that means is for the parent to say.
    """
    is_aborted = False
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            is_aborted = is_aborted or _FATAL.match(line) is not None
            if not is_aborted:
                os.write(2, line)


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _die_with_parent() -> None:
    """Has Linux kill this process when its parent is gone; elsewhere it lives on."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
