"""What the hosts of one run tell each other, beside what their devices exchange.

Every host runs the same program, and host 0 leads: it writes the record, and what
depends on time is decided by its clock. Decisions travel through the key-value store
of `jax.distributed`, not through the devices, so that no step waits for them.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from algoperf.errors import UserError
from algoperf.records import Status

FAILURE_WAIT_SEC = 5.0
ASK_SEC = 1.0  # how often a host looks for what others have told
KEYS_KEPT = 256  # no host is so many decisions behind


class Store(Protocol):
    """The key-value store; a client of `jax.distributed` is one."""

    def key_value_set(self, key: str, value: str) -> None:
        """Sets a value that is set once."""

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """Waits for a value."""
        ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """Returns what is set under a prefix."""
        ...

    def key_value_delete(self, key: str) -> None:
        """Forgets a value."""


class Hosts:
    """This host among those of the run; alone by default.

    All hosts must call `share` and `any_says` in the same order.
    """

    def __init__(self, index: int = 0, count: int = 1, store: Store | None = None):
        self.index, self.count = index, count
        self.is_broken = False  # what the devices exchange fails from now on
        self._store = store
        self._number = 0  # of the newest decision
        self._has_asked = False
        self._known: set[str] = set()  # failures of trials that have ended
        self._count_told = 0  # failures of this host

    @property
    def is_leader(self) -> bool:
        """Whether this host decides and writes."""
        return self.index == 0

    def share(self, value: Any) -> Any:
        """Returns the leader's value, which JSON can hold, on every host.

        Raises:
          OtherHostError: the leader, or another host, has failed meanwhile.
        """
        if self._store is None:
            return value
        self._number += 1
        key = f"algoperf/decision/{self._number}"
        if not self.is_leader:
            return json.loads(self._wait(self._store, key))
        self._store.key_value_set(key, json.dumps(value))
        if self._number > KEYS_KEPT:
            old = self._number - KEYS_KEPT
            self._store.key_value_delete(f"algoperf/decision/{old}")
        return value

    def _wait(self, store: Store, key: str) -> str:
        """Waits for a value. If a host dies meanwhile, JAX aborts this process."""
        while True:
            try:
                return store.blocking_key_value_get(key, round(ASK_SEC * 1000))
            except Exception as error:  # what the store raises has no public name
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                if told := self._told():
                    self.is_broken = True
                    host, (_, about) = min(told.items())
                    raise OtherHostError(f"on host {host}: {about['text']}") from error

    def any_says(self, flag: bool) -> bool:
        """Returns on every host whether one has said so, now or at an earlier call."""
        if self._store is None:
            return flag
        if flag and not self._has_asked:
            self._has_asked = True
            self._store.key_value_set(f"algoperf/asked/{self.index}", "")
        asked = self.is_leader and bool(
            self._store.key_value_dir_get("algoperf/asked/")
        )
        return self.share(asked)

    def call(self, function: Callable[[], Any]) -> Any:
        """Returns on every host what a function gives on the leader.

        Raises:
          UserError: the function raised it there; the exit status is the same.
        """
        if self._store is None:
            return function()
        answer: dict[str, Any] = {}
        if self.is_leader:
            try:
                answer["value"] = function()
            except UserError as error:
                answer["error"] = str(error), error.exit_status
        answer = self.share(answer)
        if "error" in answer:
            text, exit_status = answer["error"]
            told = UserError(text)
            told.exit_status = exit_status
            raise told
        return answer["value"]

    def must_be_alike(self, facts: dict[str, Any], timeout_sec: float = 30.0) -> None:
        """Raises UserError on every host unless all have the same facts.

        Called once, first of all.
        """
        if self._store is None:
            return
        own = json.dumps(facts)
        self._store.key_value_set(f"algoperf/facts/{self.index}", own)
        wait_ms = round(timeout_sec * 1000)
        for host in range(self.count):
            key = f"algoperf/facts/{host}"
            try:
                other = json.loads(self._store.blocking_key_value_get(key, wait_ms))
            except Exception as error:  # what the store raises has no public name
                raise UserError(
                    f"host {host} did not say what it runs within {timeout_sec:.0f} s; "
                    "its own messages say why"
                ) from error
            if host == 0:
                first = other
            for name in first:
                if other.get(name) != first[name]:
                    raise UserError(
                        f"hosts 0 and {host} differ in {name}: {first[name]} and "
                        f"{other.get(name)}; start the same run on every host"
                    )

    def failure(self, error: BaseException, text: str) -> tuple[Status, str]:
        """Returns how a trial that ended in an error here ends on all hosts.

        An error of this host's own is told to the others. An error of the exchange
        between hosts, or one that another host told, is the consequence of what that
        one met; if none has told anything, a host is lost, and the trial can go on
        when it is back.

        Raises:
          UserError: another host ended the trial with it.
        """
        if self._store is None:
            return Status.FAILED, text
        if not is_exchange(error):
            self._tell(error, text)
        told = self._all_told(error)
        if not told:
            return Status.PREEMPTED, f"{LOST} ({text[:200]})"
        self._known |= {key for key, _ in told.values()}
        host = min(told)
        about = told[host][1]
        if about["is_user_error"] and host != self.index:
            raise UserError(f"on host {host}: {about['text']}")
        where = "" if len(told) == self.count else f"on host {host}: "
        return Status.FAILED, where + about["text"]

    def stop(self, error: UserError) -> None:
        """Tells the other hosts of an error that ends the run here."""
        if not self.is_broken:
            self._tell(error, str(error))
            self._all_told(error)

    def listen(self, heard: Callable[[Status, str], None]) -> Callable[[], None]:
        """Calls `heard` when another host tells a failure; returns how to stop that.

        It gets how the trial ends, and why.

        In a thread of its own, since a host that waits for what devices exchange hears
        nothing, and JAX aborts it when host 0 has gone.
        """
        over = threading.Event()

        def watch() -> None:
            before: set[str] = set()
            while not over.wait(ASK_SEC):
                for host, (key, about) in self._told().items():
                    if host != self.index and key not in before:
                        can_go_on = about["is_user_error"]
                        status = Status.PREEMPTED if can_go_on else Status.FAILED
                        heard(status, f"on host {host}: {about['text']}")
                    before.add(key)

        threading.Thread(target=watch, daemon=True).start()
        return over.set

    def _all_told(self, error: BaseException) -> dict[int, tuple[str, dict[str, Any]]]:
        """Gives the others time to hear what was told, and to tell the same.

        If they do not, they are lost, or wait for this host: the run is broken.
        """
        if self._store is None:
            return {}
        # A host that ends because of another tells nothing itself: all never will.
        wait = 0.0 if isinstance(error, OtherHostError) else FAILURE_WAIT_SEC
        deadline = time.monotonic() + wait
        told = self._told()
        while len(told) < self.count and time.monotonic() < deadline:
            time.sleep(0.1)
            told = self._told()
        self.is_broken = len(told) < self.count
        return told

    def _tell(self, error: BaseException, text: str) -> None:
        if self._store is None:
            return
        self._count_told += 1
        key = f"algoperf/failed/{self._number}.{self._count_told}/{self.index}"
        about = {"text": text[:1000], "is_user_error": isinstance(error, UserError)}
        try:
            self._store.key_value_set(key, json.dumps(about))
        except Exception:  # the store was host 0's, and is gone with it
            self.is_broken = True

    def _told(self) -> dict[int, tuple[str, dict[str, Any]]]:
        """Returns by host the key and the text of its failure in this trial."""
        if self._store is None:
            return {}
        try:
            found = self._store.key_value_dir_get("algoperf/failed/")
        except Exception:  # the store was host 0's, and is gone with it
            return {}
        return {
            int(key.split("/")[-1]): (key, json.loads(value))
            for key, value in found
            if key not in self._known
        }


class OtherHostError(Exception):
    """What another host has told ends the trial here."""


LOST = "another host is lost; go on with --resume, on as many hosts as there are"
# What XLA says when a collective or the store fails; not what a program's errors say.
_EXCHANGE = (
    "Gloo",
    "gloo",
    "NCCL",
    "UNAVAILABLE",
    "Connection closed by peer",
    "Connection reset by peer",
    "coordination service",
    "DEADLINE_EXCEEDED",
    "heartbeat",
)


def is_exchange(error: BaseException) -> bool:
    """Whether an error says that what hosts exchange did not come through."""
    if isinstance(error, OtherHostError):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool({"JaxRuntimeError", "XlaRuntimeError"} & kinds) and any(
        word in str(error) for word in _EXCHANGE
    )
