"""Two writers never meet on one record."""

import dataclasses
import errno
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from synthetic import run_until

from algoperf import locks, records
from algoperf.errors import OtherWriterError, UserError
from algoperf.records import Status
from algoperf.runner import run_trial


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "synthetic_jax" / "trial_1"


def _dead():
    """Returns the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _write(folder, age_sec=0.0, **facts):
    """Writes a lock as another process would have left it."""
    with locks.hold(folder) as lock:
        owner = dataclasses.replace(lock.owner, token="other", **facts)
    path = locks.path_of(folder)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    then = os.stat(path).st_mtime - age_sec
    os.utime(path, (then, then))


def test_a_lock_says_who_holds_it_and_goes_with_the_holder(folder):
    assert locks.owner_of(folder) is None
    with locks.hold(folder):
        owner = locks.owner_of(folder)
        assert (owner.pid, owner.host) == (os.getpid(), socket.gethostname())
        assert not owner.is_dead
        with pytest.raises(UserError, match=rf"process {os.getpid()} on "):
            locks.hold(folder).__enter__()
    assert locks.owner_of(folder) is None
    assert not folder.parents[1].exists()  # nothing was written there


def test_what_was_written_stays(folder):
    with locks.hold(folder):
        folder.mkdir()
    assert list(folder.parent.iterdir()) == [folder]


def test_another_process_is_refused_while_this_one_holds_the_lock(folder):
    code = (
        "import sys, pathlib; from algoperf import locks\n"
        "with locks.hold(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"process {process.pid}"):
        locks.hold(folder).__enter__()
    process.kill()  # it cannot release anything
    process.communicate()
    assert locks.path_of(folder).exists()
    with locks.hold(folder) as lock:
        assert lock.owner.pid == os.getpid()


@pytest.mark.parametrize(
    ("facts", "age_sec", "stale"),
    [
        ({}, 1e6, False),  # this process: alive, however old the file
        ({"pid": "dead"}, 0, True),
        ({"started": 1.0}, 0, True),  # the id has gone to another process
        # This host before it was started again, or another one of its name.
        ({"system": "another boot"}, 0, False),
        ({"system": "another boot"}, locks.RESTART_SEC - 10, False),
        ({"system": "another boot"}, locks.RESTART_SEC + 10, True),
        ({"system": "boot another"}, 0, False),  # a container beside this one
        ({"system": "boot another"}, locks.STALE_SEC + 60, True),
        ({"host": "elsewhere"}, 0, False),
        ({"host": "elsewhere", "pid": "dead"}, 0, False),
        ({"host": "elsewhere"}, locks.STALE_SEC - 30, False),
        ({"host": "elsewhere"}, locks.STALE_SEC + 60, True),
    ],
)
def test_a_stale_lock_is_taken_over(folder, facts, age_sec, stale):
    facts = dict(facts)
    if facts.get("pid") == "dead":
        facts["pid"] = _dead()
    if facts.get("system", "").startswith("boot "):
        facts["system"] = locks._system().partition(" ")[0] + " another"
    _write(folder, age_sec, **facts)
    assert (locks.owner_of(folder) is None) == stale
    if stale:
        with locks.hold(folder) as lock:
            assert json.loads(lock.path.read_text())["token"] == lock.owner.token
        assert not locks.path_of(folder).exists()
    else:
        with pytest.raises(UserError, match="is being written by process"):
            locks.hold(folder).__enter__()
        assert json.loads(locks.path_of(folder).read_text())["token"] == "other"


def test_a_zombie_holds_nothing(folder):
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert locks._start_time(process.pid) is None
    process.wait()


@pytest.fixture
def no_links(monkeypatch):
    def link(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", link)


def test_records_need_a_file_system_with_hard_links(folder, no_links):
    with pytest.raises(UserError, match="must know hard links; choose another --out"):
        locks.hold(folder).__enter__()


@pytest.mark.parametrize("is_new", [False, True])
def test_one_of_many_gets_the_lock_without_hard_links(folder, is_new, no_links):
    _one_of_many(folder, is_new, needs_links=False)


def test_who_died_while_making_a_lock_without_hard_links(folder, no_links):
    folder.parent.mkdir(parents=True)
    turn = folder.with_name(f"{locks.path_of(folder).name}.turn")
    turn.touch()
    then = turn.stat().st_mtime - locks.STALE_SEC - 60
    os.utime(turn, (then, then))
    with locks.hold(folder, needs_links=False) as lock:
        lock.check()
    assert not turn.exists()


def test_one_of_many_takes_a_stale_lock_over(folder):
    _one_of_many(folder, is_new=False)


def _one_of_many(folder, is_new, **options):
    """Eight at once ask for a lock that is new, or a dead process's."""
    if not is_new:
        with locks.hold(folder, **options) as lock:
            owner = dataclasses.replace(lock.owner, token="other", pid=_dead())
        lock.path.parent.mkdir(parents=True)
        lock.path.write_text(json.dumps(dataclasses.asdict(owner)))
    start, release = threading.Barrier(8), threading.Event()
    holders, refused = [], []

    def take():
        start.wait()
        try:
            with locks.hold(folder, **options) as lock:
                holders.append(lock)
                release.wait(20)
                lock.check()
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(400):
        if len(holders) + len(refused) == 8:
            break
        release.wait(0.05)
    release.set()
    for thread in threads:
        thread.join()
    assert (len(holders), len(refused)) == (1, 7)
    assert not list(folder.parent.parent.rglob(".*"))  # no claim, no temporary file


