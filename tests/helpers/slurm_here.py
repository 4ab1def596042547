"""A Slurm of its own for a test: munge, controller and one node, in a folder.

Nothing outside the folder is touched, and all ends with the test. The programs are
Debian's packages munge, slurmctld, slurmd and slurm-client.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=120
OverTimeLimit=2
MinJobAge=600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def find_programs() -> dict[str, str]:
    """Returns where Slurm's programs are; those that are not there are left out."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    return {name: place for name, place in found.items() if place}


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Runs a Slurm in a folder; yields the environment that its commands need."""
    programs = find_programs()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    controller_port, node_port = _free_ports()
    config = CONFIG.format(
        host=socket.gethostname().partition(".")[0],
        controller_port=controller_port,
        node_port=node_port,
        folder=folder,
        cpus=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(config)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = [
        *(programs["munged"], "--foreground", "--force", "--num-threads=1"),
        *(f"--{key}={folder}/munge.{key.partition('-')[0]}" for key in ("socket",)),
        *(
            f"--{key}-file={folder}/munge.{key}"
            for key in ("key", "pid", "log", "seed")
        ),
    ]
    config_flag = ["-f", str(folder / "slurm.conf")]
    with contextlib.ExitStack() as stack:
        for command in (
            munge,
            [programs["slurmctld"], "-D", "-i", *config_flag],
            [programs["slurmd"], "-D", *config_flag],
        ):
            stack.enter_context(_running(command, environment, folder))
            if command is munge:
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: "idle" in _sinfo(environment), folder)
        yield environment


@contextlib.contextmanager
def _running(
    command: list[str], environment: dict[str, str], folder: Path
) -> Iterator[None]:
    name = Path(command[0]).name
    with open(folder / f"{name}.out", "wb") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=out, stderr=out
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _sinfo(environment: dict[str, str]) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.stdout


def _wait(is_ready, folder: Path, timeout_sec: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_sec
    while not is_ready():
        if time.monotonic() > deadline:
            logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.out"))
            raise TimeoutError(f"Slurm does not start:\n{logs}")
        time.sleep(0.2)


def _free_ports() -> list[int]:
    """Returns two ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
