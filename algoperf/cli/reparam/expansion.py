"""The expansion study: a trained model without its MLPs' weakest neurons.

Part of `algoperf reparam`.
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli.reparam import training
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.data.apart import Probe
    from algoperf.inference.timing.profiler import Result
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

SERIES = "maximum absolute weight"
X_NAME = "expansion ratio"
KINDS = ("knowledge", "rule")
CHANCE = 0.5  # of two answers
SHARE = " share"  # ends the name of what is lost as a share of what was above chance
INTERVALS = (
    "\nIntervals are over trained models, not over questions, which come in twos that "
    "ask for each other's answers. A kind is the mean of its probes, all alike.\n"
)
# The request that the idealized runtime is stated for, and what it is fitted on.
PROMPT, OUTPUT = 32, 16
PROMPTS, OUTPUTS = (8, 24, 48), (1, 8, 16)
SECONDS = 60.0  # of measuring
# For the estimate: of that with compilation, and of testing one model's narrow ones.
RUNTIME_SEC, PROBES_SEC = 150.0, 30.0


def study(values: flags.FlagValues, base: "Workload", axis: Sequence[float]) -> int:
    """Trains, prunes, tests; writes tables and plots; returns an exit status."""
    from algoperf.data.apart import HasProbes
    from algoperf.reparam import probes, studies, width

    if values.series:
        raise UserError("the expansion study has one series; leave --series out")
    workload = training.planned(base, values)
    width.gated_mlps(_shapes(workload))  # an error before training
    runs = [
        training.config(
            values, workload, training.load("adamw"), training.point("adamw"), i
        )
        for i in range(values.studies)
    ]
    more_sec = values.studies * PROBES_SEC + (RUNTIME_SEC if values.runtime else 0.0)
    training.announce(runs, more_sec)
    if not training.make(runs):
        return 1
    questions = workload.probes() if isinstance(workload, HasProbes) else {}
    rows, good = [], []
    for number, run in enumerate(runs):
        status = records.read_record(run.folder)["status"]
        if status in studies.BAD:
            rows.append({"series": SERIES, "study": number, "status": str(status)})
            continue
        good.append(run)
        rows += [{"study": number, **row} for row in _pruned(run, axis, questions)]
    note = ""
    if values.runtime and good:  # all good ones have the same shapes
        note = _add_runtimes(good[0], rows, axis)
    _write(values, rows, workload, note, probes.sizes(questions))
    return 1 if any(row["status"] in studies.BAD for row in rows) else 0


def _shapes(workload: "Workload") -> Any:
    import jax
    import jax.numpy as jnp

    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape.shape_tuple, jnp.float32),
        workload.param_shapes,
    )


def _pruned(
    run: "TrialConfig", fractions: Sequence[float], questions: "Mapping[str, Probe]"
) -> list[dict[str, Any]]:
    """Evaluates one trained model at each share of neurons removed."""
    from algoperf.reparam import probes, width
    from algoperf.workload import Evaluator

    workload = run.workload
    params, model_state = training.restored(run)
    names = width.gated_mlps(params)
    neurons, size = params[names[0]][width.SECOND]["kernel"].shape
    evaluate, scores = Evaluator(workload), probes.make_scores(workload)
    rows = []
    for fraction in fractions:
        prune = functools.partial(width.zeroed, fraction=fraction)
        zeroed = width.map_mlps(prune, params)
        metrics = evaluate(zeroed, model_state)
        removed = width.removed_parameters(len(names), size, neurons, fraction)
        row: dict[str, Any] = {
            "series": SERIES,
            "status": "evaluated",
            "removed": fraction,
            "x": width.kept_number(neurons, fraction) / size,
            "best": metrics[f"validation/{workload.target_metric_name}"],
            "trainable_parameters": workload.num_parameters - removed,
        }
        accuracies = {
            name: probes.accuracy(
                scores, probe, zeroed, model_state, workload.eval_batch_size
            )
            for name, probe in questions.items()
        }
        row |= {f"accuracy_{name}": found for name, found in accuracies.items()}
        if questions:
            row |= probes.by_kind(questions, accuracies)
        rows.append(row)
    return rows


def _add_runtimes(
    run: "TrialConfig", rows: list[dict[str, Any]], fractions: Sequence[float]
) -> str:
    """Adds idealized seconds and bytes of the narrow models to the rows.

    Returns:
      a line that says what they are, or why there are none.
    """
    from algoperf.inference.models.trained import trained_params, trained_shape
    from algoperf.inference.tradeoffs import costs
    from algoperf.reparam import width

    params, _ = training.restored(run)
    whole = trained_shape(run.workload.name, run.workload.model)
    shapes, served = [], []
    for fraction in fractions:
        narrow = width.map_mlps(functools.partial(_narrowed, fraction), params)
        neurons = width.kept_number(whole.mlp_width, fraction)
        shapes.append(dataclasses.replace(whole, mlp_width=neurons))
        served.append(trained_params(shapes[-1], narrow))
    print(f"measuring the runtime of {len(shapes)} narrow models", flush=True)
    results, reason = _runtimes(shapes, served)
    for shape, fraction, result in zip(shapes, fractions, results, strict=True):
        for row in rows:
            if row.get("removed") == fraction:
                row["weight_bytes"] = costs.weight_bytes(shape, 4)
                row["token_bytes"] = costs.token_bytes(shape, PROMPT + OUTPUT, 1, 4)
                row["runtime_uncertainty"] = result.uncertainty
                if reason is None:
                    row["idealized_sec"] = result.runtime.predict(PROMPT, OUTPUT)
    if reason is not None:
        return f"No idealized runtime: {reason}.\n"
    return (
        f"Idealized runtime: a request of {PROMPT} tokens of prompt and {OUTPUT} of "
        "output to the narrow model, batch 1, float32, on this machine. Uncertainty: "
        "the relative standard error of a measured median, on average.\n"
    )


def _narrowed(fraction: float, mlp: Any) -> Any:
    from algoperf.reparam import width

    return width.narrowed(mlp, width.kept_neurons(mlp, fraction))


def _runtimes(
    shapes: Sequence[Any], served: Sequence[Any]
) -> "tuple[list[Result], str | None]":
    """Measures all models in the same rounds, so that a slow spell touches all alike.

    Returns:
      the fits, and why they should not be used; None where they may be.
    """
    from algoperf.inference.timing import measure, profiler

    measures = [
        measure.decoder_measure(*pair) for pair in zip(shapes, served, strict=True)
    ]
    grid = profiler.Grid(PROMPTS, OUTPUTS, (), shapes[0].max_length)
    cells: Any = [(i, *cell) for i in range(len(shapes)) for cell in grid.cells]

    def one(number: int, prompt: int, output: int) -> float:
        return measures[number](prompt, output)

    limits = profiler.Limits()
    plan = profiler.Plan(seconds=SECONDS)
    aim = profiler.AIM * limits.uncertainty
    # Cells have three numbers here, of which the rounds know nothing.
    times: Any = profiler.measure_rounds(one, cells, plan, aim)  # type: ignore[arg-type]
    results = [
        profiler.fit_result(
            {cell: times[i, *cell] for cell in grid.cells}, grid, context_slope=False
        )
        for i in range(len(shapes))
    ]
    reasons = [profiler.refusal(result, limits) for result in results]
    reason = next((found for found in reasons if found is not None), None)
    return results, reason


def _write(
    values: flags.FlagValues,
    rows: Sequence[dict[str, Any]],
    workload: "Workload",
    note: str,
    sizes: Mapping[str, int],
) -> None:
    from algoperf.reparam import studies

    out, metric = Path(values.out), workload.target_metric_name
    records.write_measurements(out / "expansion.csv", rows)
    lines = studies.summary(rows)
    text = studies.table(lines, X_NAME, metric, has_target=False)
    text += _abilities(rows, sizes) + _losses(rows) + _correlations(rows)
    if note:
        text += f"\n{note}" + _costs(rows)
    records.write_text(out / "expansion.md", text)
    print(text, end="")
    if not values.plot:
        return
    studies.plot(lines, X_NAME, f"validation {metric}", out / "expansion.svg")
    abilities = studies.summary(_by_ability(rows))
    if abilities:
        path = out / "expansion_probes.svg"
        studies.plot(abilities, X_NAME, "accuracy on probes", path)


def _by_ability(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each probe and kind of each row, its accuracy as 'best'."""
    probes = sorted({n for row in rows for n in row if n.startswith("accuracy_")})
    return [
        {
            "series": name.removeprefix("accuracy_"),
            "study": row["study"],
            "x": row["x"],
            "best": row[name],
        }
        for name in (*KINDS, *probes)
        for row in rows
        if name in row
    ]


