"""The expansion study: a trained model without its MLPs' weakest neurons.

Part of `algoperf reparam`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli.reparam import training
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference import RuntimeModel
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

SERIES = "maximum absolute weight"
X_NAME = "expansion ratio"
KINDS = ("knowledge", "rule")
# The request that the idealized runtime is stated for, and what it is fitted on.
PROMPT, OUTPUT = 32, 16
PROMPTS, OUTPUTS = (8, 24, 48), (1, 8, 16)
SECONDS = 60.0  # of measuring
# For the estimate: of that with compilation, and of testing one model's narrow ones.
RUNTIME_SEC, PROBES_SEC = 150.0, 30.0


def study(values: flags.FlagValues, base: "Workload", axis: Sequence[float]) -> int:
    """Trains, prunes, tests; writes tables and plots; returns an exit status."""
    from algoperf.reparam import studies, width

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
    rows = []
    for number, run in enumerate(runs):
        status = records.read_record(training.folder_of(run))["status"]
        if status in studies.BAD:
            rows.append({"series": SERIES, "study": number, "status": str(status)})
        else:
            rows += [{"study": number, **row} for row in _pruned(run, axis)]
    note = ""
    if values.runtime:
        note = _add_runtimes(runs[0], rows, axis)
    _write(values, rows, workload, note)
    return 1 if any(row["status"] in studies.BAD for row in rows) else 0


def _shapes(workload: "Workload") -> Any:
    import jax
    import jax.numpy as jnp

    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape.shape_tuple, jnp.float32),
        workload.param_shapes,
    )


def _pruned(run: "TrialConfig", fractions: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluates one trained model at each share of neurons removed."""
    from algoperf.data.apart import HasProbes
    from algoperf.reparam import probes, width
    from algoperf.workload import Evaluator

    workload = run.workload
    params, model_state = training.restored(run)
    names = width.gated_mlps(params)
    neurons, size = params[names[0]][width.SECOND]["kernel"].shape
    questions = workload.probes() if isinstance(workload, HasProbes) else {}
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
    runtimes, reason = _runtimes(shapes, served)
    for shape, fraction, runtime in zip(shapes, fractions, runtimes, strict=True):
        for row in rows:
            if row.get("removed") == fraction:
                row["weight_bytes"] = costs.weight_bytes(shape, 4)
                row["token_bytes"] = costs.token_bytes(shape, PROMPT + OUTPUT, 1, 4)
                if reason is None:
                    row["idealized_sec"] = runtime.predict(PROMPT, OUTPUT)
    if reason is not None:
        return f"No idealized runtime: {reason}.\n"
    return (
        f"Idealized runtime: a request of {PROMPT} tokens of prompt and {OUTPUT} of "
        "output to the narrow model, batch 1, float32, on this machine.\n"
    )


def _narrowed(fraction: float, mlp: Any) -> Any:
    from algoperf.reparam import width

    return width.narrowed(mlp, width.kept_neurons(mlp, fraction))


def _runtimes(
    shapes: Sequence[Any], served: Sequence[Any]
) -> "tuple[list[RuntimeModel], str | None]":
    """Measures all models in the same rounds, so that a slow spell touches all alike.

    Returns:
      the fitted models, and why they should not be used; None where they may be.
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
    return [result.runtime for result in results], reason


def _write(
    values: flags.FlagValues,
    rows: Sequence[dict[str, Any]],
    workload: "Workload",
    note: str,
) -> None:
    from algoperf.reparam import studies

    out, metric = Path(values.out), workload.target_metric_name
    records.write_measurements(out / "expansion.csv", rows)
    lines = studies.summary(rows)
    text = studies.table(lines, X_NAME, metric, has_target=False)
    text += _abilities(rows) + _correlations(rows)
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


def _abilities(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the accuracies at each ratio with 95 % intervals, as Markdown."""
    from algoperf.reparam import studies

    table = []
    for line in studies.summary(_by_ability(rows)):
        bounds = "{low:.3f} to {high:.3f}".format(**line) if "low" in line else ""
        table.append(
            [line["series"], f"{line['x']:.4g}", f"{line['best']:.3f}", bounds]
        )
    if not table:
        return ""
    return "\n" + studies.markdown(["probe", X_NAME, "accuracy", "95 %"], table)


def _correlations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns how what is lost of each kind goes with the ratio, as Markdown."""
    from algoperf.reparam import studies

    curves = []
    for number in sorted({row["study"] for row in rows}):
        own = [r for r in rows if r["study"] == number and KINDS[0] in r]
        whole = max(own, key=lambda row: row["x"], default=None)
        if whole is None:
            continue
        curve = {kind: [whole[kind] - row[kind] for row in own] for kind in KINDS}
        curves.append(curve | {X_NAME: [row["x"] for row in own]})
    table = []
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
        ]
        for x, row in found.items()
    ]
    heading = [X_NAME, "weights, MB", "read for a token, MB", "idealized runtime, ms"]
    return "\n" + studies.markdown(heading, table)
