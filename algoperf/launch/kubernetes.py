"""Manifests for Kubernetes: an indexed Job per type of hardware, an index per trial.

A manifest is a plain dict, written as JSON, which is YAML too. Each pod runs
`algoperf sweep ... --only INDEX`. Fields are those of batch/v1 (Kubernetes 1.33 or
newer, for retries by index) and of jobset.x-k8s.io/v1alpha2, which adds scoring after
the trials.
"""

from collections.abc import Sequence
from typing import Any

from algoperf.errors import UserError
from algoperf.launch.cluster import Hardware
from algoperf.launch.jobs import UNFINISHED

KINDS = ("job", "jobset")
OUT, DATA = "/out", "/data"  # where the volumes are mounted
USER = 10001  # the one of docker/Dockerfile
RETRIES = 3  # of a pod that fails; one that was stopped is always made again
MAX_DEPENDENCIES = 5  # of a part of a JobSet
_LABEL = "app.kubernetes.io/name"


def manifest(
    parts: Sequence[tuple[Hardware, Sequence[str], int]],
    kind: str,
    name: str,
    score: Sequence[str],
) -> dict[str, Any]:
    """Returns the manifest of a sweep.

    Args:
      parts: for each type of hardware the arguments of `algoperf sweep`, without
        `--only`, and how many trials they make.
      kind: `job`: a List of Jobs; `jobset`: one JobSet, which scores at the end.
      name: of the sweep: small letters, digits and -.
      score: the arguments of `algoperf score`.

    Raises:
      UserError: a type of hardware lacks its image, or the volume for the records.
    """
    for hardware, _, _ in parts:
        for key in ("image", "out_claim"):
            if not getattr(hardware.kubernetes, key):
                raise UserError(
                    f'Kubernetes needs "{key}" under "kubernetes" of {hardware.name} '
                    "in the file that --cluster names"
                )
    namespaces = {hardware.kubernetes.namespace for hardware, _, _ in parts}
    if len(namespaces) > 1:
        raise UserError(f"one sweep, one namespace, not {sorted(namespaces)}")
    if kind == "jobset" and len(parts) > MAX_DEPENDENCIES:
        raise UserError(
            f"scoring can wait for {MAX_DEPENDENCIES} types of hardware, not "
            f"{len(parts)}; use --kind job, and algoperf score"
        )
    metadata = {"namespace": namespaces.pop(), "labels": {_LABEL: "algoperf"}}
    specs = {
        hardware.name: _trials(hardware, arguments, count)
        for hardware, arguments, count in parts
    }
    if kind == "job":
        items = [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": f"{name}-{part}", **metadata},
                "spec": spec,
            }
            for part, spec in specs.items()
        ]
        return {"apiVersion": "v1", "kind": "List", "items": items}
    replicated: list[dict[str, Any]] = [
        {"name": part, "replicas": 1, "template": {"spec": spec}}
        for part, spec in specs.items()
    ]
    waits_for = [{"name": part, "status": "Complete"} for part in specs]
    replicated.append(
        {
            "name": "score",
            "replicas": 1,
            "template": {"spec": _scoring(parts[0][0], score)},
            "dependsOn": waits_for,
        }
    )
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, **metadata},
        "spec": {"replicatedJobs": replicated, "failurePolicy": {"maxRestarts": 0}},
    }


def _trials(hardware: Hardware, arguments: Sequence[str], count: int) -> dict[str, Any]:
    """Returns the spec of an indexed Job."""
    # Kubernetes gives each pod the number of its trial, and puts it in here.
    command = ["sweep", *arguments, "--only=$(JOB_COMPLETION_INDEX)"]
    stopped = {"containerName": "trial", "operator": "In", "values": [UNFINISHED]}
    pod = _pod(hardware, "trial", command)
    pod["nodeSelector"] = _node_selector(hardware)
    pod["affinity"] = _alone_on_its_node()
    pod["containers"][0]["resources"] = _resources(hardware)
    return {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": min(count, hardware.parallel),
        "backoffLimitPerIndex": RETRIES,
        # No second pod of a trial before the first is gone for certain.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {"action": "Ignore", "onExitCodes": stopped},
            ]
        },
        "template": {"metadata": {"labels": {_LABEL: "algoperf"}}, "spec": pod},
    }


def _scoring(hardware: Hardware, arguments: Sequence[str]) -> dict[str, Any]:
    pod = _pod(hardware, "score", ["score", *arguments])
    return {"backoffLimit": RETRIES, "template": {"spec": pod}}


def _pod(hardware: Hardware, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the spec of a pod that may do nothing but write to its volume."""
    kubernetes = hardware.kubernetes
    volumes: list[dict[str, Any]] = [
        {"name": "out", "persistentVolumeClaim": {"claimName": kubernetes.out_claim}},
        {"name": "tmp", "emptyDir": {}},
        # Processes that make batches hand them over in shared memory.
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "out", "mountPath": OUT},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "memory", "mountPath": "/dev/shm"},
    ]
    if kubernetes.data_claim:
        claim = {"claimName": kubernetes.data_claim, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
        mounts.append({"name": "data", "mountPath": DATA, "readOnly": True})
    container = {
        "name": name,
        "image": kubernetes.image,
        "args": list(arguments),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": hardware.grace_sec,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
        },
        "containers": [container],
        "volumes": volumes,
    }


def _node_selector(hardware: Hardware) -> dict[str, str]:
    found = dict(hardware.kubernetes.node_selector)
    if hardware.tpus:
        found["cloud.google.com/gke-tpu-accelerator"] = hardware.tpu_type
        found["cloud.google.com/gke-tpu-topology"] = hardware.tpu_topology
    return found


def _resources(hardware: Hardware) -> dict[str, dict[str, str]]:
    found = {}
    if hardware.gpus:
        found["nvidia.com/gpu"] = str(hardware.gpus)
    if hardware.tpus:
        found["google.com/tpu"] = str(hardware.tpus)
    if hardware.cpus:
        found["cpu"] = str(hardware.cpus)
    if hardware.memory_gb:
        found["memory"] = f"{hardware.memory_gb}Gi"
    return {"requests": found, "limits": dict(found)}


def _alone_on_its_node() -> dict[str, Any]:
    """Keeps trials apart: two on one node would spoil each other's times."""
    other = {
        "labelSelector": {"matchLabels": {_LABEL: "algoperf"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [other]}
    }
