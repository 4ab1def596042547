"""`algoperf infer pareto`: quality against what training and serving cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf import records
from algoperf.cli import printing
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference.timing.profiles import Profile
    from algoperf.inference.tradeoffs.pareto import Request, Row, Run
    from algoperf.inference.tradeoffs.pareto_text import Comparison

_REQUEST = (32, 16)  # tokens that every language model here has room for


def define_flags(values: flags.FlagValues) -> None:
    """Defines what `pareto` takes beside the flags of prediction."""
    flags.DEFINE_list(
        "profiles", [], "pareto: profiles, or folders of them; by default those in "
        "--out.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "requests", 1e6, "pareto: requests in the life of a model, for its total "
        "dollars.", lower_bound=0.0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "budgets", [], "pareto: of the fixed-budget view, as request_seconds=0.01,"
        "weight_bytes=5e5; by default the median of what was measured.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "quality", None, "pareto: of the fixed-quality view; by default the workload's "
        "target if it is reached, else the median.", flag_values=values,
    )  # fmt: skip


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Joins runs and profiles, writes pareto.csv, .md, .svg and .html, shows tables."""
    from algoperf.inference.tradeoffs import pareto, pareto_text

    if not positional:
        raise UserError("give RUNS to compare: folders that `algoperf run` has written")
    budgets = _budgets(values.budgets)
    request = pareto.Request(
        prompt=_REQUEST[0] if values.prompt is None else values.prompt,
        output=_REQUEST[1] if values.output is None else values.output,
        number=values.requests,
        dollars_per_hour=values.dollars_per_hour,
    )
    runs, notes = pareto.read_runs(Path(path) for path in positional)
    profiles, others = _profiles(values.profiles or [values.out])
    if not values.any_hardware:
        pareto.check_comparable(runs, profiles)
    rows, unjoined = pareto.joined(runs, profiles, request)
    notes += [*others, *unjoined, *_untrusted(rows), *_extrapolated(request, profiles)]
    comparisons = [
        _comparison(run, rows, budgets, values.quality)
        for run in _one_of_each_workload(runs, rows)
    ]
    out = Path(values.out)
    _write(out, comparisons, rows, notes, _facts(request, runs, profiles))

    def print_text() -> None:
        for comparison in comparisons:
            print(f"{comparison.workload}: {comparison.headline}")
            printing.print_table(*pareto_text.point_table(comparison))
            printing.print_table(*pareto_text.view_table(comparison))
        for note in notes:
            print(f"Note: {note}")
        print(f"Tables and plots: {out}/pareto.html (.csv, .md, .svg)")

    found = pareto_text.to_json(comparisons, rows, notes)
    printing.show(values.json, found, print_text)


def _budgets(texts: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise UserError(
                f"--budgets {text}: give a cost and a number, as request_seconds=0.01"
            ) from error
    return found


def _profiles(paths: Sequence[str]) -> "tuple[dict[str, Profile], list[str]]":
    """Returns profiles by the names of their files, and what was no profile."""
    from algoperf.inference.timing import profiles

    found, notes = {}, []
    for path in map(Path, paths):
        if path.is_dir():
            for file in sorted(path.rglob("*.json")):
                try:
                    found[str(file)] = profiles.load_profile(file)
                except UserError as error:
                    notes.append(str(error))
        else:
            found[str(path)] = profiles.load_profile(path)
    if not found:
        raise UserError(
            f"no profile is in {', '.join(paths)}; `algoperf infer profile RUNS` "
            "measures them"
        )
    return found, notes


def _untrusted(rows: "Sequence[Row]") -> list[str]:
    reasons = {row.profile: row.reason_not_to_trust for row in rows}
    return [
        f"{name}: not to be trusted: {reason}"
        for name, reason in reasons.items()
        if reason
    ]


def _extrapolated(request: "Request", profiles: "Mapping[str, Profile]") -> list[str]:
    found = {
        name: profile.extrapolation(request.prompt, request.output)
        for name, profile in profiles.items()
    }
    return [f"{name}: {what}" for name, what in found.items() if what is not None]


def _one_of_each_workload(runs: "Sequence[Run]", rows: "Sequence[Row]") -> "list[Run]":
    joined = {row.workload for row in rows}
    first = {run.workload: run for run in reversed(runs) if run.workload in joined}
    return [first[name] for name in sorted(first)]


def _comparison(
    run: "Run",
    rows: "Sequence[Row]",
    budgets: Mapping[str, float],
    goal: float | None,
) -> "Comparison":
    from algoperf.inference.tradeoffs import pareto, pareto_text, pareto_views

    own = [row for row in rows if row.workload == run.workload]
    points = pareto.points(own, run.direction)
    views = pareto_views.views(points, run.direction, run.target, budgets, goal)
    return pareto_text.Comparison(
        workload=run.workload,
        metric=run.metric,
        direction=str(run.direction),
        target=run.target,
        points=tuple(points),
        views=tuple(views),
    )


def _facts(
    request: "Request", runs: "Sequence[Run]", profiles: "Mapping[str, Profile]"
) -> list[str]:
    from algoperf.inference.tradeoffs import ways

    trained = sorted({run.hardware for run in runs})
    served = sorted({ways.served_on(profile) for profile in profiles.values()})
    facts = [
        f"A request has {request.prompt} tokens of prompt and {request.output} of "
        f"output. Trained on {'; '.join(trained)}. Served on {'; '.join(served)}. "
        "Quality and costs are medians over runs; better is up in the plots."
    ]
    if len(trained) > 1:
        facts.append("Seconds of training are of several machines.")
    if request.dollars_per_hour is not None:
        facts.append(
            f"Dollars at {request.dollars_per_hour:g} an hour, for training and "
            f"{request.number:g} requests."
        )
    return facts


def _write(
    out: Path,
    comparisons: "Sequence[Comparison]",
    rows: "Sequence[Row]",
    notes: Sequence[str],
    facts: Sequence[str],
) -> None:
    from algoperf.inference.tradeoffs import pareto_plot, pareto_text
    from algoperf.inference.tradeoffs.pareto_views import AXES
    from scoring.serving_page import Group, write_serving_page

    records.make_folder(out)
    records.write_text(out / "pareto.csv", pareto_text.csv_text(rows))
    markdown = pareto_text.markdown(comparisons, notes)
    records.write_text(out / "pareto.md", markdown)
    records.write_text(out / "pareto.svg", pareto_plot.svg_file(comparisons))
    groups = [
        Group(
            workload=comparison.workload,
            headline=comparison.headline,
            svg=pareto_plot.comparison_svg(comparison),
            points=pareto_text.point_table(comparison),
            frontiers=[
                (AXES[view.axis][0], "; ".join(p.name for p in view.frontier))
                for view in comparison.views
            ],
            views=pareto_text.view_table(comparison),
        )
        for comparison in comparisons
    ]
    write_serving_page(out / "pareto.html", groups, facts, notes)
