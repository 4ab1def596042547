"""The one exception for mistakes that a user can mend, and what asks a run to stop."""

import difflib
import signal
from collections.abc import Iterable

# A terminal's, a service manager's, and those that Slurm can send some time ahead
# (sbatch --signal).
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class UserError(Exception):
    """Something the user can mend; the message says what is wrong and what to do.

    Raised anywhere, caught once, in `algoperf.cli`, which prints the message as one
    line and exits with `exit_status`.
    """

    exit_status = 1


class OtherRunError(UserError):
    """A folder holds the record of another run than the one that is asked for."""

    exit_status = 73  # EX_CANTCREAT of sysexits.h; 1 is also a run that diverged


class OtherWriterError(UserError):
    """Another process writes where this one is to; what it leaves may be enough."""

    exit_status = 69  # EX_UNAVAILABLE of sysexits.h


def unknown_name(
    kind: str, name: str, known: Iterable[str], listing: str = ""
) -> UserError:
    """Returns the error for a name that is not among `known`, nearest names first.

    Args:
      kind: what it is a name of.
      name: what is unknown.
      known: the others.
      listing: the command that lists them, if they are too many for a line.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif listing:
        hint = f"`{listing}` lists those that there are"
    else:
        hint = f"known: {', '.join(names) or 'none'}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
