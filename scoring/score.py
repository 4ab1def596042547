"""From runs and rules to a result: times, ratios, scores, and what to know of them."""

import dataclasses
import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from algoperf.errors import UserError, unknown_name
from algoperf.records import Status
from scoring import guards, profile, time_to_target
from scoring import published as published_field
from scoring.published import Published
from scoring.read import FloatArray, Runs, Trial
from scoring.rules import Goal, Protocol, Rules
from scoring.time_to_target import Mode, Studies, TimeKind, Timing

Groups = dict[tuple[str, str], list[Trial]]  # by submission and workload
Ranges = dict[str, dict[str, tuple[int, int]]]  # by workload and submission
SCORE_DIGITS = 12  # scores that differ by rounding alone are equal


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """Scores of submissions under rules.

    Dimension key: S submissions, B base workloads, V held-out variants.
    """

    rules: Rules
    ruleset: str
    mode: Mode
    submissions: tuple[str, ...]  # S, sorted by name
    workloads: tuple[str, ...]  # B, in the order of the rules
    held_out: tuple[str, ...]  # V
    times: FloatArray  # [S, B] to the target in `timing.unit`, inf for a miss
    held_out_times: FloatArray  # [S, V]
    ratios: FloatArray  # [S, B] to the best counted time; inf where none counts
    scores: FloatArray  # [S] in [0, 1]
    warnings: tuple[str, ...]
    published: tuple[str, ...] = ()  # those of `submissions` that others published
    predicted: frozenset[tuple[str, str]] = frozenset()  # (submission, workload)
    timing: Timing = time_to_target.SUBMISSION_TIME
    no_budget: bool = False  # no time could have ended any trial that was judged
    # By submission and workload, what `time_to_target.workload_studies` returns.
    studies: Mapping[tuple[str, str], Studies] = dataclasses.field(default_factory=dict)

    @property
    def ranking(self) -> list[int]:
        """Indices of submissions, best score first, then by name."""
        scores = np.round(self.scores, SCORE_DIGITS)
        return sorted(range(len(scores)), key=lambda s: (-scores[s], s))

    @property
    def held_out_base(self) -> list[int]:
        """Index of the base workload of each held-out variant, V."""
        return self.rules.base_of_held_out

    @property
    def counts(self) -> np.ndarray:
        """Where a time is within r_max of the best and not struck out, [S, B] bool."""
        return self.ratios <= self.rules.r_max

    def profile(self) -> tuple[FloatArray, FloatArray]:
        """Returns taus [T] and rho [S, T]: each step, or the official grid."""
        if self.mode is Mode.OFFICIAL:
            taus = profile.official_grid(self.rules.r_max)
        else:
            taus = profile.breakpoints(self.ratios, self.rules.r_max)
        return taus, profile.performance_profile(self.ratios, taus)


