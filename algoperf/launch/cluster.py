"""What a cluster has: one entry per type of hardware, read from a JSON file.

    {"a100": {"workloads": ["imagenet_*"], "gpus": 8, "cpus": 96, "time_min": 1440,
              "slurm": {"partition": "gpu", "constraint": "a100"}},
     "cpu":  {"cpus": 8}}

A trial goes to the first entry one of whose patterns its workload matches.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from algoperf.errors import UserError, unknown_name

Section = TypeVar("Section", "Slurm", "Kubernetes", "Hardware")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
    """What `sbatch` is told beyond the hardware itself."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclusive: bool = True  # no other job on the node, so that times are clean
    setup: tuple[str, ...] = ()  # shell lines before a trial: `module load cuda`
    # More options of sbatch, as they are called there.
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """What a pod needs beyond the hardware itself."""

    image: str = ""  # whose entry point is `algoperf`
    namespace: str = "default"
    out_claim: str = ""  # a volume claim that all pods can write to, mounted at /out
    data_claim: str = ""  # the data sets, mounted read-only at /data
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Hardware:
    """One type of node; a trial has a whole one to itself."""

    name: str
    workloads: tuple[str, ...] = ("*",)
    gpus: int = 0
    tpus: int = 0  # chips of a slice on one host
    tpu_type: str = ""  # as GKE calls it: tpu-v5-lite-podslice
    tpu_topology: str = ""  # 2x4
    cpus: int = 0  # 0: as the cluster likes
    memory_gb: int = 0
    time_min: int = 24 * 60  # after which a trial is stopped, saved and queued again
    grace_sec: int = 120  # from the signal to the kill: a step, and a checkpoint
    parallel: int = 64  # trials at a time
    slurm: Slurm = dataclasses.field(default_factory=Slurm)
    kubernetes: Kubernetes = dataclasses.field(default_factory=Kubernetes)


def load(path: Path | None) -> list[Hardware]:
    """Reads the types of hardware from a file; without one there is one, for all.

    Raises:
      UserError: it cannot be read, has an unknown key, or a value of a wrong type.
    """
    if path is None:
        return [Hardware(name="node")]
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f'{path} must hold an object: {{"a100": {{"gpus": 8}}}}')
    return [_hardware(name, facts, path) for name, facts in content.items()]


def choose(types: Sequence[Hardware], workload: str) -> Hardware:
    """Returns the first type that takes a workload.

    Raises:
      UserError: none does.
    """
    for hardware in types:
        if any(fnmatch.fnmatchcase(workload, p) for p in hardware.workloads):
            return hardware
    raise UserError(
        f"no hardware of the cluster file takes {workload}; add an entry with "
        '"workloads": ["*"] at its end'
    )


def _hardware(name: str, facts: Any, path: Path) -> Hardware:
    if not name.isascii() or not name.replace("-", "").isalnum() or not name.islower():
        raise UserError(f"{path}: {name!r} is no name; use small letters, digits and -")
    where = f"{path}, {name}"
    hardware = _section(Hardware, facts, where, name=name)
    if hardware.gpus and hardware.tpus:
        raise UserError(f"{where}: a node has gpus or tpus, not both")
    if hardware.tpus and not (hardware.tpu_type and hardware.tpu_topology):
        raise UserError(f"{where}: tpus need tpu_type and tpu_topology")
    return hardware


def _section(kind: type[Section], facts: Any, where: str, **known: Any) -> Section:
    """Makes a dataclass from JSON; its defaults say which types its fields have."""
    if not isinstance(facts, dict):
        raise UserError(f"{where} must be an object")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in known}
    values: dict[str, Any] = {}
    for key, value in facts.items():
        if key not in fields:
            wrong = unknown_name("key", key, fields)
            raise UserError(f"{where}: {wrong}")
        if key == "slurm":
            values[key] = _section(Slurm, value, f"{where}, {key}")
        elif key == "kubernetes":
            values[key] = _section(Kubernetes, value, f"{where}, {key}")
        else:
            values[key] = _value(fields[key], value, f"{where}: {key}")
    return kind(**known, **values)


def _value(field: "dataclasses.Field[Any]", value: Any, where: str) -> Any:
    if isinstance(field.default, tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise UserError(f"{where} must be a list of strings")
    if field.default is dataclasses.MISSING:  # a mapping
        texts = (*value, *value.values()) if isinstance(value, dict) else (None,)
        if all(isinstance(text, str) for text in texts):
            return value
        raise UserError(f"{where} must be an object of strings")
    wanted = type(field.default)
    if type(value) is not wanted or (wanted is int and value < 0):
        what = {int: "a whole number", str: "a string", bool: "true or false"}[wanted]
        raise UserError(f"{where} must be {what}, not {json.dumps(value)}")
    return value