def _abilities(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> str:
    """Returns the accuracies at each ratio with 95 % intervals, as Markdown.

    Args:
      rows: of all studies.
      sizes: questions of each probe and kind.
    """
    from algoperf.reparam import studies

    table = []
    for line in studies.summary(_by_ability(rows)):
        name = line["series"]
        bounds = "{low:.3f} to {high:.3f}".format(**line) if "low" in line else ""
        x, accuracy = f"{line['x']:.4g}", f"{line['best']:.3f}"
        table.append([name, str(sizes[name]), x, accuracy, bounds])
    if not table:
        return ""
    heading = ["probe", "questions", X_NAME, "accuracy", "95 %"]
    return "\n" + studies.markdown(heading, table) + INTERVALS


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, list[float]]]:
    """Returns for each study the ratios, and what is lost of each kind there.

    'knowledge' is what is lost of its accuracy, since the greatest ratio of the study;
    'knowledge share' is that over what was above chance there, if anything was.
    """
    curves = []
    for number in sorted({row["study"] for row in rows}):
        own = [r for r in rows if r["study"] == number and KINDS[0] in r]
        whole = max(own, key=lambda row: row["x"], default=None)
        if whole is None:
            continue
        curve = {X_NAME: [row["x"] for row in own]}
        for kind in KINDS:
            curve[kind] = [whole[kind] - row[kind] for row in own]
            above = whole[kind] - CHANCE
            if above > 0:
                curve[f"{kind}{SHARE}"] = [lost / above for lost in curve[kind]]
        curves.append(curve)
    return curves


