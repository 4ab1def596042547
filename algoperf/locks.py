"""One writer per record or store: a lock file beside the folder or file.

The lock names its owner: host, process id, when that process started, and which
running system it is of (boot id and process namespace), so that a process id that
means something else by now is not taken for the owner. The owner touches the file
every `BEAT_SEC` seconds from a thread of its own.

A lock is stale, and is taken over, if its owner is dead, which only its own system can
tell; for any other system if it was not touched for `STALE_SEC` seconds, or for
`RESTART_SEC` if that was another boot of this host. A lock is made with `link`, which
fails if the name is there, on shared file systems too; `_rename` stands in for it where
no records lie. Two processes that find the same stale lock are told apart by a claim,
made the same way and named after the lock's token: one of them gets it.
"""

import contextlib
import dataclasses
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from algoperf import records
from algoperf.errors import OtherWriterError, UserError

BEAT_SEC = 15.0
STALE_SEC = 120.0  # eight beats: a file server may be slow, clocks do not matter
# Most hosts take longer to start again. That the boot is another one does not say alone
# that the owner is gone: virtual machines may all have one name.
RESTART_SEC = 2 * BEAT_SEC


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that holds a lock."""

    host: str
    system: str  # of one boot and one process namespace
    pid: int
    started: float  # of no meaning elsewhere: clock ticks since boot, on Linux
    token: str  # of this holding alone

    @property
    def is_here(self) -> bool:
        """Whether this process can see the owner's."""
        return (self.host, self.system) == (socket.gethostname(), _system())

    @property
    def is_dead(self) -> bool:
        """Whether the process is gone for certain."""
        return self.is_here and _start_time(self.pid) != self.started

    @property
    def stale_sec(self) -> float:
        """How long its lock lies untouched until those who cannot see it take over."""
        boot, here = self.system.partition(" ")[0], _system().partition(" ")[0]
        is_restart = self.host == socket.gethostname() and boot != here
        return RESTART_SEC if is_restart else STALE_SEC

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A lock while it is held."""

    def __init__(self, path: Path, owner: Owner):
        self.path = path
        self.owner = owner

    def check(self) -> None:
        """Raises UserError if another process has taken the lock over.

        That happens to a process that stood still for so long that it passed for dead.
        """
        found = _read(self.path)
        if found is None or found.token != self.owner.token:
            by = "was removed" if found is None else f"was taken over by {found}"
            raise UserError(
                f"{_record(self.path)} has another writer: its lock {by}, this process "
                "gives up"
            )


def path_of(folder: Path) -> Path:
    """Returns where the lock of a trial's folder or a file lies."""
    return folder.with_name(f".{folder.name}.lock")


def owner_of(folder: Path) -> Owner | None:
    """Returns who writes the record in a folder; None if nobody does any more."""
    path = path_of(folder)
    owner = _read(path)
    return None if owner is None or _is_stale(path, owner) else owner


@contextlib.contextmanager
def hold(
    folder: Path,
    wait_sec: float = 0.0,
    flag: str = "--out",
    needs_links: bool = True,
) -> Iterator[Lock]:
    """Holds the lock of a trial's folder or a file, which need not exist.

    Args:
      folder: what to hold.
      wait_sec: how long to wait for another process.
      flag: that chose the place, for messages.
      needs_links: refuse a file system without hard links; else make the lock there by
        other means, which not every file server keeps to.

    Raises:
      OtherWriterError: another process holds it.
      UserError: the lock cannot be written.
    """
    path = path_of(folder)
    made = _make_folders(path.parent, flag)
    owner = Owner(
        host=socket.gethostname(),
        system=_system(),
        pid=os.getpid(),
        started=_start_time(os.getpid()) or 0.0,
        token=uuid.uuid4().hex,
    )
    link = functools.partial(_link, flag=flag, needs_links=needs_links)
    _acquire(path, owner, time.monotonic() + wait_sec, link)
    lock = Lock(path, owner)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(lock, stop), daemon=True)
    beat.start()
    try:
        yield lock
    finally:
        stop.set()
        beat.join()
        found = _read(path)
        if found is not None and found.token == owner.token:
            path.unlink(missing_ok=True)
        for empty in made:
            with contextlib.suppress(OSError):  # a trial has written there
                empty.rmdir()