def test_a_lock_whose_making_was_told_twice_is_held(folder, monkeypatch):
    """NFS sends a call again when the answer is lost; the second finds a file there."""
    link = os.link

    def link_twice(*arguments):
        link(*arguments)
        link(*arguments)

    monkeypatch.setattr(os, "link", link_twice)
    with locks.hold(folder) as lock:
        lock.check()
        with pytest.raises(UserError, match="is being written by"):
            locks.hold(folder).__enter__()
    _write(folder, pid=_dead())  # so a claim is made too
    with locks.hold(folder) as lock:
        lock.check()
    assert not list(folder.parent.parent.rglob(".*"))


def test_a_lock_is_on_the_disk_before_it_has_its_name(folder, monkeypatch):
    """After a power cut it would be there and empty."""
    calls = []
    for name in ("fsync", "link"):
        real = getattr(os, name)

        def noted(*arguments, name=name, real=real):
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, noted)
    with locks.hold(folder):
        assert calls == ["fsync", "link"]


def test_the_owner_touches_its_lock(folder, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SEC", 0.01)
    with locks.hold(folder) as lock:
        os.utime(lock.path, (0, 0))
        for _ in range(500):
            if lock.path.stat().st_mtime > 0:
                break
            threading.Event().wait(0.01)
        assert locks._age_sec(lock.path) < 60


def test_a_lock_that_is_none_is_one_line(folder):
    folder.parent.mkdir(parents=True)
    locks.path_of(folder).write_text("[]")
    with pytest.raises(UserError, match="remove it"):
        locks.hold(folder).__enter__()


def test_a_trial_is_locked_while_it_runs_and_free_when_it_ended(make_config):
    config = make_config()
    seen = []

    def watch(progress):
        seen.append(locks.owner_of(config.folder))
        if progress.step == 2:
            before = _files(config)
            with pytest.raises(OtherWriterError, match="is being written by"):
                run_trial(config, resume=True)
            assert _files(config) == before

    assert run_trial(config, watch=watch)["status"] is Status.COMPLETED
    assert {owner.pid for owner in seen} == {os.getpid()}
    assert locks.owner_of(config.folder) is None
    assert run_trial(config, resume=True)["status"] is Status.COMPLETED


def _files(config):
    files = [p for p in config.folder.rglob("*") if p.is_file()]
    return {p: p.read_bytes() for p in files}


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_trial_that_lost_its_lock_writes_no_more(make_config, is_stopped):
    """It stood still for minutes, and another host went on with the record."""
    config = make_config()
    assert run_until(config, 4)["status"] is Status.PREEMPTED
    before = {}

    def watch(progress):
        if progress.step == 6:
            path = locks.path_of(config.folder)
            owner = json.loads(path.read_text()) | {"host": "elsewhere", "token": "x"}
            path.write_text(json.dumps(owner))
            before.update(_files(config))

    with pytest.raises(UserError, match=r"taken over by process .* on elsewhere"):
        run_trial(
            config,
            resume=True,
            watch=watch,
            should_stop=lambda: is_stopped and bool(before),
        )
    assert before == _files(config)
    assert locks.path_of(config.folder).exists()  # the other's
    record = records.read_record(config.folder)
    assert record["status"] is Status.RUNNING
