"""Manifests fit the published schemas, and their pods run each trial once."""

import json

import pytest

from algoperf import cli
from algoperf.errors import UserError
from algoperf.launch import kubernetes
from algoperf.launch.cluster import Hardware, Kubernetes

kubernetes_validate = pytest.importorskip("kubernetes_validate")

PODS = Kubernetes(image="registry/algoperf:1", out_claim="records", data_claim="sets")
GPU = Hardware(
    name="a100",
    gpus=8,
    cpus=90,
    memory_gb=600,
    parallel=4,
    grace_sec=300,
    kubernetes=PODS,
)
TPU = Hardware(
    name="v5e",
    tpus=8,
    tpu_type="tpu-v5-lite-podslice",
    tpu_topology="2x4",
    kubernetes=Kubernetes(
        image="registry/algoperf:1",
        out_claim="records",
        node_selector={"cloud.google.com/gke-spot": "true"},
    ),
)
PARTS = [(GPU, ["--workloads=wmt"], 12), (TPU, ["--workloads=ogbg"], 2)]
# The fields of jobset.x-k8s.io/v1alpha2 that we write, with their types, from
# api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset. The templates in it are
# those of batch/v1.
JOBSET = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"maxRestarts": {"type": "integer", "minimum": 0}},
                },
                "replicatedJobs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer"},
                            "template": {"type": "object"},
                            "dependsOn": {
                                "type": "array",
                                "maxItems": 5,
                                "items": {
                                    "type": "object",
                                    "required": ["name", "status"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "name": {"type": "string"},
                                        "status": {"enum": ["Ready", "Complete"]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def validate(job):
    for version in ("1.33", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(job, version, strict=True)


def make(kind, parts=PARTS):
    return kubernetes.manifest(parts, kind, "algoperf-runs", ["/out/runs"])


def test_jobs_fit_the_schema():
    found = make("job")
    assert (found["apiVersion"], found["kind"]) == ("v1", "List")
    for job in found["items"]:
        validate(job)
    names = [job["metadata"]["name"] for job in found["items"]]
    assert names == ["algoperf-runs-a100", "algoperf-runs-v5e"]


def test_the_schema_finds_mistakes():
    job = make("job")["items"][0]
    job["spec"]["completion"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(job)


def test_a_jobset_fits_its_fields_and_its_templates_the_schema():
    import jsonschema

    found = make("jobset")
    jsonschema.validate(found, JOBSET)
    parts = found["spec"]["replicatedJobs"]
    for part in parts:
        validate(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": part["name"]},
                **part["template"],
            }
        )
    # Scoring comes last, as it must (the first part can wait for nothing).
    assert [part["name"] for part in parts] == ["a100", "v5e", "score"]
    assert [wait["name"] for wait in parts[-1]["dependsOn"]] == ["a100", "v5e"]
    container = parts[-1]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == ["score", "/out/runs"]


def test_a_pod_runs_the_trial_of_its_index_alone_on_its_node():
    spec = make("job")["items"][0]["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", 12)
    assert spec["parallelism"] == 4
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == [
        "sweep",
        "--workloads=wmt",
        "--only=$(JOB_COMPLETION_INDEX)",
    ]
    assert container["resources"]["limits"] == {
        "nvidia.com/gpu": "8",
        "cpu": "90",
        "memory": "600Gi",
    }
    assert pod["terminationGracePeriodSeconds"] == 300
    labels = spec["template"]["metadata"]["labels"].items()
    (rule,) = pod["affinity"]["podAntiAffinity"].popitem()[1]
    assert rule["labelSelector"]["matchLabels"].items() <= labels
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["data"]["readOnly"]
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}


def test_a_tpu_slice():
    pod = make("job")["items"][1]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "8"}


@pytest.mark.parametrize("kind", kubernetes.KINDS)
def test_a_missing_image_is_one_line(kind):
    with pytest.raises(UserError, match='"image" under "kubernetes" of node'):
        make(kind, [(Hardware(name="node"), [], 1)])


def test_scoring_can_wait_for_five_types():
    parts = [
        (Hardware(name=f"n{number}", kubernetes=PODS), [], 1) for number in range(6)
    ]
    assert len(make("job", parts)["items"]) == 6
    with pytest.raises(UserError, match="5 types"):
        make("jobset", parts)


@pytest.fixture
def cluster(tmp_path):
    path = tmp_path / "cluster.json"
    pods = {"image": "registry/algoperf:1", "out_claim": "records"}
    content = {
        "gpu": {"workloads": ["wmt*"], "gpus": 1, "kubernetes": pods},
        "cpu": {"kubernetes": pods},
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", kubernetes.KINDS)
def test_the_command_prints_a_manifest(cluster, capsys, kind):
    arguments = ["--submissions=adamw,momentum", "--workloads=ogbg,wmt,fastmri"]
    arguments += ["--trials=2", "--max_steps=4", "--out=here/Runs_1"]
    arguments += [f"--cluster={cluster}", "--executor=kubernetes", f"--kind={kind}"]
    assert cli.main(["sweep", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    if kind == "jobset":
        parts = found["spec"]["replicatedJobs"]
        specs = [part["template"]["spec"] for part in parts[:-1]]
        assert found["metadata"]["name"] == "algoperf-runs-1"
    else:
        specs = [item["spec"] for item in found["items"]]
        for item in found["items"]:
            validate(item)
    by_count = {spec["completions"]: spec for spec in specs}
    assert set(by_count) == {4, 8}  # submissions x workloads x trials
    args = by_count[8]["template"]["spec"]["containers"][0]["args"]
    assert "--workloads=ogbg_mini,fastmri_mini" in args
    assert "--out=/out/Runs_1" in args
    assert "--max_steps=4" in args


def test_only_pods_that_mount_the_data_look_for_it_there(cluster, capsys):
    content = json.loads(cluster.read_text())
    content["gpu"]["kubernetes"] = {**content["gpu"]["kubernetes"], "data_claim": "d"}
    cluster.write_text(json.dumps(content))
    arguments = ["sweep", "--submissions=adamw", "--workloads=wmt,ogbg", "--out=runs"]
    arguments += ["--executor=kubernetes", f"--cluster={cluster}"]
    assert cli.main(arguments) == 0
    pods = [
        item["spec"]["template"]["spec"]["containers"][0]
        for item in json.loads(capsys.readouterr().out)["items"]
    ]
    assert len(pods) == 2
    for pod in pods:
        is_mounted = "/data" in [mount["mountPath"] for mount in pod["volumeMounts"]]
        assert ("--workloads=wmt_mini" in pod["args"]) == is_mounted
        assert ("--data_dir=/data" in pod["args"]) == is_mounted


def test_a_folder_that_a_dot_names_has_its_name_in_the_cluster(
    cluster, capsys, tmp_path, monkeypatch
):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    arguments = ["sweep", "--submissions=adamw", "--workloads=wmt,ogbg", "--out=."]
    arguments += ["--executor=kubernetes", f"--cluster={cluster}", "--kind=jobset"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["metadata"]["name"] == "algoperf-runs"
    assert '"--out=/out/runs"' in text
    assert '"--report=/out/runs-score.html"' in text


def test_only_runs_one_trial(tmp_path, capfd, monkeypatch):
    from algoperf.launch import jobs, local

    seen = []

    def run_jobs(wanted, *arguments, **options):
        seen.extend(wanted)
        yield wanted[0], 0

    monkeypatch.setattr(local, "run_jobs", run_jobs)
    arguments = ["sweep", "--submissions=adamw,momentum", "--workloads=wmt,ogbg"]
    arguments += ["--trials=2", f"--out={tmp_path}"]
    # It left no result: Kubernetes is told to make the pod again.
    assert cli.main([*arguments, "--only=5"]) == jobs.UNFINISHED
    monkeypatch.setattr(jobs, "is_finished", lambda folder: True)
    assert cli.main([*arguments, "--only=5"]) == 0
    assert cli.main([*arguments, "--only=8"]) == 1
    assert "has trials 0 to 7" in capfd.readouterr().err
    names = {job.folder.relative_to(tmp_path) for job in seen}
    assert [str(n) for n in names] == ["momentum/study_0/ogbg_mini_jax/trial_1"]
    assert cli.main([*arguments, "--only=5", "--executor=slurm"]) == 1
