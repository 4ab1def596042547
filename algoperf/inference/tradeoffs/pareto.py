"""Training runs joined with inference profiles: what a submission's model is worth.

A run has a quality and a time to train, a profile a time and bytes of a request, for
one way of serving. Joined they are one row: the quality as served, what it took to
train, what a request costs. Rows of one submission and way make a point, medians over
its runs. No JAX.

Which profile belongs to a run: one measured on its own model, or, served in float32
and otherwise unchanged, one of its workload with any weights, since speed does not
depend on their values. The quality of another recipe is known where it was measured.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from algoperf import records
from algoperf.errors import UserError
from algoperf.inference.timing import profiler
from algoperf.inference.timing.profiles import Profile
from algoperf.inference.tradeoffs import costs, ways
from algoperf.records import Direction

_IDENTITY = ("workload", "ruleset", "study", "trial", "trial_seed", "start_time")


@dataclasses.dataclass(frozen=True)
class Run:
    """A trial that has ended, as far as its worth goes.

    Attributes:
      folder: of the trial.
      submission, workload: names.
      study, trial: numbers.
      identity: what tells it from others, see `trial.identity`.
      metric, direction, target: of the validation data; target None: there is none.
      rows: its evaluations.
      hardware: where it was trained; all, if it went on elsewhere.
      num_devices: that it was trained on together.
    """

    folder: Path
    submission: str
    workload: str
    study: int
    trial: int
    identity: Mapping[str, Any]
    metric: str
    direction: Direction
    target: float | None
    rows: tuple[records.Row, ...]
    hardware: str
    num_devices: int

    @property
    def seconds_to_target(self) -> float:
        """Submission time when the target was reached; inf where it was not."""
        for row in self.rows:
            value = row.get(f"validation/{self.metric}", math.nan)
            if self.target is not None and records.reaches(
                value, self.target, self.direction
            ):
                return row[records.SUBMISSION_TIME]
        return math.inf

    def at_step(self, step: int | None) -> records.Row:
        """Returns the evaluation at or before a step, the first at least."""
        found = [r for r in self.rows if step is None or r[records.GLOBAL_STEP] <= step]
        return found[-1] if found else self.rows[0]


@dataclasses.dataclass(frozen=True)
class Row:
    """A run, served in one way.

    Attributes:
      workload, submission, study, trial: of the run.
      run: its folder.
      recipe: how it is served, see `ways.served_as`.
      metric: what quality is.
      quality: on the validation data, as it is served.
      trained_quality: at the end of training.
      seconds_to_target: submission time; inf where the target was not reached.
      train_seconds: submission time of what is served.
      request_seconds: idealized time of a request, of one of a batch.
      weight_bytes: of the weights as stored; nan: unknown.
      step_bytes: that a decoding step moves; nan: unknown.
      request_dollars: of one request; nan without a price.
      total_dollars: of training and of all requests; nan without a price.
      profile: the name of the profile's file.
      reason_not_to_trust: the profile; empty where there is none.
    """

    workload: str
    submission: str
    study: int
    trial: int
    run: str
    recipe: str
    metric: str
    quality: float
    trained_quality: float
    seconds_to_target: float
    train_seconds: float
    request_seconds: float
    weight_bytes: float
    step_bytes: float
    request_dollars: float
    total_dollars: float
    profile: str
    reason_not_to_trust: str


# What a point has the median of.
NUMBERS = (
    "quality",
    "trained_quality",
    "seconds_to_target",
    "train_seconds",
    "request_seconds",
    "weight_bytes",
    "step_bytes",
    "request_dollars",
    "total_dollars",
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A submission, served in one way: medians over its runs.

    Attributes:
      submission, recipe: which.
      num_runs: that it is the median of.
      worst, best: quality of its runs.
      values: the medians, by the names in `NUMBERS`.
    """

    submission: str
    recipe: str
    num_runs: int
    worst: float
    best: float
    values: Mapping[str, float]

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.submission}, {self.recipe}"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a model, and at what price.

    Attributes:
      prompt, output: tokens.
      number: requests in the life of a model, for its total dollars.
      dollars_per_hour: of one device, in training and in serving; None: no dollars.
    """

    prompt: int
    output: int
    number: float = 1e6
    dollars_per_hour: float | None = None


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Returns the trials under some folders that have ended, and what was left out.

    Raises:
      UserError: a folder is missing, or none has a trial that counts.
    """
    runs, notes = [], []
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder of runs; give one of `algoperf run`"
            )
        for path in sorted(folder.rglob(records.RECORD_FILE)):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                run, why = _read_run(path.parent)
            except UserError as error:
                run, why = None, str(error)
            if run is None:
                notes.append(f"{path.parent}: {why}")
            else:
                runs.append(run)
    if not runs:
        first = f" ({notes[0]})" if notes else ""
        raise UserError(
            f"no trial with a result is there{first}; give folders that `algoperf run` "
            "has written"
        )
    return runs, notes


