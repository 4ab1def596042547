"""The command line: `algoperf COMMAND [--flag value ...]`.

A command is a module beside this file with `USAGE`, `define_flags` and `main`; its
docstring's first line is its help. Commands import JAX inside `main`, so that help and
mistakes in flags are answered at once.
"""

import contextlib
import importlib
import itertools
import logging as python_logging
import os
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType

from absl import flags, logging

from algoperf.errors import UserError, unknown_name

COMMANDS = (
    "demo",
    "run",
    "sweep",
    "status",
    "calibrate",
    "tune",
    "step_times",
    "numerics",
    "reparam",
    "score",
    "workloads",
    "infer",
    "heldout",
    "data",
    "submissions",
    "check",
    "new",
    "doctor",
)


_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


def run() -> None:
    """Entry point of the console script."""
    code = main(sys.argv[1:])
    if code == _INTERRUPTED:
        # JAX that was interrupted in its work may crash when Python ends.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # its reader has left
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns 0, 2 for usage, or the status of the failure."""
    try:
        return _dispatch(list(arguments))
    except UserError as error:
        print(f"algoperf: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader of our output, `head` say, has left
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("algoperf: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        _print_help()
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(version("algoperf"))
        return 0
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    command = _command(name)
    values = flags.FlagValues()
    command.define_flags(values)
    if "--help" in rest or "-h" in rest:
        _print_command_help(command, values)
        return 0
    try:
        positional = values([name, *_with_underscores(rest, values)])[1:]
    except flags.Error as error:
        print(
            f"algoperf {name}: {_one_line(error)} (see algoperf {name} --help)",
            file=sys.stderr,
        )
        return 2
    _set_up_logging()
    return command.main(values, positional)


def _with_underscores(arguments: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Returns arguments in which `--a-b` is `--a_b`; values stay as they are."""
    found = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        found.append(name + equals + value)
        if argument == "--":  # no flag from here on
            return [*found, *rest]
        key = name.lstrip("-")
        if name[:1] == "-" and not equals and key in values and not values[key].boolean:
            found += itertools.islice(rest, 1)  # its value, whatever it looks like
    return found


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"algoperf.cli.{name}")


def _summary(command: ModuleType) -> str:
    return (command.__doc__ or "").splitlines()[0]


def _print_help() -> None:
    print("Usage: algoperf COMMAND [--flag value ...]\n\nCommands:")
    for name in COMMANDS:
        print(f"  {name:<12} {_summary(_command(name))}")
    print("\nalgoperf COMMAND --help lists the flags of a command.")


def _print_command_help(command: ModuleType, values: flags.FlagValues) -> None:
    print(f"{_summary(command)}\n\nUsage: {command.USAGE}\n\nFlags:")
    for name in values:
        flag = values[name]
        default = "" if flag.default is None else f" [{flag.default}]"
        text = textwrap.indent(textwrap.fill(flag.help or "", 80), " " * 6)
        print(f"  --{name}{default}\n{text}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _set_up_logging() -> None:
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("algoperf: %(message)s"))