def score_runs(
    runs: Runs,
    rules: Rules,
    ruleset: str = "external",
    mode: str = "documented",
    published: Published | None = None,
    timing: Timing = time_to_target.SUBMISSION_TIME,
) -> Result:
    """Judges runs by rules.

    Best times are those of the submissions given. A workload that a submission did not
    run is a miss, so that a part of a benchmark can be scored.

    Args:
      runs: what was read.
      rules: what to judge by.
      ruleset: 'external' or 'self': how many studies and trials are expected.
      mode: 'documented', or 'official' to repeat what the official code does.
      published: a published field to judge the runs among.
      timing: which time counts, and whether it is interpolated.

    Raises:
      UserError: unknown ruleset or mode; the runs cannot be compared with the published
        field; idealized time of records without step time.
    """
    protocol = rules.protocol(ruleset)
    if mode not in tuple(Mode):
        raise unknown_name("scoring mode", mode, Mode)
    mode = Mode(mode)
    if published is not None:
        published_field.check_comparable(runs, rules, ruleset, timing, published)
    if mode is Mode.DOCUMENTED:
        rules = rules.within_budgets(ruleset)
    groups, both = group_trials(runs.trials)
    submissions = runs.submissions
    unclocked = _unclocked(groups, rules) if timing.kind is TimeKind.IDEALIZED else []
    studies = _studies_of(groups, rules, mode, timing)
    held_out = tuple(rules.held_out)
    times_SB = _times_of(submissions, rules.base_workloads, studies)
    times_SV = _times_of(submissions, held_out, studies)
    warnings = [*runs.warnings, *both, *unclocked]
    warnings += _warnings(groups, submissions, rules, protocol, published is not None)
    warnings += guards.contention_warnings(
        trial
        for trial in _judged(groups, rules)
        # These are the same under any load, but for what a budget ends.
        if not (timing.in_turns or timing.kind is TimeKind.STEPS)
        or not trial.has_no_budget
    )
    theirs: tuple[str, ...] = ()
    if published is not None:
        submissions, times_SB, times_SV, theirs = published_field.join(
            published, submissions, times_SB, times_SV, rules, mode
        )
        warnings[:0] = published_field.differences(runs, rules, published)
    ratios_SB = judge(times_SB, times_SV, rules.base_of_held_out, rules.r_max, mode)
    is_official = mode is Mode.OFFICIAL
    integrate = profile.official_scores if is_official else profile.exact_scores
    return Result(
        rules=rules,
        ruleset=ruleset,
        mode=mode,
        submissions=submissions,
        workloads=rules.base_workloads,
        held_out=held_out,
        times=times_SB,
        held_out_times=times_SV,
        ratios=ratios_SB,
        scores=integrate(ratios_SB, rules.r_max),
        warnings=tuple(warnings),
        published=theirs,
        timing=timing,
        no_budget=published is None and _had_no_budget(groups, rules),
        studies=studies,
    )


def _had_no_budget(groups: Groups, rules: Rules) -> bool:
    """Whether no time could have ended any trial; false where there is none."""
    judged = _judged(groups, rules)
    return bool(judged) and all(trial.has_no_budget for trial in judged)


def _judged(groups: Groups, rules: Rules) -> list[Trial]:
    """Returns the trials of the rules' workloads."""
    known = rules.workloads
    return [t for (_, w), group in groups.items() if w in known for t in group]


def _studies_of(
    groups: Groups, rules: Rules, mode: Mode, timing: Timing
) -> dict[tuple[str, str], Studies]:
    """Returns the times of trials by submission and workload of the rules."""
    return {
        (submission, workload): time_to_target.workload_studies(
            trials, rules.goals[workload], mode, timing
        )
        for (submission, workload), trials in groups.items()
        if workload in rules.workloads
    }


def _times_of(
    submissions: Sequence[str],
    workloads: Sequence[str],
    studies: Mapping[tuple[str, str], Studies],
) -> FloatArray:
    """Returns the median of studies of each submission on each workload, [S, W]."""
    table = [
        [time_to_target.median_time(studies.get((s, w), ())) for w in workloads]
        for s in submissions
    ]
    return np.array(table).reshape(len(submissions), len(workloads))


def judge(
    times_SB: FloatArray,
    variant_SV: FloatArray,
    base_of_V: Sequence[int],
    r_max: float,
    mode: Mode,
) -> FloatArray:
    """Returns ratios to the best of the times that count, [..., S, B]."""
    counted_SB = time_to_target.counted_times(
        times_SB, variant_SV, base_of_V, r_max, mode
    )
    return profile.performance_ratios(counted_SB)


def group_trials(trials: Iterable[Trial]) -> tuple[Groups, list[str]]:
    """Groups trials; of a workload run in two frameworks, JAX alone is judged.

    Returns:
      The groups, and a warning for each submission and workload with two frameworks.
    """
    groups: Groups = defaultdict(list)
    for trial in trials:
        groups[trial.submission, trial.workload].append(trial)
    warnings = []
    for (submission, workload), group in groups.items():
        if len({trial.framework for trial in group}) > 1:
            group[:] = [trial for trial in group if trial.framework == "jax"]
            warnings.append(
                f"{submission} ran {workload} in JAX and in PyTorch; PyTorch is ignored"
            )
    return dict(groups), warnings


