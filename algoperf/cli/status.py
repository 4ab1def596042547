"""Show how the trials of a sweep stand: waiting, running, finished."""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf.cli import common, printing
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.launch.jobs import Standing

USAGE = "algoperf status DIR [--watch] [--json FILE]"
COLUMNS = ("trial", "status", "where", "step", "seconds", "metric", "value", "message")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf status`."""
    flags.DEFINE_boolean(
        "watch",
        False,
        "Show the table again and again, until nothing is left to do.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "period_sec",
        5.0,
        "How often --watch looks.",
        lower_bound=0.1,
        flag_values=values,
    )
    printing.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Shows the table, once or until all is done; returns 1 if a record is broken."""
    out = Path(common.one_argument(positional, "folder", "status"))
    if not out.is_dir():
        raise UserError(f"{out} is no folder; give the --out of a sweep")
    standings = _look(out)
    if not values.watch:
        printing.show(values.json, _as_json(standings), lambda: _print(standings))
        return _code(standings)
    standings = _watch(out, values.period_sec)
    if values.json is not None:
        printing.write_json(values.json, _as_json(standings))
    return _code(standings)


def _code(standings: "dict[str, Standing]") -> int:
    """Returns 1 if a record cannot be read."""
    from algoperf.launch.jobs import UNREADABLE

    return int(any(one.status == UNREADABLE for one in standings.values()))


def _look(out: Path) -> "dict[str, Standing]":
    """Returns how each trial stands, by its folder within `out`."""
    from algoperf.launch import jobs

    folders = jobs.trial_folders(out)
    if not folders:
        raise UserError(f"{out} holds no sweep and no record; give its --out")
    return {str(f.relative_to(out)): jobs.standing(f) for f in folders}


def _is_done(standings: "dict[str, Standing]") -> bool:
    from algoperf.launch.jobs import UNREADABLE

    return all(
        one.is_finished or one.status == UNREADABLE for one in standings.values()
    )


def _watch(out: Path, period_sec: float) -> "dict[str, Standing]":
    from rich.console import Group
    from rich.live import Live

    def draw(standings: "dict[str, Standing]") -> Group:
        table = printing.table(COLUMNS, [_row(*item) for item in standings.items()])
        return Group(table, _summary(standings))

    standings = _look(out)
    with Live(draw(standings), auto_refresh=False) as live:
        while not _is_done(standings):
            time.sleep(period_sec)
            standings = _look(out)
            live.update(draw(standings), refresh=True)
    return standings


def _print(standings: "dict[str, Standing]") -> None:
    printing.print_table(COLUMNS, [_row(*item) for item in standings.items()])
    print(_summary(standings))


def _summary(standings: "dict[str, Standing]") -> str:
    counts = Counter(standing.status for standing in standings.values())
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _row(name: str, standing: "Standing") -> tuple[str, ...]:
    owner = standing.owner
    return (
        name,
        standing.status,
        "" if owner is None else f"{owner.host} {owner.pid}",
        "" if standing.step is None else f"{standing.step:,}",
        "" if standing.seconds is None else f"{standing.seconds:,.1f}",
        standing.metric,
        "" if standing.value is None else f"{standing.value:.5g}",
        standing.message,
    )


def _as_json(standings: "dict[str, Standing]") -> list[dict[str, Any]]:
    return [
        {"trial": name, **dataclasses.asdict(standing)}
        for name, standing in standings.items()
    ]
