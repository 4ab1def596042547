"""Writes docs/targets.md and its figures from the stores in docs/calibration/.

    python docs/make_targets.py

A store is what `algoperf calibrate --store docs/calibration` leaves. Needs matplotlib,
which the extra `dev` brings.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from algoperf import calibration, records, registry
from algoperf.calibration import Phase, Store
from algoperf.cli import printing
from algoperf.errors import UserError
from algoperf.records import Direction
from algoperf.run_store import Run
from algoperf.workload import Workload

DOCS = Path(__file__).resolve().parent
STORES = DOCS / "calibration"
PAGE = DOCS / "targets.md"
FEWEST_REPEATS = 3  # with fewer, the target is provisional still
COLOURS = {  # of the search spaces
    "adamw": "#3b7dd8",
    "nadamw": "#2f9e63",
    "nesterov": "#e0702c",
    "heavy_ball": "#c8507e",
}
HEAD = """# Targets of the mini scale

Written by `python docs/make_targets.py` from the runs in `docs/calibration/`. None of
these numbers was typed in; one that was would be marked as provisional.

Targets are set as in Dahl et al. 2023 (arXiv:2306.07179, section 5.1). AdamW, NadamW,
Nesterov and heavy-ball momentum are searched with a quasi-random sequence each. The
best point is repeated with other seeds. The validation target is the median of the
repeats' best validation metrics; the test target is the worst test metric among the
repeats that reached it. Where repeats show that the best run of a search was lucky, the
next point is repeated too (`--finalists 2`), and the better median counts. Targets are
rounded to four digits, to the easier side. These runs plan for three
quarters of the step hint, so that a submission as good as the one that set the target
reaches it in time. The budget is one and a half times what such a run takes with the
machine to itself, compilation included, on the reference machine: 2 cores of an AMD
EPYC.

    algoperf calibrate --workload imagenet_resnet --store docs/calibration
"""


def stores() -> list[tuple[Workload, Store]]:
    """Returns all workloads of the mini scale, with their stores, empty ones too."""
    mini = [w for w in registry.all_workloads() if w.scale == "mini"]
    facts = [calibration.facts_of(w) | {"max_steps": None} for w in mini]
    paths = [STORES / f"{w.name}.json.xz" for w in mini]
    return [
        (w, Store.open(path, fact))
        for w, path, fact in zip(mini, paths, facts, strict=True)
    ]


def page(found: Sequence[tuple[Workload, Store]]) -> str:
    """Returns the text of the page."""
    bases = [(w, s) for w, s in found if w.variant == w.base_workload]
    variants = [(w, s) for w, s in found if w.variant != w.base_workload]
    return "\n".join(
        [
            HEAD,
            "## Targets\n",
            "Trivial is the metric of a predictor that does not look at its input (of "
            "fastmri and\nwmt, the input itself). Provisional targets are from a few "
            "runs by hand.\n",
            table(("workload", "trivial", *TARGET), targets_with_trivial, bases),
            "## Time\n",
            "Fresh runs take the best point with seeds of their own and plan for the "
            "whole step\nhint, as a submission does. Seconds are steps to the target "
            "times the undisturbed time\nof a step, and compilation.\n",
            table(("workload", *TIME), times, bases),
            "## The searches\n",
            "The best point of each algorithm's search; runs of three quarters of the "
            "step hint.\n",
            table(("workload", "metric", "target", *COLOURS), search_bests, bases),
            "## What must miss the target\n",
            "SGD has no momentum and no schedule; the best of its rates is shown. "
            "AdamW has its best\npoint of the search, with the rate ten times off. "
            "All plan for the whole step hint.\n",
            table(("workload", *WEAK), weak_runs, bases),
            "## Variants\n",
            "A variant repeats the point that set its base's target, or where that\n"
            "does not train it, the best of its base's best points; points are of that "
            "search.\n",
            table(("workload", *TARGET), targets, variants),
            "## Curves\n",
            "Thin: the points of the search; black: the repeats of the best; dashed: "
            "the target.\n",
            *(
                f"![{w.variant}](calibration/{w.variant}.svg)\n"
                for w, s in bases
                if s.runs
            ),
        ]
    )


Row = Callable[[Workload, Store], list[str]]
TARGET = ("metric", "target", "on test", "repeats", "set by", "points", "runs again")
TIME = ("step, ms", "budget, s", "fresh runs that reach it", "steps", "seconds")
WEAK = ("metric", "target", "SGD", "AdamW, rate / 10", "AdamW, rate x 10")
NOTHING = "-"


def table(
    columns: Sequence[str], row: Row, found: Iterable[tuple[Workload, Store]]
) -> str:
    """Returns a Markdown table with a row for each workload."""
    rows = [[workload.variant, *row(workload, store)] for workload, store in found]
    return printing.markdown(columns, rows) + "\n"


def number(value: float | None) -> str:
    """Returns four digits."""
    return NOTHING if value is None else f"{value:.4g}"


def targets_with_trivial(workload: Workload, store: Store) -> list[str]:
    """Returns the cells of a base workload's targets."""
    trivial = workload.trivial_metrics()[workload.target_metric_name]
    return [number(trivial), *targets(workload, store)]


