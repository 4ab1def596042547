"""The rank and compression studies: training at each value of one thing, by seeds.

Part of `algoperf reparam`. All series of a study train by one recipe, so that what they
differ by is what they train; a rate that suits one may not suit another, so each may
try a few rates before, on a seed that the study does not use.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from algoperf import records
from algoperf.cli.reparam import training
from algoperf.errors import UserError
from algoperf.records import Direction

if TYPE_CHECKING:
    from algoperf.reparam.studies import Series, Setting
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

DENSE, DENSE_SGD = "adamw", "momentum"
PRUNED = "pruned"
NARROW = "narrow"  # AdamW on a network with fewer channels
SCORES = ("magnitude", "snip", "grasp", "lottery_ticket")
SHARED = "stable_rps"
ON_REQUEST = ("roast", "hashed")  # by --series: three seeds of all take too long
# AdamW's, written down here so that a study stays what it is when search spaces change.
RECIPE = {"weight_decay": 0.17, "one_minus_beta1": 0.14, "beta2": 0.999}
RECIPE |= {"warmup_factor": 0.05, "grad_clip": 1.0}
ADAMW = RECIPE | {"learning_rate": 0.008}
# With this spread the memory's weights move by 0.005 to 0.03 in a step of ADAMW, around
# the rate itself, at which dense weights and what does not share move.
SHARED_ADAMW = ADAMW | {"init_std": 0.1}
# Of sharing's authors but for the rate. Gradients are not clipped: those of a memory
# have another norm, and at compression 1 the two should be the same.
SGD = {"learning_rate": 0.3, "weight_decay": 5e-4, "one_minus_beta1": 0.1}
SGD |= {"warmup_factor": 0.05, "grad_clip": 1000.0}
GAP = 50  # steps between projections, for a schedule of 800
APOLLO_SHARE = 0.25  # at which the paper's scale is 1; the update's norm is sqrt(rank)
# Which factors of its learning rate each method tries before the study.
RATES = {"rank": (1 / 9, 1 / 3, 1.0, 3.0, 9.0), "compression": (1.0,)}
SCREENING = "screening"  # the folder of those runs
MARGIN = 0.01  # of accuracy, by which sharing may be worse and still be as good


class Trial(NamedTuple):
    """One run at a rate, before the study."""

    setting: "Setting"
    factor: float  # of the rate
    run: "TrialConfig"


def study(
    values: flags.FlagValues, base: "Workload", axis: Sequence[float], x_name: str
) -> int:
    """Trains at each value of the axis, and compares; returns an exit status."""
    from algoperf.reparam import studies

    screened = screening(values, base, axis)
    tried = [trial.run for trial in screened]
    runs = [run for *_, run in runs_of(values, base, axis, _factors(screened, base))]
    if all(training.is_done(run) for run in tried):
        training.announce(tried + runs)
    else:  # the rates of the runs are not known yet
        training.announce(tried, unsettled=runs)
    if not training.make(tried):
        return 1
    factors = _factors(screened, base)
    made = runs_of(values, base, axis, factors)
    if not training.make([run for *_, run in made]):
        return 1
    rows = [_row(base, setting, number, run) for setting, number, run in made]
    _mark_collapsed(rows, base)
    more = _rates_text(screened, base, factors)
    _write(values, base, rows, x_name, runs[0].max_steps or 0, more)
    return 1 if any(row["status"] in studies.BAD for row in rows) else 0


def runs_of(
    values: flags.FlagValues,
    base: "Workload",
    axis: Sequence[float],
    factors: Mapping[str, float],
) -> "list[tuple[Setting, int, TrialConfig]]":
    """Returns all runs of the study: setting, study, run.

    `factors` of learning rates are of series that have tried several; others take the
    only one there is, or 1.
    """
    from algoperf.reparam import studies

    workload, usual = _workload(values, base), rates(values)
    default = usual[0] if len(usual) == 1 else 1.0
    chosen = studies.settings(series_of(values, workload), axis)
    runs = []
    for number in range(values.studies):
        for setting in chosen:
            factor = factors.get(setting.series, default)
            run = _run(values, workload, setting, number, factor)
            runs.append((setting, number, run))
    return runs


def screening(
    values: flags.FlagValues, base: "Workload", axis: Sequence[float]
) -> list[Trial]:
    """Returns the runs that try rates, at the middle of the axis; none for one rate."""
    from algoperf.reparam import studies

    factors = rates(values)
    if len(factors) == 1:
        return []
    workload, middle = _workload(values, base), sorted(axis)[(len(axis) - 1) // 2]
    found = []
    for setting in studies.settings(series_of(values, workload), [middle]):
        for number, factor in enumerate(factors, start=1):
            trial = len(factors) * (setting.trial - 1) + number
            run = _run(
                values, workload, dataclasses.replace(setting, trial=trial), 0, factor
            )
            out = Path(values.out) / SCREENING
            run = dataclasses.replace(run, out=out, seed=values.seed + 1)
            found.append(Trial(setting, factor, run))
    return found


def rates(values: flags.FlagValues) -> tuple[float, ...]:
    """Returns the factors of `--rates`, or the study's usual ones.

    Raises:
      UserError: they are no positive numbers.
    """
    try:
        found = tuple(float(x) for x in values.rates or RATES[values.study])
    except ValueError as error:
        raise UserError(f"--rates must be numbers: {error}") from error
    if not all(0 < x < float("inf") for x in found):
        raise UserError("--rates are factors of learning rates: more than 0")
    return found


def _factors(screened: Sequence[Trial], base: "Workload") -> dict[str, float]:
    """Returns the best factor of each series whose rates were all tried.

    A series that failed at all of them keeps its own rate.
    """
    trials: dict[str, list[Trial]] = {}
    for trial in screened:
        trials.setdefault(trial.setting.series, []).append(trial)
    sign = 1 if base.target_direction is Direction.MAXIMIZE else -1
    found = {}
    for series, own in trials.items():
        if not all(training.is_done(trial.run) for trial in own):
            continue
        finals = {t.factor: _row(base, t.setting, 0, t.run).get("final") for t in own}
        good = {factor: sign * x for factor, x in finals.items() if x is not None}
        found[series] = max(good, key=lambda factor: good[factor]) if good else 1.0
    return found


def _workload(values: flags.FlagValues, base: "Workload") -> "Workload":
    """Returns the workload that all series of the study train.

    Compression trains residual blocks whose last batch norm starts at 1, as in the
    papers. With 0 a block is its shortcut at first; where a mask removes that, the
    block's output is exactly 0, and no gradient ever passes.
    """
    from algoperf.workload import derive

    if values.study == "compression":
        model: Any = base.model
        if getattr(model, "bn_init_scale", None) == 0.0:
            name = f"{base.variant}_unit_bn_init"
            base = derive(base, model={"bn_init_scale": 1.0}, variant=name)
    return training.planned(base, values)


def series_of(values: flags.FlagValues, workload: "Workload") -> "list[Series]":
    """Returns the methods of the study, those asked for.

    Raises:
      UserError: one is not there.
    """
    from algoperf.reparam.studies import Series

    found = [Series(DENSE, DENSE, None, ADAMW)]
    found += _ranks() if values.study == "rank" else _compressions(workload)
    known = {series.name: series for series in found}
    if values.series is None:
        return [series for series in found if series.name not in ON_REQUEST]
    unknown = [name for name in values.series if name not in known]
    if unknown:
        raise UserError(f"no series {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in values.series]


def _ranks() -> "list[Series]":
    """Returns what trains or remembers at a low rank."""
    from algoperf.reparam.studies import Series

    fast = RECIPE | {"learning_rate": 0.01}
    slow = RECIPE | {"learning_rate": 0.003}
    found = [Series(name, name, "rank", fast) for name in ("lora", "relora")]
    found.append(Series("factorised", "factorised", "rank", slow))
    projected = fast | {"gap": GAP}
    found += [Series(name, name, "rank", projected) for name in ("galore", "fira")]

    def scale(share: float) -> dict[str, float]:
        return {"scale": APOLLO_SHARE / share}

    return [*found, Series("apollo", "apollo", "rank", projected, also=scale)]


def _compressions(workload: "Workload") -> "list[Series]":
    """Returns what makes a model smaller, and dense SGD.

    Narrow and pruned networks at compression 1 would be the dense one by AdamW, so they
    are left out there. A memory at 1 is not: its layers move at rates of their own, and
    all of them start with the deviation 1 / sqrt(fan-in).
    """
    import numpy as np

    from algoperf.reparam.studies import Series

    found = [Series(DENSE_SGD, DENSE_SGD, None, SGD | {"nesterov": True})]
    found.append(Series(NARROW, NARROW, "compression", ADAMW, above=1.0))
    layouts = {SHARED: "fold", "roast": "tiles", "hashed": "elements"}
    shared: dict[str, dict[str, Any]]
    shared = {name: SHARED_ADAMW | {"layout": x} for name, x in layouts.items()}
    shared["stable_rps_sgd"] = SGD | {
        "layout": "fold",
        "rule": "sgd",
        "init_std": 0.02,
        "beta2": 0.99,
    }
    found += [
        Series(name, SHARED, "share", fixed, inverse=True)
        for name, fixed in shared.items()
    ]
    scores = list(SCORES)
    if np.issubdtype(np.dtype(workload.input_dtype), np.floating):
        scores.append("synflow")  # needs inputs of ones
    return found + [
        Series(x, PRUNED, "density", ADAMW | {"score": x}, inverse=True, above=1.0)
        for x in scores
    ]


def _run(
    values: flags.FlagValues,
    workload: "Workload",
    setting: "Setting",
    study: int,
    factor: float,
) -> "TrialConfig":
    from algoperf import study_submissions

    if setting.submission == NARROW:
        chosen, point = study_submissions.narrow_network(), training.point(DENSE)
    else:
        chosen = training.load(setting.submission)
        point = training.point(setting.submission)
    point |= setting.changes
    point["learning_rate"] *= factor
    return training.config(values, workload, chosen, point, study, setting.trial)


def _row(
    base: "Workload", setting: "Setting", study: int, run: "TrialConfig"
) -> dict[str, Any]:
    from algoperf.reparam import studies

    return studies.result_row(
        setting,
        study,
        run.folder,
        base.target_metric_name,
        base.target_direction,
        base.validation_target_value,
        _sizes_of(setting, run.workload),
    )


def _sizes_of(setting: "Setting", workload: Any) -> dict[str, float] | None:
    """Returns the sizes where no record tells them: `pruned` masks all kernels."""
    from algoperf import reparam
    from algoperf.reparam import pruning

    if setting.submission != PRUNED:
        return None
    chosen = reparam.select(workload)
    return pruning.sizes(workload, chosen, setting.changes["density"])


def _mark_collapsed(rows: Sequence[dict[str, Any]], workload: "Workload") -> None:
    """Marks runs that end no better than one class for all images."""
    import numpy as np

    if workload.target_metric_name != "accuracy":
        return
    counts: Any = np.zeros(0)
    for batch in workload.batches("validation"):
        own = np.bincount(batch["targets"], batch["weights"], len(counts))
        counts = own + np.pad(counts, (0, len(own) - len(counts)))
    for row in rows:
        if row.get("final", 1.0) <= counts.max() / counts.sum():
            row["collapsed"] = True


def _rates_text(
    screened: Sequence[Trial], base: "Workload", factors: Mapping[str, float]
) -> str:
    """Returns which rates were tried and taken, as Markdown."""
    from algoperf.reparam import studies

    if not screened:
        return ""
    found: dict[str, list[str]] = {}
    for trial in screened:
        row = _row(base, trial.setting, 0, trial.run)
        shown = f"{row['final']:.4g}" if "final" in row else row["status"]
        rate = (trial.run.hyperparameters or {})["learning_rate"]
        cell = f"{rate:.3g}: {shown}"
        if trial.factor == factors[trial.setting.series]:
            cell = f"**{cell}**"
        found.setdefault(trial.setting.series, []).append(cell)
    middle = next((t.setting.x for t in screened if t.setting.x is not None), None)
    at = "" if middle is None else f" at {middle:g}"
    tried = list(dict.fromkeys(trial.factor for trial in screened))
    heading = ["series", *(f"rate x {factor:.3g}" for factor in tried)]
    table = studies.markdown(heading, [[name, *row] for name, row in found.items()])
    ends = [name for name in found if factors[name] in (min(tried), max(tried))]
    at_an_end = (
        f"\nThe best of {', '.join(ends)} is the smallest or largest that was tried.\n"
        if ends
        else ""
    )
    return (
        f"\nLearning rates tried{at}, each once with a seed that the study does not "
        f"use, with the last validation {base.target_metric_name}; what is taken is "
        f"bold.\n\n{table}{at_an_end}"
    )


def _write(
    values: flags.FlagValues,
    base: "Workload",
    rows: Sequence[dict[str, Any]],
    x_name: str,
    steps: int,
    more: str,
) -> None:
    """Writes the rows, their tables and plots; prints the tables, and `more` there.

    Who reached the target is told of whole runs only: it was set for so many steps.
    """
    from algoperf.reparam import studies

    out, metric = Path(values.out), base.target_metric_name
    records.write_measurements(out / f"{values.study}.csv", rows)
    lines = studies.summary(rows, "final")
    is_whole = steps >= base.step_hint
    text = studies.table(lines, x_name, metric, is_whole, "final")
    text += more + _verdicts(rows, metric, x_name, steps)
    records.write_text(out / f"{values.study}.md", text)
    print(text, end="")
    if not values.plot:
        return
    y_name = f"validation {metric} after {steps} steps"
    stored = [
        line | {"x": line["compression_ratio"]}
        for line in lines
        if "x" in line and "compression_ratio" in line
    ]
    dense = [line for line in lines if "x" not in line]
    plots = {values.study: (x_name, lines)}
    if values.study == "compression":
        plots["compression_stored"] = ("bytes of all over stored", dense + stored)
    for name, (label, own) in plots.items():
        path = out / f"{name}.svg"
        studies.plot(own, label, y_name, path, "final", base.target_direction)


def _verdicts(
    rows: Sequence[Mapping[str, Any]], metric: str, x_name: str, steps: int
) -> str:
    """Returns whether sharing is at least as good as all else that is small."""
    from algoperf.reparam import verdicts

    if metric != "accuracy":  # the margin is of that
        return ""
    others = (NARROW, *SCORES, "synflow")
    found = verdicts.against(rows, SHARED, others, MARGIN)
    if not found:
        return ""
    return "\n" + verdicts.text(found, SHARED, x_name, MARGIN, steps)