def _read_run(folder: Path) -> tuple[Run | None, str]:
    """Returns a run, or why it does not count."""
    record = records.read_record(folder)
    if not record["status"].is_final or record["status"] is records.Status.FAILED:
        return None, f"the trial is {record['status']}"
    rows = records.read_measurements(folder / records.EVAL_FILE)
    try:
        target = record["target"]
        name = f"validation/{target['metric']}"
        if not rows or not math.isfinite(rows[-1].get(name, math.nan)):
            return None, f"its last {name} is no number"
        submission = record["submission"]["name"]
        own = {key: record[key] for key in _IDENTITY if key != "trial_seed"}
        own |= {
            "submission": submission,
            "trial_seed": record["seeds"]["trial_seed"],
        }
        return Run(
            folder=folder,
            submission=submission,
            workload=record["workload"],
            study=record["study"],
            trial=record["trial"],
            identity=own,
            metric=target["metric"],
            direction=Direction(target["direction"]),
            target=target["validation"],
            rows=tuple(rows),
            hardware=", then ".join(
                dict.fromkeys(_hardware(part) for part in records.parts(record))
            ),
            num_devices=int(record["devices"]["device_count"]),
        ), ""
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / records.RECORD_FILE} lacks what a run needs ({error!r})"
        ) from error


def _hardware(record: Mapping[str, Any]) -> str:
    devices = record["devices"]
    if devices.get("platform") == "cpu":
        return str(record["host"].get("cpu"))
    return f"{int(devices['device_count'])} x {devices.get('device_kind')}"


def check_comparable(runs: Sequence[Run], profiles: Mapping[str, Profile]) -> None:
    """Raises UserError where times are of several machines."""
    trained_on = sorted({run.hardware for run in runs})
    profiled_on = sorted({ways.served_on(profile) for profile in profiles.values()})
    for what, found in (("trained", trained_on), ("profiled", profiled_on)):
        if len(found) > 1:
            raise UserError(
                f"models were {what} on different hardware ({'; '.join(found)}), so "
                "times do not compare; give those of one, or --any_hardware"
            )


def joined(
    runs: Sequence[Run], profiles: Mapping[str, Profile], request: Request
) -> tuple[list[Row], list[str]]:
    """Returns a row for each run and profile of it, and notes on what has none.

    Args:
      runs: trained.
      profiles: by the names of their files.
      request: to predict.

    Raises:
      UserError: no profile belongs to a run; a request that does not fit.
    """
    rows, notes = [], []
    used: set[str] = set()
    served_as = ways.served_as(profiles)
    for run in runs:
        found = _profiles_of(run, profiles, served_as)
        for name, profile in found.items():
            used.add(name)
            quality = _quality(run, profile)
            if quality is None or not math.isfinite(quality):
                notes.append(
                    f"{name}: the quality of {ways.recipe(profile)} is not "
                    "known; profile it without --noevaluate"
                )
                continue
            rows.append(_row(run, name, profile, served_as[name], quality, request))
        if not found:
            notes.append(
                f"{run.folder}: no profile; measure one with `algoperf infer profile "
                f"{run.folder}`"
            )
    for name in profiles.keys() - used:
        notes.append(f"{name}: of none of these runs")
    if not rows:
        raise UserError(
            "no profile belongs to one of these runs and has a quality; measure with "
            f"`algoperf infer profile {runs[0].folder}`"
        )
    return rows, sorted(notes)