def targets(workload: Workload, store: Store) -> list[str]:
    """Returns the cells named TARGET."""
    search, repeats = store.of(Phase.SEARCH), store.repeats()
    found = [
        f"{number(workload.validation_target_value)}, provisional",
        f"{number(workload.test_target_value)}, provisional",
        NOTHING,
    ]
    set_by = NOTHING
    if known := repeats or search:
        best = calibration.best_run(known, store.direction)
        set_by = f"{best.space}, rate {best.hyperparameters['learning_rate']:.2g}"
    if len(repeats) >= FEWEST_REPEATS:
        target = store.targets()
        spread = " to ".join(map(number, target.spread))
        both = (target.validation, target.test)
        found = [_target(value, store.direction) for value in both] + [spread]
    return [
        store.facts["metric"],
        *found,
        set_by,
        str(len(search)),
        _times_again(store),
    ]


def _times_again(store: Store) -> str:
    tried, counted = len(store.of(Phase.REPEATS)), len(store.repeats())
    others = tried - counted
    return f"{counted}, {others} of others" if others else str(counted)


def _target(value: float | None, direction: Direction) -> str:
    return NOTHING if value is None else f"{calibration.rounded(value, direction):g}"


def times(_: Workload, store: Store) -> list[str]:
    """Returns the cells named TIME."""
    timed, fresh = store.of(Phase.TIMED), store.of(Phase.FRESH)
    cells = [NOTHING] * len(TIME)
    step_sec = timed[0].step_sec if timed else None
    if step_sec is not None:
        budget = calibration.budget_sec(timed[0])
        cells[:2] = number(1000 * step_sec), f"{budget:.0f}"
    if not (fresh and store.of(Phase.REPEATS)):
        return cells
    target = calibration.rounded(store.targets().validation, store.direction)
    rows = [run.reached(target, store.direction) for run in fresh]
    steps = sorted(row["step"] for row in rows if row)
    cells[2] = f"{len(steps)} of {len(fresh)}"
    if steps:
        median = statistics.median(steps)
        cells[3] = f"{median:.0f} ({steps[0]:.0f} to {steps[-1]:.0f})"
        if step_sec is not None:
            middle, low, high = (
                f"{n * step_sec + timed[0].compile_sec:.0f}"
                for n in (median, steps[0], steps[-1])
            )
            cells[4] = f"{middle} ({low} to {high})"
    return cells


def search_bests(_: Workload, store: Store) -> list[str]:
    """Returns the metric, the target, and the best metric of each search space."""
    search = store.of(Phase.SEARCH)
    if not (search and store.of(Phase.REPEATS)):
        return [store.facts["metric"], *[NOTHING] * (1 + len(COLOURS))]
    target = calibration.rounded(store.targets().validation, store.direction)
    groups = [[run for run in search if run.space == space] for space in COLOURS]
    return [
        store.facts["metric"],
        _target(target, store.direction),
        *(_best_of(group, target, store.direction) for group in groups),
    ]


def weak_runs(_: Workload, store: Store) -> list[str]:
    """Returns the cells named WEAK."""
    runs = store.of(Phase.WEAK)
    if not (runs and store.of(Phase.REPEATS)):
        return [store.facts["metric"], *[NOTHING] * 4]
    off = [run for run in runs if run.space == "adamw_off"]
    target = calibration.rounded(store.targets().validation, store.direction)
    groups = [[run for run in runs if run.space == "sgd"], *([run] for run in off)]
    return [
        store.facts["metric"],
        _target(target, store.direction),
        *(_best_of(group, target, store.direction) for group in groups),
    ]


def _best_of(runs: Sequence[Run], target: float, direction: Direction) -> str:
    """Returns the best metric of the runs, and whether it reaches the target."""
    if not runs:
        return NOTHING
    order = calibration.ranked(runs, direction)
    row = order[0].best(direction) if order else None
    if row is None:
        return "diverged"
    is_reached = records.reaches(row["validation"], target, direction)
    return number(row["validation"]) + (", reached" if is_reached else "")


def draw(workload: Workload, store: Store, path: Path) -> None:
    """Draws the curves of the search and of the repeats."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "algoperf"  # the same runs, the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    seen = set()
    for run in store.of(Phase.SEARCH):
        label = None if run.space in seen else run.space.replace("_", " ")
        seen.add(run.space)
        colour = COLOURS.get(run.space)
        axes.plot(*_curve(run), color=colour, alpha=0.5, linewidth=0.8, label=label)
    for run in store.repeats():
        axes.plot(*_curve(run), color="black", linewidth=0.7)
    if store.of(Phase.REPEATS):
        axes.axhline(store.targets().validation, color="black", linestyle="--")
    axes.set_ylim(*_limits(store))
    axes.set(title=workload.variant, xlabel="steps", ylabel=workload.target_metric_name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _curve(run: Run) -> tuple[list[float], list[float]]:
    rows = run.evaluations
    return [row["step"] for row in rows], [row["validation"] for row in rows]


def _limits(store: Store) -> tuple[float, float]:
    """Returns where the better half of all evaluations lies, with some room."""
    runs = (*store.of(Phase.SEARCH), *store.repeats())
    values = sorted(
        row["validation"]
        for run in runs
        for row in run.evaluations
        if abs(row["validation"]) < float("inf")
    )
    middle, low, high = statistics.median(values), values[0], values[-1]
    if store.direction is Direction.MINIMIZE:
        return low - 0.1 * (middle - low), middle + (middle - low)
    return middle - (high - middle), high + 0.1 * (high - middle)


def main() -> None:
    """Writes the page and the figures."""
    found = stores()
    PAGE.write_text(page(found))
    for workload, store in found:
        if store.runs and workload.variant == workload.base_workload:
            draw(workload, store, STORES / f"{workload.variant}.svg")
    print(f"wrote {PAGE}: {sum(bool(s.runs) for _, s in found)} calibrations")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"ERROR: {error}") from error
