"""What a tuning has found: the score of each trial, and the best points.

A trial is one point on all workloads. On workload w, with step hint h and S steps
allowed, its loss is

    log(s / h)                if it reaches the target at step s,
    log(MISS S / h) + gap     if it does not,

with s interpolated between the evaluations before and after, and the gap, from 0 to 1,
the part of the way from the first finite evaluation, as a rule of the untrained model,
to the target that is still missing at the best one; of metrics that fall, in
logarithms. The score of the trial is the mean of its losses, so exp(score) is a
geometric mean of shares of the step hint. Smaller is better. Steps, unlike seconds, do
not depend on how fast a machine is.

Imports nothing that needs JAX.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from algoperf import coordinate_search
from algoperf.coordinate_search import Plan, Proposal
from algoperf.records import Direction
from algoperf.run_store import Run, Store

PHASE = "tune"  # of all runs in the store
STOPPED = "stopped"  # the status of a run that early stopping ended
# A miss counts as that many times the steps allowed: a ratio to the best time beyond
# which performance profiles count a miss (Dahl et al. 2023, section 4.2).
MISS = 4.0
POINTS = 5  # of the search space that comes out: the trials of a study
LAST_SEED = 2**31 - 1  # that `algoperf run` takes


@dataclasses.dataclass(frozen=True)
class Goal:
    """A workload as a tuning sees it; `steps` is how many a run may take."""

    metric: str
    direction: str
    target: float
    step_hint: int
    steps: int

    @property
    def way(self) -> Direction:
        """Which way the metric improves."""
        return Direction(self.direction)


def steps_to_target(run: Run, goal: Goal) -> float | None:
    """Returns the step at which a run reaches the target; None if it does not."""
    return None if run.status == STOPPED else run.steps_to(goal.target, goal.way)


def gap(run: Run, goal: Goal) -> float:
    """Returns which part of the way to the target is missing, from 0 to 1."""
    best = run.best(goal.way)
    if best is None:
        return 1.0
    measured = (row["validation"] for row in run.evaluations)
    first = next(filter(math.isfinite, measured))  # the untrained model may overflow
    values = [first, best["validation"], goal.target]
    if goal.way is Direction.MINIMIZE and min(values) > 0:
        values = [math.log(value) for value in values]
    start, end, target = values
    way = target - start
    if way == 0:
        return 1.0
    return min(max((target - end) / way, 0.0), 1.0)


def loss(run: Run, goal: Goal) -> float:
    """Returns the loss of a run, as the module says."""
    steps = steps_to_target(run, goal)
    if steps is not None:
        return math.log(steps / goal.step_hint)
    return math.log(MISS * goal.steps / goal.step_hint) + gap(run, goal)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A tuning as far as it has come.

    Attributes:
      submission: its name.
      plan: which points are tried.
      goals: of the workloads, by their names in records.
      store: the runs that are done.
    """

    submission: str
    plan: Plan
    goals: Mapping[str, Goal]
    store: Store

    def run(self, trial: int, workload: str) -> Run | None:
        """Returns a run if it is done."""
        return self.store.runs.get(self.key(trial, workload))

    def key(self, trial: int, workload: str) -> tuple[str, str, int]:
        """Returns which run of the store it is."""
        return PHASE, workload, trial

    def losses(self) -> dict[int, list[float]]:
        """Returns losses by workload, in the order of the goals, of finished trials."""
        found = {}
        for trial in sorted({key[2] for key in self.store.runs}):
            runs = [self.run(trial, name) for name in self.goals]
            if trial <= self.plan.budget and all(runs):
                found[trial] = [
                    loss(run, goal)
                    for run, goal in zip(runs, self.goals.values(), strict=True)
                    if run is not None
                ]
        return found

    def scores(self) -> dict[int, float]:
        """Returns the scores of the finished trials, by number."""
        return {trial: _mean(losses) for trial, losses in self.losses().items()}

    def waiting(self) -> list[Proposal]:
        """Returns the trials to run next; none if the tuning is done."""
        return coordinate_search.next_points(self.plan, self.scores())

    def tried(self) -> list[Proposal]:
        """Returns the finished trials in order."""
        return coordinate_search.tried(self.plan, self.scores())

    def chosen(self) -> list[Proposal]:
        """Returns the trials whose points make the search space, the best first."""
        numbers = choose(self.losses(), POINTS)
        by_number = {proposal.trial: proposal for proposal in self.tried()}
        return [by_number[number] for number in numbers if number in by_number]


def choose(losses: Mapping[int, Sequence[float]], size: int) -> list[int]:
    """Returns the trials that together do best, the best one first.

    The fastest trial of a study counts, on each workload: so after the best, the next
    is whichever lowers the mean over workloads of the least loss the most. Ties go to
    the better score, then to the earlier trial.

    Args:
      losses: by trial, one for each workload.
      size: how many to choose, if there are so many.
    """
    chosen: list[int] = []
    rest = sorted(losses)
    while rest and len(chosen) < size:
        together = [losses[trial] for trial in chosen]
        ranks = []
        for trial in rest:
            columns = zip(*together, losses[trial], strict=True)
            least = _mean([min(column) for column in columns])
            ranks.append((least, _mean(losses[trial]), trial))
        chosen.append(min(ranks)[-1])
        rest.remove(chosen[-1])
    return chosen


def run_seed(seed: int) -> int:
    """Returns what the runs of a tuning are seeded with.

    Counted down from the last seed, since sweeps count theirs from 0: a run that chose
    a point is never one of those that judge it.
    """
    return LAST_SEED - seed


def facts(tuning: Tuning, **more: Any) -> dict[str, Any]:
    """Returns what the runs of a tuning depend on, for `Store.facts`.

    The budget is not among it: a greater one goes on from a smaller one, if both have
    the same number of trials in the search.
    """
    plan = tuning.plan
    return {
        "submission": tuning.submission,
        "ranges": [[name, part] for name, part in plan.ranges.items()],
        "search": plan.search,
        "seed": plan.seed,
        "intervals": plan.intervals,
        "least_gain": plan.least_gain,
        "workloads": {
            name: dataclasses.asdict(goal) for name, goal in tuning.goals.items()
        },
        **more,
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
