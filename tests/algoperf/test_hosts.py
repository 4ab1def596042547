"""What hosts tell each other: decisions, facts, failures. Threads play the hosts."""

import json
import threading
import time

import pytest

from algoperf import hosts as hosts_module
from algoperf.errors import OtherRunError, UserError
from algoperf.hosts import KEYS_KEPT, Hosts, OtherHostError, is_exchange
from algoperf.records import Status


class FakeStore:
    """What a client of `jax.distributed` does, in memory."""

    def __init__(self):
        self.values = {}
        self._changed = threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self.values, "set twice"
            self.values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._changed:
            if not self._changed.wait_for(
                lambda: key in self.values, timeout_in_ms / 1000
            ):
                raise JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, prefix):
        with self._changed:
            return [i for i in self.values.items() if i[0].startswith(prefix)]

    def key_value_delete(self, key):
        with self._changed:
            del self.values[key]


class JaxRuntimeError(Exception):
    """Known by its name."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(hosts_module, "FAILURE_WAIT_SEC", 0.3)
    monkeypatch.setattr(hosts_module, "ASK_SEC", 0.05)


def on_each(count, program, store=None):
    """Runs `program(hosts)` on so many hosts; returns results or exceptions."""
    store = store or FakeStore()
    results = [None] * count

    def run(index):
        try:
            results[index] = program(Hosts(index, count, store))
        except Exception as error:
            results[index] = error

    threads = [
        threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


def test_alone_nothing_is_shared():
    alone = Hosts()
    assert alone.is_leader
    assert alone.share({"a": 1}) == {"a": 1}
    assert alone.any_says(True)
    assert not alone.any_says(False)
    assert alone.call(lambda: 3) == 3
    alone.must_be_alike({"seed": 1})
    alone.stop(UserError("bad"))
    assert alone.failure(ValueError(), "bad") == (Status.FAILED, "bad")


def test_the_leader_decides_and_old_decisions_are_forgotten():
    store, count = FakeStore(), KEYS_KEPT + 50
    device = threading.Barrier(3)  # bounds how far hosts are apart, as in a run

    def program(hosts):
        seen = []
        for number in range(count):
            seen.append(hosts.share([hosts.index, number]))
            if number % 8 == 0:
                device.wait(20)
        return seen

    results = on_each(3, program, store)
    assert results == [[[0, number] for number in range(count)]] * 3
    assert len(store.values) <= KEYS_KEPT


@pytest.mark.parametrize("asking", [0, 2])
def test_all_stop_at_one_step_if_one_is_asked(asking):
    def program(hosts):
        for step in range(1000):
            if hosts.any_says(hosts.index == asking and step >= 5):
                return step
            time.sleep(0.001 * hosts.index)

    steps = on_each(3, program)
    assert len(set(steps)) == 1
    assert steps[0] >= 5


def test_a_user_error_of_the_leader_is_raised_on_all():
    def look():
        raise OtherRunError("the folder holds another run")

    results = on_each(2, lambda hosts: hosts.call(look))
    assert [str(error) for error in results] == ["the folder holds another run"] * 2
    assert all(isinstance(error, UserError) for error in results)
    assert [error.exit_status for error in results] == [OtherRunError.exit_status] * 2
    assert on_each(2, lambda hosts: hosts.call(lambda: hosts.index)) == [0, 0]


def test_facts_that_differ_are_named_on_all():
    def program(hosts):
        seed = 7 if hosts.index == 2 else 0
        hosts.must_be_alike({"jax": "1", "--seed": seed})

    for error in on_each(3, program):
        assert isinstance(error, UserError)
        assert "hosts 0 and 2 differ in --seed: 0 and 7" in str(error)
    assert on_each(3, lambda hosts: hosts.must_be_alike({"a": 1})) == [None] * 3


def test_a_host_that_says_nothing_is_named():
    def program(hosts):
        if hosts.index == 0:
            hosts.must_be_alike({}, timeout_sec=0.2)

    error, _ = on_each(2, program)
    assert "host 1 did not say what it runs within" in str(error)


BROKEN = JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer")


def _ends(hosts, error, text):
    return (*hosts.failure(error, text), hosts.is_broken)


def test_a_failure_of_one_host_is_that_of_all():
    def program(hosts):
        if hosts.index == 1:
            return _ends(hosts, ValueError("bug"), "ValueError: bug")
        time.sleep(0.1)
        return _ends(hosts, BROKEN, "Gloo")

    results = on_each(3, program)
    assert results == [(Status.FAILED, "on host 1: ValueError: bug", True)] * 3


def test_a_failure_of_all_hosts_breaks_nothing():
    """The study goes on; what failed before is not told again."""

    def program(hosts):
        time.sleep(0.05 * hosts.index)
        return _ends(hosts, ValueError(), "bug"), hosts._told()

    assert on_each(3, program) == [((Status.FAILED, "bug", False), {})] * 3


def test_a_host_that_is_lost_later_did_not_fail_as_the_trial_before():
    def program(hosts):
        hosts.failure(ValueError(), "bug")
        hosts.share(2)  # the next trial
        if hosts.index == 1:
            return None  # gone
        return _ends(hosts, BROKEN, "Gloo: closed")

    (status, message, is_broken), _, _ = on_each(3, program)
    assert (status, is_broken) == (Status.PREEMPTED, True)
    assert "another host is lost" in message


def test_a_lost_host_is_no_failure():
    def program(hosts):
        if hosts.index == 1:
            return None  # gone
        return _ends(hosts, BROKEN, "Gloo: closed")

    (status, message, is_broken), _, _ = on_each(3, program)
    assert status is Status.PREEMPTED
    assert "another host is lost; go on with --resume" in message
    assert is_broken


def test_a_user_error_of_one_host_is_one_of_all():
    def program(hosts):
        if hosts.index == 1:
            hosts.stop(UserError("no space"))
            return None
        time.sleep(0.1)
        return _ends(hosts, BROKEN, "Gloo: closed")

    error, *_ = on_each(2, program)
    assert isinstance(error, UserError)
    assert str(error) == "on host 1: no space"


def test_a_host_that_waits_for_a_decision_hears_why_none_comes():
    def program(hosts):
        if hosts.index == 0:
            hosts.stop(UserError("disk full"))
            return hosts.is_broken
        try:
            hosts.any_says(False)
        except OtherHostError as error:
            return _ends(hosts, error, "never told")

    is_broken, error = on_each(2, program)
    assert is_broken
    assert isinstance(error, UserError)
    assert str(error) == "on host 0: disk full"


def test_what_ends_the_run_after_a_failure_of_all_is_heard_too():
    """The disk is full when the leader writes how the trial failed."""

    def program(hosts):
        ends = _ends(hosts, ValueError("bug"), "bug")
        assert ends == (Status.FAILED, "bug", False)
        if hosts.is_leader:
            hosts.stop(UserError("disk full"))
            return hosts.is_broken
        with pytest.raises(OtherHostError, match="on host 0: disk full"):
            hosts.any_says(False)
        return hosts.is_broken

    assert on_each(2, program) == [True] * 2


def test_a_store_that_is_gone_hides_no_error():
    class Gone(FakeStore):
        def key_value_set(self, key, value):
            raise JaxRuntimeError("UNAVAILABLE")

    hosts = Hosts(1, 2, Gone())
    hosts.stop(UserError("disk full"))
    assert hosts.is_broken


def test_a_user_error_of_all_hosts_breaks_nothing():
    def program(hosts):
        hosts.stop(UserError("no space"))
        return hosts.is_broken

    assert on_each(3, program) == [False] * 3


def test_a_host_that_waits_for_devices_is_told_beside():
    """Each failure once, and none of its own."""
    heard = []

    def program(hosts):
        stop = hosts.listen(lambda *what: heard.append((hosts.index, *what)))
        if hosts.index == 1:
            hosts.stop(UserError("disk full"))
        time.sleep(0.4)
        stop()

    on_each(2, program)
    assert heard == [(0, Status.PREEMPTED, "on host 1: disk full")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BROKEN, True),
        (OtherHostError("on host 1: Gloo"), True),
        (JaxRuntimeError("UNAVAILABLE: Socket closed"), True),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (ValueError("Gloo"), False),
        (UserError("UNAVAILABLE"), False),
    ],
)
def test_errors_of_the_exchange_are_told_from_a_programs(error, expected):
    assert is_exchange(error) is expected


def test_what_is_told_is_json():
    store = FakeStore()
    Hosts(1, 2, store).stop(UserError("x"))
    (value,) = store.values.values()
    assert json.loads(value) == {"text": "x", "is_user_error": True}
