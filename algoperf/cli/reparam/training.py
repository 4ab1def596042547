"""What the studies of `algoperf reparam` share: their training runs, and how long.

Runs are ordinary trials of the workload with a schedule of so many steps, which neither
target nor budget ends: a study compares what all methods reach in the same steps.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.loading import Submission
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

# Share of the step hint that a study's runs take, unless `--steps` says otherwise: so
# that three seeds of a study take less than 90 minutes on two cores.
SHARES = {"rank": 0.4, "compression": 0.35, "expansion": 1.0, "federated": 0.5}
EVALUATIONS = 10  # of a run, beside the one before it
REHEARSED_STEPS = 8  # twice: with compilation and without
SHORT = 40  # steps; so few are not worth a rehearsal


def planned(workload: "Workload", values: flags.FlagValues) -> "Workload":
    """Returns the workload whose runs take the study's steps, to their end.

    Its name says how many, so that runs of other lengths have other records.
    """
    from algoperf import calibration
    from algoperf.data.examples import DataOptions
    from algoperf.workload import derive

    steps = values.steps or max(1, round(SHARES[values.study] * workload.step_hint))
    named = with_steps(workload, steps)
    folder = Path(values.data_dir) if values.data_dir else None
    named = derive(named, data=DataOptions(folder=folder))
    return calibration.for_target_setting(named, 1.0)


def with_steps(workload: "Workload", steps: int) -> "Workload":
    """Returns the workload with another step hint, and named after it."""
    from algoperf.workload import derive

    if steps == workload.step_hint:
        return workload
    name, _, _ = workload.variant.partition("_steps_")
    return derive(workload, variant=f"{name}_steps_{steps}", step_hint=steps)


@functools.cache
def load(name: str) -> "Submission":
    """Returns a submission by name."""
    from algoperf import loading, registry

    return loading.load_submission(registry.find_submission(name))


def point(name: str, number: int = 1) -> dict[str, Any]:
    """Returns a point of a submission's search space, counted from 1."""
    from algoperf import tuning

    space = tuning.load_search_space(load(name).default_search_space)
    return dict(tuning.trial_point(space, 0, number))


