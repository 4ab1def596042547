"""What the federated study tells: its series, tables and plot.

A row has the loss of each domain ('loss_NAME'), their mean ('best'), and, where experts
were cut, their mean rank ('x').
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records

if TYPE_CHECKING:
    from algoperf.workload import Workload

SAME, BEST, TOP = "same rank", "ranks by energy", "top 2 of same rank"
SERIES = (SAME, BEST, TOP)
FULL, FULL_TOP = "full experts", "top 2 of full experts"
LIKE = {SAME: FULL, BEST: FULL, TOP: FULL_TOP}  # full experts, mixed in the same way
PUBLIC, SINGLE = "public model", "best single expert"
AVERAGE, OWN = "average of the experts", "each domain's own expert"
JOINT = "one model of all domains"
METRIC = "loss, mean over domains"
EVALUATED = "evaluated"  # status of a row; others are of runs that went wrong


def write(
    values: flags.FlagValues,
    rows: Sequence[Mapping[str, Any]],
    domains: "Mapping[str, Workload]",
) -> None:
    """Writes the rows, the tables and the plot; prints the tables."""
    from algoperf.reparam import studies

    out = Path(values.out)
    records.write_measurements(out / "federated.csv", rows)
    bad = [row for row in rows if row["status"] != EVALUATED]
    rows = [row for row in rows if row["status"] == EVALUATED]
    lines = studies.summary(rows)
    text = studies.table(lines, "rank", METRIC, has_target=False)
    text += "\n" + _domain_table(rows, list(domains)) + "\n" + _sizes(domains)
    text += "\n" + break_even_table(rows)
    text += "".join(
        "\nStudy {study} is left out: {series} {status}.\n".format(**row) for row in bad
    )
    records.write_text(out / "federated.md", text)
    print(text, end="")
    if values.plot and rows:
        # What has no rank is a point, at its own number of parameters.
        points = [{**line, "x": line["trainable_parameters"]} for line in lines]
        studies.plot(points, "parameters", METRIC, out / "federated.svg")


def _domain_table(rows: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> str:
    """Returns the loss of each domain, mean over studies, as Markdown."""
    from algoperf.reparam import studies

    heading = ["series", "rank", *domains]
    table = []
    for (series, rank), group in studies.grouped(rows).items():
        means = [
            statistics.fmean(row[f"loss_{name}"] for row in group) for name in domains
        ]
        label = "" if rank is None else f"{rank:g}"
        table.append([series, label, *(f"{mean:.4g}" for mean in means)])
    return studies.markdown(heading, table)


def _sizes(domains: "Mapping[str, Workload]") -> str:
    """Returns on how much the losses were measured."""
    numbers = ", ".join(
        f"{name} {w.num_validation_examples + w.num_test_examples}"
        for name, w in domains.items()
    )
    return f"Sequences of validation and test, on which losses are: {numbers}.\n"


def break_even_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns from which ranks on mixtures are as good as baselines, as Markdown.

    The median stands where some studies have no rank, or only a bound; the interval is
    for the mean of the ranks' logarithms, where all have one.
    """
    from algoperf.reparam import federated, studies

    table = []
    for series in SERIES:
        curves: dict[int, dict[float, float]] = {}
        for row in rows:
            if row["series"] == series:
                curves.setdefault(row["study"], {})[row["x"]] = row["best"]
        if not curves:
            continue
        for baseline in (PUBLIC, SINGLE, AVERAGE, LIKE[series]):
            levels = {r["study"]: r["best"] for r in rows if r["series"] == baseline}
            found = [federated.break_even(c, levels[i]) for i, c in curves.items()]
            least = min(min(curve) for curve in curves.values())
            bounds = ""
            if len(found) > 1 and all(least < rank < math.inf for rank in found):
                low, high = studies.interval([math.log(rank) for rank in found])
                bounds = f"{math.exp(low):.3g} to {math.exp(high):.3g}"
            shown = [_shown(rank, least) for rank in found]
            # Of an even number the greater one, for the two may be 4 and never.
            median = _shown(statistics.median_high(found), least)
            table.append([series, baseline, ", ".join(shown), median, bounds])
    heading = ["mixture", "as good as", "from rank, by study", "median", "95 %"]
    return studies.markdown(heading, table)


def _shown(rank: float, least: float) -> str:
    if rank == math.inf:
        return "never"
    return f"at most {least:g}" if rank <= least else f"{rank:.3g}"