def _profiles_of(
    run: Run, profiles: Mapping[str, Profile], served_as: Mapping[str, str]
) -> dict[str, Profile]:
    own, of_workload = {}, {}
    for name, profile in profiles.items():
        trial = profile.served.get("trial")
        if trial is not None:
            if all(trial.get(key) == value for key, value in run.identity.items()):
                own[name] = profile
        elif profile.shape.name == run.workload and ways.is_unchanged(profile):
            of_workload[name] = profile
    known = {served_as[name] for name in own}
    others = {n: p for n, p in of_workload.items() if served_as[n] not in known}
    return {**others, **own}


def _quality(run: Run, profile: Profile) -> float | None:
    """Returns the quality of a run as a profile serves it; None: unknown."""
    served = profile.served
    if served.get("quality") is not None:
        return served["quality"]
    if not ways.is_unchanged(profile):
        return None
    if "trial" in served:
        return served.get("trained_quality")
    return run.rows[-1][f"validation/{run.metric}"]


def _row(
    run: Run,
    name: str,
    profile: Profile,
    way: str,
    quality: float,
    request: Request,
) -> Row:
    served, setting = profile.served, profile.setting
    option = costs.Option(profile.runtime, setting.parallel, setting.batch_size)
    size = request.prompt, request.output
    price = request.dollars_per_hour
    at = run.at_step(served.get("trial", {}).get("step"))
    train_seconds = at[records.SUBMISSION_TIME]
    each = math.nan if price is None else option.dollars(*size, price)
    training = math.nan
    if price is not None:
        device_seconds = train_seconds * run.num_devices
        training = device_seconds * price / costs.SECONDS_PER_HOUR
    return Row(
        workload=run.workload,
        submission=run.submission,
        study=run.study,
        trial=run.trial,
        run=str(run.folder),
        recipe=way,
        metric=run.metric,
        quality=quality,
        trained_quality=at.get(f"validation/{run.metric}", math.nan),
        seconds_to_target=run.seconds_to_target,
        train_seconds=train_seconds,
        request_seconds=option.seconds_per_request(*size),
        weight_bytes=_number(served.get("weight_bytes")),
        step_bytes=_number(served.get("step_bytes")),
        request_dollars=each,
        total_dollars=training + request.number * each,
        profile=name,
        reason_not_to_trust=profiler.refusal(profile.result) or "",
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def points(rows: Sequence[Row], direction: Direction) -> list[Point]:
    """Returns the medians of each submission and way, in the order of their names.

    Args:
      rows: of one workload.
      direction: which way its quality improves.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.submission, row.recipe), []).append(row)
    found = []
    for (submission, recipe), group in sorted(groups.items()):
        qualities = sorted(row.quality for row in group)
        if direction is Direction.MAXIMIZE:
            qualities.reverse()
        found.append(
            Point(
                submission=submission,
                recipe=recipe,
                num_runs=len({row.run for row in group}),
                worst=qualities[-1],
                best=qualities[0],
                values={name: _median_of_runs(group, name) for name in NUMBERS},
            )
        )
    return found


def _median_of_runs(rows: Sequence[Row], name: str) -> float:
    """Returns the median of a number, a run that was profiled twice counted once."""
    of_run: dict[str, list[float]] = {}
    for row in rows:
        of_run.setdefault(row.run, []).append(getattr(row, name))
    return _median([_median(values) for values in of_run.values()])


def _median(values: Sequence[float]) -> float:
    """Returns the median; nan where a value is unknown."""
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)