def config(
    values: flags.FlagValues,
    workload: "Workload",
    submission: "Submission",
    hyperparameters: dict[str, Any],
    study: int,
    trial: int = 1,
) -> "TrialConfig":
    """Returns one run of a study."""
    from algoperf import trials

    return trials.TrialConfig(
        submission=submission,
        workload=workload,
        out=Path(values.out),
        hyperparameters=hyperparameters,
        study=study,
        trial=trial,
        seed=values.seed,
        max_steps=min(values.max_steps or workload.step_hint, workload.step_hint),
        eval_period_steps=max(1, workload.step_hint // EVALUATIONS),
        checkpoint_period_sec=300.0,
    )


def is_done(run: "TrialConfig") -> bool:
    """Whether a run has its result."""
    folder = run.folder
    if not (folder / records.RECORD_FILE).exists():
        return False
    return records.Status(records.read_record(folder)["status"]).is_final


def check(runs: Sequence["TrialConfig"]) -> None:
    """Raises UserError where a finished record is of another run than is asked for."""
    from algoperf import runner

    if done := [run for run in runs if is_done(run)]:
        runner.run_study(done, resume=True)


def make(runs: Sequence["TrialConfig"]) -> bool:
    """Makes the runs that are missing; returns whether all are there.

    A run that fails or diverges is there: that is its result.

    Raises:
      UserError: a finished record is of another run than is asked for.
    """
    from algoperf import runner

    check(runs)
    missing = [run for run in runs if not is_done(run)]
    with common.StopRequest() as stop:
        for done, run in enumerate(missing, start=1):
            runner.run_study([run], resume=True, should_stop=lambda: stop.is_asked)
            if stop.is_asked:
                print("stopped; the same command goes on with what is missing")
                return False
            status = records.read_record(run.folder)["status"]
            print(
                f"[{done}/{len(missing)}: {run.submission.name} on "
                f"{run.workload.name}, study {run.study}, trial {run.trial}: {status}]",
                flush=True,
            )
    return True


def restored(run: "TrialConfig") -> tuple[Any, Any]:
    """Returns the params and model state that a finished run ended with.

    Raises:
      UserError: it has no checkpoint.
    """
    import jax

    from algoperf import tuning
    from algoperf.checkpoint import Checkpoints
    from algoperf.runner import TrainState

    key = jax.random.PRNGKey(0)  # of a state that the checkpoint replaces
    params, model_state = run.workload.init_model_fn(key)
    point = tuning.as_namedtuple(run.hyperparameters)
    state = run.submission.functions.init_optimizer_state(
        run.workload, params, model_state, point, key
    )
    checkpoints = Checkpoints(run.folder)
    found = checkpoints.restore(TrainState(params, model_state, state, 0))
    checkpoints.close()
    if found is None:
        raise UserError(f"{run.folder} has no checkpoint; remove it, run again")
    return found[0].params, found[0].model_state


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast runs are: seconds of a step, and of all else in a run."""

    step_sec: float
    other_sec: float

    def seconds(self, run: "TrialConfig") -> float:
        """Returns the estimate for a run."""
        return self.other_sec + (run.max_steps or 0) * self.step_sec


def rehearse(run: "TrialConfig") -> Pace:
    """Measures a run's pace on its first steps, in a folder that is thrown away.

    Other than steps there are compilation, evaluations and records; the rehearsal has
    three evaluations, a run may have more.
    """
    from algoperf import runner

    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            run,
            out=Path(folder),
            max_steps=2 * REHEARSED_STEPS,
            eval_period_steps=REHEARSED_STEPS,
        )
        start = time.perf_counter()
        (record,) = runner.run_study([short])
        taken = time.perf_counter() - start
    if record["status"] != records.Status.COMPLETED:
        raise UserError(
            f"{run.submission.name} on {run.workload.name} {record['status']} within "
            f"its first steps: {record['message']}"
        )
    step = record["step_time"]["seconds"]
    if step is None:  # all windows compiled something
        step = record["clock"]["submission"] / (2 * REHEARSED_STEPS)
    return Pace(step, max(0.0, taken - 2 * REHEARSED_STEPS * step))


def announce(
    runs: Sequence["TrialConfig"],
    more_sec: float = 0.0,
    unsettled: Sequence["TrialConfig"] = (),
) -> None:
    """Prints how long the missing runs will take, as far as a rehearsal tells.

    Each method is rehearsed once, unless its runs are short.

    Args:
      runs: of the study.
      more_sec: what else the study takes.
      unsettled: more of its runs, which may still change, so that what is there may be
        theirs although it differs.
    """
    check(runs)
    runs = [*runs, *unsettled]
    missing = [run for run in runs if not is_done(run)]
    print(f"{len(runs) - len(missing)} of {len(runs)} training runs are done")
    if not missing:
        return
    if max(run.max_steps or 0 for run in missing) < SHORT:
        print("no estimate of the time: the runs are as short as a rehearsal")
        return
    print("rehearsing each method's first steps", flush=True)
    paces: dict[str, Pace] = {}
    for run in missing:
        if method_of(run) not in paces:
            paces[method_of(run)] = rehearse(run)
    seconds = more_sec + estimate(missing, paces)
    print(f"this will take about {spoken(seconds)} on this machine, as it is now")
    for name, pace in paces.items():
        number = sum(method_of(run) == name for run in missing)
        print(
            f"  {name}: {number} runs, {1000 * pace.step_sec:.3g} ms a step, "
            f"{pace.other_sec:.3g} s for all else",
            flush=True,
        )


def method_of(run: "TrialConfig") -> str:
    """Returns what sets a run's pace, such as 'stable_rps tiles adam v1'.

    That is the submission and those of its hyperparameters that are words, because each
    may make another program of it.
    """
    words = [x for x in (run.hyperparameters or {}).values() if isinstance(x, str)]
    return " ".join([run.submission.name, *words])


def estimate(runs: Iterable["TrialConfig"], paces: dict[str, Pace]) -> float:
    """Returns the seconds of the runs, from the paces of their methods."""
    return sum(paces[method_of(run)].seconds(run) for run in runs)


def spoken(seconds: float) -> str:
    """Returns '40 s', '12 minutes' or '3.5 hours'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
