"""How sure a score is: bootstrap intervals, and what hangs on one workload or on r_max.

The bootstrap asks what the scores might have been, had every submission run again. Of
each submission on each workload it draws as many studies as there are, with
replacement, and within each drawn study as many trials as there are, again with
replacement; it judges the resample by the same rules as the runs themselves. Intervals
are percentiles (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters
8 and 13). Two submissions differ only where the interval of the difference of their
scores, both from the same resamples, leaves out 0; pairs are not corrected for their
number.

What to know of it:

- The workloads stay the same: an interval speaks of new runs, not of new workloads.
- Drawing trials suits trials whose hyperparameters are drawn anew in each study. A
  resampled study lacks its fastest trial in a third of the draws, hence intervals are
  wide and lean towards slower times. Where trial k has the same hyperparameters in
  every study, that is too wide, and `with_trials=False` draws studies alone, each with
  its trials as they are: the better of both for nested data (Davison and Hinkley 1997,
  "Bootstrap Methods and their Application", section 3.8).
- Either way, differences err on the safe side: equally fast submissions are called
  different in fewer than one case in twenty.
- A score is measured against the best of the field, which noise makes too good: in a
  noisy experiment all scores lie lower than those of noiseless times would, and so do
  their intervals. They are to be compared with each other. All this is measured by
  `tests/benchmarks/bootstrap_coverage.py`.
- With one study, only the spread of its trials is known. Where there is nothing to
  resample, as with one trial on a workload, or no run at all, the intervals of its
  submission are unknown, NaN.

Dimension key: R resamples (or values of r_max), S submissions, B base workloads, V
held-out variants, K studies, T trials of a study.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from algoperf.errors import UserError
from scoring import profile, score
from scoring.read import FloatArray
from scoring.score import SCORE_DIGITS, Result
from scoring.time_to_target import MISS, Mode, Studies

BoolArray = NDArray[np.bool_]

RESAMPLES = 1000
FEWEST_RESAMPLES = 100  # with fewer, a 95 % interval ends at the outermost draws
CONFIDENCE = 0.95
R_MAX_GRID = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """How sure the scores and ranks of a `Result` are; submissions in its order.

    Ranks start at 1 for the best score; equal scores share the better rank. Ends of
    intervals are NaN where they are unknown; `notes` says why.
    """

    resamples: int
    seed: int
    with_trials: bool  # trials were drawn too, not only studies
    confidence: float  # of each interval, 0.95
    score_low_S: FloatArray
    score_high_S: FloatArray
    rank_low_S: FloatArray  # the best rank of the interval
    rank_high_S: FloatArray
    difference_low_SS: FloatArray  # of the score of the row less that of the column
    difference_high_SS: FloatArray
    is_different_SS: BoolArray  # that interval is known and leaves out 0
    leave_one_out_scores_BS: FloatArray  # without base workload b; NaN if it is alone
    leave_one_out_ranks_BS: FloatArray
    r_max_R: FloatArray  # ascending, that of the rules among them
    r_max_scores_RS: FloatArray
    r_max_ranks_RS: FloatArray
    notes: tuple[str, ...]  # sentences on what the intervals cannot know


def estimate_uncertainty(
    result: Result,
    resamples: int = RESAMPLES,
    seed: int = 0,
    with_trials: bool = True,
    confidence: float = CONFIDENCE,
) -> Uncertainty:
    """Returns intervals and sensitivities; the same for the same arguments.

    Args:
      result: what to judge anew.
      resamples: how often.
      seed: of the draws.
      with_trials: draw trials within studies too, see the module.
      confidence: of the intervals.

    Raises:
      UserError: fewer than 100 resamples.
    """
    if resamples < FEWEST_RESAMPLES:
        raise UserError(
            f"an interval needs at least {FEWEST_RESAMPLES} resamples, not {resamples}"
        )
    scores_RS = bootstrap_scores(result, resamples, seed, with_trials)
    ranks_RS = ranks(scores_RS)
    is_unknown_S, notes = _unknown(result, with_trials)
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    score_low_S, score_high_S = np.quantile(scores_RS, ends, axis=0)
    rank_low_S, rank_high_S = _rank_ends(ranks_RS, ends)
    low_SS, high_SS = _difference_ends(scores_RS, ends)
    for end_S in (score_low_S, score_high_S, rank_low_S, rank_high_S):
        end_S[is_unknown_S] = np.nan
    for end_SS in (low_SS, high_SS):
        end_SS[is_unknown_S] = np.nan
        end_SS[:, is_unknown_S] = np.nan
    left_out_BS = leave_one_out(result)
    r_max_R = np.array(sorted({*R_MAX_GRID, result.rules.r_max}))
    r_max_scores_RS = r_max_scores(result, r_max_R)
    return Uncertainty(
        resamples=resamples,
        seed=seed,
        with_trials=with_trials,
        confidence=confidence,
        score_low_S=score_low_S,
        score_high_S=score_high_S,
        rank_low_S=rank_low_S,
        rank_high_S=rank_high_S,
        difference_low_SS=low_SS,
        difference_high_SS=high_SS,
        is_different_SS=(low_SS > 0) | (high_SS < 0),
        leave_one_out_scores_BS=left_out_BS,
        leave_one_out_ranks_BS=ranks(left_out_BS),
        r_max_R=r_max_R,
        r_max_scores_RS=r_max_scores_RS,
        r_max_ranks_RS=ranks(r_max_scores_RS),
        notes=tuple(notes),
    )


def ranks(scores_RS: FloatArray) -> FloatArray:
    """Returns 1 plus the number of better scores in the row, [R, S]; NaN for NaN."""
    rounded_RS = np.round(scores_RS, SCORE_DIGITS)
    better_RS = np.stack(
        [(rounded_RS > own[:, None]).sum(axis=1) for own in rounded_RS.T], axis=1
    )
    return np.where(np.isnan(scores_RS), np.nan, 1.0 + better_RS)


def bootstrap_scores(
    result: Result, resamples: int, seed: int, with_trials: bool = True
) -> FloatArray:
    """Returns the scores of resampled runs, [R, S]."""
    rng = np.random.default_rng(seed)

    def draw(workloads: Sequence[str], times_SW: FloatArray) -> FloatArray:
        """Returns resampled times, [R, S, W]; one without studies stays as it is."""
        times_RSW = np.repeat(times_SW[None], resamples, axis=0)
        for s, submission in enumerate(result.submissions):
            for w, workload in enumerate(workloads):
                if studies := result.studies.get((submission, workload)):
                    times_RSW[:, s, w] = resample(studies, resamples, rng, with_trials)
        return times_RSW

    times_RSB = draw(result.workloads, result.times)
    times_RSV = draw(result.held_out, result.held_out_times)
    ratios_RSB = score.judge(
        times_RSB, times_RSV, result.held_out_base, result.rules.r_max, result.mode
    )
    return _areas(ratios_RSB, result.rules.r_max, result.mode).mean(axis=-1)


def resample(
    studies: Studies,
    resamples: int,
    rng: np.random.Generator,
    with_trials: bool = True,
) -> FloatArray:
    """Returns the time of resampled studies and trials on one workload, [R].

    There is at least one study, and each has at least one trial.

    Trials stand in the order in which they are preferred, so the trial that counts
    among n draws out of n is the smallest place drawn; that one is drawn directly: it
    is at least i with probability ((n - i) / n) ** n.
    """
    trials_K = np.array([times_T.size for times_T in studies])
    times_KT = np.full((len(studies), trials_K.max()), MISS)
    for k, times_T in enumerate(studies):
        times_KT[k, : times_T.size] = times_T
    study_RK = rng.integers(len(studies), size=(resamples, len(studies)))
    if not with_trials:
        return np.asarray(np.median(times_KT[study_RK, 0], axis=1))
    trials_RK = trials_K[study_RK]
    uniform_RK = 1.0 - rng.random(study_RK.shape)  # in (0, 1]
    place_RK = (trials_RK * (1.0 - uniform_RK ** (1.0 / trials_RK))).astype(int)
    return np.asarray(np.median(times_KT[study_RK, place_RK], axis=1))


def leave_one_out(result: Result) -> FloatArray:
    """Returns the scores without each base workload in turn, [B, S]."""
    areas_SB = _areas(result.ratios, result.rules.r_max, result.mode)
    count = areas_SB.shape[1]
    if count == 1:
        return np.full((1, areas_SB.shape[0]), np.nan)
    rest_BS = [np.delete(areas_SB, b, axis=1).mean(axis=1) for b in range(count)]
    return np.array(rest_BS)


def r_max_scores(result: Result, r_max_R: Iterable[float]) -> FloatArray:
    """Returns the scores under other values of r_max, [R, S], by the same integral.

    r_max ends the profile, and it bounds how slow a held-out variant may be.
    """
    rows = []
    for r_max in r_max_R:
        ratios_SB = score.judge(
            result.times,
            result.held_out_times,
            result.held_out_base,
            float(r_max),
            result.mode,
        )
        rows.append(_areas(ratios_SB, float(r_max), result.mode).mean(axis=-1))
    return np.array(rows)


def _areas(ratios_SB: FloatArray, r_max: float, mode: Mode) -> FloatArray:
    is_official = mode is Mode.OFFICIAL
    areas = profile.official_areas if is_official else profile.exact_areas
    return areas(ratios_SB, r_max)


def _rank_ends(
    ranks_RS: FloatArray, ends: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Returns the interval of ranks, whose ends are ranks that occurred."""
    low, high = ends
    return (
        np.quantile(ranks_RS, low, axis=0, method="lower"),
        np.quantile(ranks_RS, high, axis=0, method="higher"),
    )