def _unclocked(groups: Groups, rules: Rules) -> list[str]:
    """Returns a warning per trial that would count, had its record a step time.

    Raises:
      UserError: not one such trial of a submission has a step time.
    """
    reached = [
        trial
        for (_, workload), trials in groups.items()
        if workload in rules.workloads
        for trial in trials
        if time_to_target.first_reached(trial, rules.goals[workload]) is not None
    ]
    clocked = {trial.submission for trial in reached if _has_step_time(trial)}
    for trial in reached:
        if trial.submission not in clocked:
            raise UserError(
                f"idealized time needs the step time in record.json, and no trial of "
                f"{trial.submission} has one; use --time submission or --time steps"
            )
    return [
        f"trial_{trial.trial} of study_{trial.study} of {trial.submission} on "
        f"{trial.workload} has no step time: counted as missed"
        for trial in reached
        if not _has_step_time(trial)
    ]


def _has_step_time(trial: Trial) -> bool:
    return time_to_target.step_seconds(trial) is not None


def _warnings(
    groups: Groups,
    submissions: Sequence[str],
    rules: Rules,
    protocol: Protocol,
    has_field: bool,
) -> Iterator[str]:
    """Yields what a reader should know before trusting the scores.

    Beside a published field, what none of these ran is not missed by all.
    """
    unknown = sorted({w for _, w in groups} - set(rules.workloads))
    if unknown:
        yield f"ignored, not in the rules {rules.name}: {', '.join(unknown)}"
    run_by_any = {w for _, w in groups}
    never = [w for w in rules.base_workloads if w not in run_by_any]
    if submissions and never:
        yield _never_run(never, rules, "yours" if has_field else "all")
    yield from guards.budget_warnings(_judged(groups, rules))
    yield from _surplus_warnings(groups, rules, protocol)
    for submission in submissions:
        mine = {
            workload: groups[submission, workload]
            for workload in rules.workloads
            if (submission, workload) in groups
        }
        missing = [w for w in rules.workloads if w not in mine and w not in never]
        if missing:
            yield f"{submission} has no run of {', '.join(missing)}: counted as missed"
        yield from _count_warnings(submission, mine, protocol)
        for workload, trials in mine.items():
            yield from _late_warnings(trials, rules.goals[workload])
            for trial in trials:
                yield from _trial_warnings(trial, rules, workload)


def _never_run(never: Sequence[str], rules: Rules, whose: str) -> str:
    """Says which workloads nobody ran, and which subset is free of them."""
    runner = "no submission" if whose == "all" else "no submission of yours"
    line = f"{runner} ran {', '.join(never)}: counted as missed by {whose}"
    part = rules.subset_of_exactly(w for w in rules.base_workloads if w not in never)
    if part is None:
        return line
    return f"{line}; to leave them out: --benchmark {shlex.quote(part)}"


def _count_warnings(
    submission: str, groups: dict[str, list[Trial]], protocol: Protocol
) -> Iterator[str]:
    """Yields where studies or trials are too few, alike cases together.

    Those too many are for `_surplus_warnings`.
    """
    few_studies: dict[int, list[str]] = defaultdict(list)
    for workload, trials in groups.items():
        trials_per_study = Counter(trial.study for trial in trials)
        if len(trials_per_study) < protocol.studies:
            few_studies[len(trials_per_study)].append(workload)
        few_trials: dict[int, list[str]] = defaultdict(list)
        for study, count in trials_per_study.items():
            if count < protocol.trials:
                few_trials[count].append(f"study_{study}")
        for count, studies in few_trials.items():
            yield (
                f"{', '.join(studies)} of {submission} on {workload} "
                f"{'has' if len(studies) == 1 else 'have'} "
                f"{count} of {protocol.trials} trials"
            )
    for count, workloads in few_studies.items():
        where = _places(workloads, list(groups))
        yield f"{submission} has {count} of {protocol.studies} studies on {where}"


