"""What this machine is: host, devices, versions. Imports JAX only where it must."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTROL_GROUP = Path("/sys/fs/cgroup")  # of this container, as it sees itself
PACKAGES = ("algoperf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def usable_cores() -> list[int]:
    """Returns the numbers of the cores that this process may run on.

    Under Slurm or `taskset` they are fewer than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_count() -> int:
    """Returns how many cores this process may keep busy, at least 1.

    A container with a limit may run on all cores of the machine, and is stopped for the
    rest of each period as soon as it has used its part.
    """
    limit = _container_limit()
    cores = len(usable_cores())
    return cores if limit is None else max(1, min(cores, int(limit)))


def _container_limit() -> float | None:
    """Returns the limit of a container, in cores, if this is one and has any.

    Control groups of version 2 have quota and period (us) in one file ('max' is none),
    those of version 1 in two (-1 is none).
    """
    try:
        if (CONTROL_GROUP / "cpu.max").exists():
            quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
        else:
            folder = CONTROL_GROUP / "cpu"
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def describe_host() -> dict[str, Any]:
    """Returns processor, cores, memory in GiB and system; asks no accelerator."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "cores": core_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def host_words(host: Mapping[str, Any]) -> str:
    """Returns what `describe_host` says of processor and cores, in words."""
    cores = "one core" if host["cores"] == 1 else f"{host['cores']} cores"
    return f"{cores} of an {host['cpu']}"


def describe_devices() -> dict[str, Any]:
    """Returns the devices that JAX sees, all of one kind."""
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }


def describe_versions() -> dict[str, str | None]:
    """Returns the installed version of each package that numbers depend on."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def git_revision() -> str | None:
    """Returns the commit this code is at ('-dirty' if changed); None outside git.

    Where the code is installed without its repository, in a container say,
    ALGOPERF_REVISION may name the commit.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed; an outer repository is not ours
        return os.environ.get("ALGOPERF_REVISION") or None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
