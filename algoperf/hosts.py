"""What the hosts of one run tell each other, beside what their devices exchange.

Every host runs the same program, and host 0 leads: it writes the record, and what
depends on time is decided by its clock. Decisions travel through the key-value store
of `jax.distributed`, not through the devices, so that no step waits for them.
"""

import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from algoperf.errors import UserError
from algoperf.records import Status

DAY_MS = 24 * 3600 * 1000  # a host that dies ends a wait by other means
FAILURE_WAIT_SEC = 5.0
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

    @property
    def is_leader(self) -> bool:
        """Whether this host decides and writes."""
        return self.index == 0

    def share(self, value: Any) -> Any:
        """Returns the leader's value, which JSON can hold, on every host."""
        if self._store is None:
            return value
        self._number += 1
        key = f"algoperf/decision/{self._number}"
        if not self.is_leader:
            return json.loads(self._store.blocking_key_value_get(key, DAY_MS))
        self._store.key_value_set(key, json.dumps(value))
        if self._number > KEYS_KEPT:
            old = self._number - KEYS_KEPT
            self._store.key_value_delete(f"algoperf/decision/{old}")
        return value

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
          UserError: the function raised it there.
        """
        if self._store is None:
            return function()
        answer: dict[str, Any] = {}
        if self.is_leader:
            try:
                answer["value"] = function()
            except UserError as error:
                answer["error"] = str(error)
        answer = self.share(answer)
        if "error" in answer:
            raise UserError(answer["error"])
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
        between hosts is the consequence of what another one has told; if none has
        told anything, a host is lost, and the trial can go on when it is back.

        Raises:
          UserError: another host ended the trial with it.
        """
        if self._store is None:
            return Status.FAILED, text
        if not is_exchange(error):
            self.tell(error, text)
        deadline = time.monotonic() + FAILURE_WAIT_SEC
        told = self._told()
        while len(told) < self.count and time.monotonic() < deadline:
            time.sleep(0.1)
            told = self._told()
        self.is_broken = len(told) < self.count
        if not told:
            return Status.PREEMPTED, f"{LOST} ({text[:200]})"
        self._known |= {key for key, _ in told.values()}
        host = min(told)
        about = told[host][1]
        if about["is_user_error"] and host != self.index:
            raise UserError(f"on host {host}: {about['text']}")
        where = "" if len(told) == self.count else f"on host {host}: "
        return Status.FAILED, where + about["text"]

    def tell(self, error: BaseException, text: str) -> None:
        """Tells the other hosts what ends the trial here."""
        if self._store is None:
            return
        about = {"text": text, "is_user_error": isinstance(error, UserError)}
        self._store.key_value_set(
            f"algoperf/failed/{self._number}/{self.index}", json.dumps(about)
        )

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
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool({"JaxRuntimeError", "XlaRuntimeError"} & kinds) and any(
        word in str(error) for word in _EXCHANGE
    )