def _make_folders(folder: Path, flag: str) -> list[Path]:
    """Makes a folder and those above it; returns the new ones, the deepest first."""
    made = []
    for above in (folder, *folder.parents):
        if above.exists():
            break
        made.append(above)
    records.make_folder(folder, flag)
    return made


def _acquire(
    path: Path, owner: Owner, until: float, link: Callable[[Path, Owner], bool]
) -> None:
    """Makes the lock, or takes over a stale one; gives up at a moment."""
    while (found := _read(path)) is not None or not link(path, owner):
        if found is None:
            continue  # another process was faster
        if not _is_stale(path, found):
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise OtherWriterError(
                f"{_record(path)} is being written by {found}; wait for it, or end it "
                f"(if it cannot be alive, remove {path})"
            )
        claim = path.with_name(f"{path.name}.{found.token}")
        if not link(claim, owner):
            if _age_sec(claim) > STALE_SEC:  # its maker died within this very moment
                claim.unlink(missing_ok=True)
            time.sleep(0.05)
            continue
        try:
            now = _read(path)
            if now is not None and now.token == found.token:
                _replace(path, owner)
                return
        finally:
            claim.unlink(missing_ok=True)


def _link(path: Path, owner: Owner, flag: str, needs_links: bool) -> bool:
    """Makes a file that names the owner, whole; returns False if one is there."""
    temporary = _write_temporary(path, owner)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # Over NFS a call may be sent twice, and the second find what the first made.
        found = _read(path)
        return found is not None and found.token == owner.token
    except OSError as error:
        if not needs_links:
            return _rename(temporary, path)
        raise UserError(
            f"cannot lock {_record(path)} ({error.strerror}): its file system must "
            f"know hard links; choose another {flag}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _rename(temporary: Path, path: Path) -> bool:
    """Does what `link` does, where there are no hard links: on exFAT or CIFS, say.

    Renaming replaces what is there. So whoever looks whether there is something has to
    make a file first that only one can make.
    """
    turn = path.with_name(f"{path.name}.turn")
    try:
        os.close(os.open(turn, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        if _age_sec(turn) > STALE_SEC:  # its maker died within this very moment
            turn.unlink(missing_ok=True)
        time.sleep(0.05)
        return False
    except OSError as error:
        raise UserError(f"cannot lock {_record(path)}: {error.strerror}") from error
    try:
        if path.exists():
            return False
        os.replace(temporary, path)
        return True
    finally:
        turn.unlink(missing_ok=True)


def _replace(path: Path, owner: Owner) -> None:
    os.replace(_write_temporary(path, owner), path)


def _write_temporary(path: Path, owner: Owner) -> Path:
    temporary = path.with_name(f"{path.name}.{owner.token}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # left empty by another trial
        with temporary.open("w") as file:
            json.dump(dataclasses.asdict(owner), file)
            file.flush()
            os.fsync(file.fileno())  # else a lock may be empty after a power cut
    except OSError as error:
        raise UserError(
            f"cannot write {temporary}: {error.strerror}; choose another folder"
        ) from error
    return temporary


def _read(path: Path) -> Owner | None:
    """Returns who is named in a lock; None if it is not there."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no lock of ours; remove it") from error


def _is_stale(path: Path, owner: Owner) -> bool:
    if owner.is_here:
        return owner.is_dead
    return _age_sec(path) > owner.stale_sec


def _age_sec(path: Path) -> float:
    """Returns how long ago a file was touched, by the clock of its file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.now")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # gone meanwhile, so nobody's
    except OSError:  # we may read here and not write
        return time.time() - path.stat().st_mtime


def _beat(lock: Lock, stop: threading.Event) -> None:
    """Touches the lock until asked to stop."""
    while not stop.wait(BEAT_SEC):
        try:
            os.utime(lock.path)
        except OSError:
            continue  # the next write of the record says what is wrong


def _record(path: Path) -> Path:
    """Returns what a lock is for."""
    return path.with_name(path.name.removeprefix(".").removesuffix(".lock"))


def _start_time(pid: int) -> float | None:
    """Returns when a process started; None if there is none, or only its corpse."""
    if not Path("/proc/self/stat").exists():
        return _start_time_elsewhere(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else float(fields[19])  # proc(5): field 22


def _start_time_elsewhere(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return None if dead else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _system() -> str:
    """Returns what tells this boot and process namespace from others."""
    names = []
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            names.append(read())
        except OSError:  # not Linux
            names.append("-")
    return " ".join(names)