def _surplus_warnings(
    groups: Groups, rules: Rules, protocol: Protocol
) -> Iterator[str]:
    """Yields a line if some ran more than asked for, and others not as many.

    A time is the median of its studies. More of them favour nobody if all have as many;
    else one time is surer than another, and of two studies one miss is a miss. And the
    fastest of more trials is faster.
    """
    studies: Ranges = defaultdict(dict)
    trials_per_study: Ranges = defaultdict(dict)
    for (submission, workload), trials in groups.items():
        if workload in rules.workloads:
            counts = Counter(trial.study for trial in trials)
            studies[workload][submission] = (len(counts), len(counts))
            ends = min(counts.values()), max(counts.values())
            trials_per_study[workload][submission] = ends
    yield from _uneven_warnings("studies", studies, protocol.studies)
    yield from _uneven_warnings("trials", trials_per_study, protocol.trials)


def _uneven_warnings(noun: str, numbers: Ranges, wanted: int) -> Iterator[str]:
    """Yields a line if numbers, by workload and submission, differ beyond `wanted`."""
    uneven = {
        workload: own
        for workload, own in numbers.items()
        if max(high for _, high in own.values())
        > max(wanted, min(low for low, _ in own.values()))
    }
    if not uneven:
        return
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for submission in sorted({name for own in uneven.values() for name in own}):
        ranges = [own[submission] for own in uneven.values() if submission in own]
        lows, highs = zip(*ranges, strict=True)
        found[min(lows), max(highs)].append(submission)
    parts = [
        f"{low if low == high else f'{low} to {high}'} ({', '.join(names)})"
        for (low, high), names in sorted(found.items())
    ]
    yield (
        f"numbers of {noun} differ on {_places(list(uneven), list(numbers))}, where "
        f"the rules ask for {wanted}: {', '.join(parts)}"
    )


def _places(some: list[str], every: list[str]) -> str:
    """Names `some` out of `every` workload, in few words."""
    rest = [workload for workload in every if workload not in some]
    if len(some) > 2 * len(rest) + 1:
        return "every workload" + (f" but {', '.join(rest)}" if rest else "")
    return ", ".join(some)


def _late_warnings(trials: Sequence[Trial], goal: Goal) -> Iterator[str]:
    """Yields how many of the trials of one submission and workload were too late."""
    late = [trial for trial in trials if _is_late(trial, goal)]
    if late:
        budget = time_to_target.budget_of(late[0], goal)
        yield (
            f"{_count_trials(len(late))} of {late[0].submission} on {late[0].workload} "
            f"reached the target after the budget of {budget:,.0f} s: counted as missed"
        )


def _count_trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def _is_late(trial: Trial, goal: Goal) -> bool:
    """Whether a trial reached the target, but not within the limit of the goal."""
    budget = time_to_target.budget_of(trial, goal)
    if not trial.times.size or trial.times[-1] <= budget:  # as most trials are
        return False
    unlimited = dataclasses.replace(goal, limit_sec=math.inf)
    return (
        time_to_target.first_reached(trial, goal) is None
        and time_to_target.first_reached(trial, unlimited) is not None
    )


def _trial_warnings(trial: Trial, rules: Rules, workload: str) -> Iterator[str]:
    goal = rules.goals[workload]
    name = f"trial_{trial.trial} of study_{trial.study} of {trial.submission}"
    if trial.status is not None and not trial.status.is_final:
        yield f"{name} on {workload} is not finished: {trial.status}"
    if trial.columns and goal.column not in trial.columns:
        yield f"{name} on {workload} has no column {goal.column}: counted as missed"
    elif (
        trial.status is Status.REACHED
        and time_to_target.first_reached(trial, goal) is None
        and not _is_late(trial, goal)
    ):
        yield f"{name} on {workload} reached its own target, but never {goal}"