def _difference_ends(
    scores_RS: FloatArray, ends: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Returns both ends of score differences, row less column, [S, S] each."""
    rows = [np.quantile(own[:, None] - scores_RS, ends, axis=0) for own in scores_RS.T]
    low_SS, high_SS = np.round(np.stack(rows, axis=1), SCORE_DIGITS)
    return low_SS, high_SS


def _unknown(result: Result, with_trials: bool) -> tuple[BoolArray, list[str]]:
    """Returns which submissions have nothing to resample somewhere, [S], and notes."""
    workloads = (*result.workloads, *result.held_out)
    times_SW = np.concatenate([result.times, result.held_out_times], axis=1)
    is_unknown_S = np.zeros(len(result.submissions), bool)
    single = []
    for s, submission in enumerate(result.submissions):
        cells = [result.studies.get((submission, w), ()) for w in workloads]
        units_W = np.array(
            [
                sum(times_T.size for times_T in cell) if with_trials else len(cell)
                for cell in cells
            ]
        )
        is_time_alone_W = (units_W == 0) & np.isfinite(times_SW[s])
        is_unknown_S[s] = ((units_W == 1) | is_time_alone_W).any() or not units_W.any()
        if not is_unknown_S[s] and any(len(cell) == 1 for cell in cells):
            single.append(submission)
    alone = [result.submissions[s] for s in np.flatnonzero(is_unknown_S)]
    notes = []
    if alone:
        unit = "trial" if with_trials else "study"
        others = "" if is_unknown_S.all() else "; others take its times as certain"
        notes.append(
            f"No interval for {', '.join(alone)}: with one {unit} on a workload, a "
            f"time alone, or no run at all, there is nothing to resample{others}."
        )
    if single:
        notes.append(
            f"One study of {', '.join(single)} on some workload: the intervals know "
            "the spread of its trials, not that of studies."
        )
    return is_unknown_S, notes