def _losses(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns whether knowledge goes before rules do, as Markdown.

    Both are asked of the same models, so the interval is for the mean difference.
    """
    from algoperf.reparam import studies

    curves, table = _curves(rows), []
    for measure, ending in (("accuracy", ""), ("share of what was above 1/2", SHARE)):
        for x, pairs in _pairs(curves, ending).items():
            apart = [one - other for one, other in pairs]
            means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
            means.append(statistics.fmean(apart))
            bounds = ""
            if len(apart) > 1:
                bounds = "{:.3f} to {:.3f}".format(*studies.interval(apart))
            shown = [f"{mean:.3f}" for mean in means]
            table.append([measure, f"{x:.4g}", *shown, bounds, str(len(pairs))])
    if not table:
        return ""
    heading = ["lost", X_NAME, *KINDS, "knowledge - rule", "95 %", "studies"]
    return "\n" + studies.markdown(heading, table)


def _pairs(
    curves: Iterable[Mapping[str, Sequence[float]]], ending: str
) -> dict[float, list[tuple[float, float]]]:
    """Returns what each study loses of both kinds, at each ratio but the greatest."""
    first, second = (f"{kind}{ending}" for kind in KINDS)
    found: dict[float, list[tuple[float, float]]] = {}
    for curve in curves:
        if first not in curve or second not in curve:
            continue
        xs = curve[X_NAME]
        for x, one, other in zip(xs, curve[first], curve[second], strict=True):
            if x < max(xs):
                found.setdefault(x, []).append((one, other))
    return found


def _correlations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns how what is lost of each kind goes with the ratio, as Markdown."""
    from algoperf.reparam import studies

    curves, table = _curves(rows), []
    for one, other in ((KINDS[0], X_NAME), (KINDS[1], X_NAME), KINDS):
        pairs = [(curve[one], curve[other]) for curve in curves]
        found = studies.correlation(pairs)
        if found is None:
            continue
        mean, bounds = found
        shown = "" if bounds is None else "{:.3f} to {:.3f}".format(*bounds)
        second = other if other == X_NAME else f"{other} lost"
        table.append([f"{one} lost, {second}", f"{mean:.3f}", shown])
    if not table:
        return ""
    return "\n" + studies.markdown(["between", "correlation", "95 %"], table)


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns bytes and idealized runtime at each ratio, as Markdown."""
    from algoperf.reparam import studies

    found: dict[float, Mapping[str, Any]] = {}
    for row in rows:
        if "weight_bytes" in row:
            found.setdefault(row["x"], row)
    table = [
        [
            f"{x:.4g}",
            f"{row['weight_bytes'] / 1e6:.3f}",
            f"{row['token_bytes'] / 1e6:.3f}",
            f"{1e3 * row['idealized_sec']:.3f}" if "idealized_sec" in row else "",
            f"{100 * row['runtime_uncertainty']:.1f}",
        ]
        for x, row in found.items()
    ]
    heading = [X_NAME, "weights, MB", "read for a token, MB", "idealized runtime, ms"]
    heading.append("uncertainty, %")
    return "\n" + studies.markdown(heading, table)
