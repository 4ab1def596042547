"""Rows, points and views as CSV, Markdown, and cells of text. No JAX."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

from algoperf.inference.tradeoffs.pareto import Point, Row
from algoperf.inference.tradeoffs.pareto_views import AXES, View

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The points of one workload and what to say of them.

    Attributes:
      workload: its name.
      metric: what quality is.
      direction: 'minimize' or 'maximize'.
      target: of the workload; None: it has none.
      points: submissions served in ways.
      views: along each cost.
    """

    workload: str
    metric: str
    direction: str
    target: float | None
    points: tuple[Point, ...]
    views: tuple[View, ...]

    @property
    def headline(self) -> str:
        """One sentence: who is cheapest at the goal, in training and in serving."""
        found = {view.axis: view for view in self.views}
        parts = []
        for axis, what in (
            ("train_seconds", "training"),
            ("request_seconds", "serving"),
        ):
            cheapest = found[axis].cheapest if axis in found else ()
            if cheapest:
                names = named(cheapest)
                if axis == "train_seconds":  # however it is served
                    names = " and ".join(sorted({p.submission for p in cheapest}))
                least = cheapest[0].values[axis]
                parts.append(f"{what} takes least with {names} ({shown(axis, least)})")
        goal = self.views[0].goal
        if not parts:
            return f"No point has a {self.metric} of {goal:.5g} or better."
        return f"At a {self.metric} of {goal:.5g} or better {', '.join(parts)}."


def csv_text(rows: Sequence[Row]) -> str:
    """Returns all rows as CSV; what is unknown or was not reached is empty."""
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = [getattr(row, name) for name in names]
        writer.writerow(
            "" if isinstance(x, float) and not math.isfinite(x) else x for x in cells
        )
    return buffer.getvalue()


def markdown(comparisons: Sequence[Comparison], notes: Sequence[str]) -> str:
    """Returns tables of points and views for each workload, and the notes."""
    parts = ["# Quality against cost", ""]
    for comparison in comparisons:
        parts += [f"## {comparison.workload}", "", comparison.headline, ""]
        parts += _table(*point_table(comparison))
        parts += ["", "On the frontier of:", ""]
        parts += [
            f"- {AXES[view.axis][0]}: {'; '.join(p.name for p in view.frontier)}"
            for view in comparison.views
        ]
        parts += [""]
        parts += _table(*view_table(comparison))
        parts += [""]
    if notes:
        parts += ["Notes:", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def point_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: each point with its quality and every cost it has."""
    axes = [view.axis for view in comparison.views]
    header = ["submission", "served as", "runs", comparison.metric]
    header += ["of its runs", *(AXES[axis][0] for axis in axes)]
    rows = []
    for point in comparison.points:
        span = f"{point.best:.5g} to {point.worst:.5g}" if point.num_runs > 1 else ""
        rows.append(
            [
                point.submission,
                point.recipe,
                str(point.num_runs),
                f"{point.values['quality']:.5g}",
                span,
                *(shown(axis, point.values[axis]) for axis in axes),
            ]
        )
    return header, rows


def view_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: for each cost a fixed budget and a fixed quality."""
    goal = comparison.views[0].goal
    header = [
        "cost",
        "budget",
        f"best {comparison.metric} within it",
        f"cheapest with {comparison.metric} {goal:.5g} or better",
    ]
    rows = []
    for view in comparison.views:
        best = cheapest = "none"
        if view.best:
            quality = view.best[0].values["quality"]
            best = f"{quality:.5g}: {named(view.best)}"
        if view.cheapest:
            least = shown(view.axis, view.cheapest[0].values[view.axis])
            cheapest = f"{least}: {named(view.cheapest)}"
        rows.append([AXES[view.axis][0], shown(view.axis, view.budget), best, cheapest])
    return header, rows


def named(points: Sequence[Point]) -> str:
    """Returns the names of points, semicolons between."""
    return "; ".join(point.name for point in points)


def shown(axis: str, value: float) -> str:
    """Returns a cost with a fitting unit; 'missed' for inf, '' where it is unknown."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "missed"
    unit = AXES[axis][1]
    if unit == "$":
        return f"${value:.4g}"
    for size, name in _TIMES if unit == "s" else _SIZES:
        if value >= size:
            return f"{value / size:.4g} {name}"
    return f"{value:.4g} {unit}"


def to_json(
    comparisons: Sequence[Comparison], rows: Sequence[Row], notes: Sequence[str]
) -> dict[str, object]:
    """Returns everything, as JSON holds it."""

    def of_view(view: View) -> Mapping[str, object]:
        return {
            "cost": view.axis,
            "frontier": [p.name for p in view.frontier],
            "budget": view.budget,
            "best": [p.name for p in view.best],
            "goal": view.goal,
            "cheapest": [p.name for p in view.cheapest],
        }

    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "workloads": [
            {
                "workload": c.workload,
                "metric": c.metric,
                "direction": c.direction,
                "target": c.target,
                "points": [dataclasses.asdict(point) for point in c.points],
                "views": [of_view(view) for view in c.views],
            }
            for c in comparisons
        ],
        "notes": list(notes),
    }
