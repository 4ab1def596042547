"""Bootstrap and sensitivities, beside enumeration and beside scoring anew."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from scoring import uncertainty
from scoring.read import Runs, read_runs
from scoring.rules import load_rules
from scoring.score import Result, judge, score_runs
from scoring.time_to_target import Mode
from scoring.uncertainty import estimate_uncertainty

INF = np.inf
RULES = load_rules("mini_fast")
RESNET, LM = RULES.base_workloads


@pytest.fixture
def make_result(make_trial):
    """Judges {submission: {workload: [[trial times of a study]]}}; None is a miss."""

    def make(table, rules=RULES, mode="documented") -> Result:
        trials = []
        for submission, workloads in table.items():
            for workload, studies in workloads.items():
                goal = rules.goals[workload]
                for (k, study), t in (
                    (pair, t)
                    for pair in enumerate(studies)
                    for t in range(len(pair[1]))
                ):
                    step = -1 if goal.direction == "minimize" else 1
                    value = goal.target - step if study[t] is None else goal.target
                    trials.append(
                        make_trial(
                            submission,
                            workload,
                            study=k,
                            trial=t + 1,
                            times=[study[t] or 1.0],
                            metric=goal.metric,
                            values=[value],
                        )
                    )
        return score_runs(Runs(trials=tuple(trials), skipped=()), rules, mode=mode)

    return make


def _enumerate(studies, with_trials):
    """Returns the exact distribution of the time of all resamples, {time: share}."""
    if not with_trials:
        studies = [[min(study)] for study in studies]
    outcomes: Counter[float] = Counter()
    count = len(studies)
    for picked in itertools.product(range(count), repeat=count):
        draws = [
            list(itertools.product(studies[k], repeat=len(studies[k]))) for k in picked
        ]
        for trials in itertools.product(*draws):
            share = 1 / count**count / np.prod([len(d) for d in draws])
            outcomes[float(np.median([min(t) for t in trials]))] += share
    return outcomes


@pytest.mark.parametrize(
    "studies",
    [
        [[1.0, 2.0, 3.0]],
        [[1.0, 2.0], [1.5, 4.0]],
        [[1.0], [2.0], [4.0]],
        [[1.0, INF], [2.0, INF], [3.0]],
    ],
)
@pytest.mark.parametrize("with_trials", [True, False])
def test_resamples_are_distributed_as_all_of_them(studies, with_trials):
    draws = 20_000
    rng = np.random.default_rng(0)
    arrays = tuple(map(np.array, studies))
    found = uncertainty.resample(arrays, draws, rng, with_trials)
    times, counts = np.unique(found, return_counts=True)
    exact = _enumerate(studies, with_trials)
    assert set(times.tolist()) <= set(exact)
    for outcome, share in exact.items():
        rate = counts[times == outcome].sum() / draws
        assert rate == pytest.approx(share, abs=4 * np.sqrt(share / draws))


def test_a_time_without_trials_stays_as_it_is(make_result):
    result = make_result({"a": {RESNET: NEAR}, "b": {RESNET: FAR}})
    studies = {key: value for key, value in result.studies.items() if key[0] == "a"}
    published = dataclasses.replace(result, studies=studies)
    found = estimate_uncertainty(published)
    np.testing.assert_array_equal(np.isnan(found.score_low_S), [False, True])
    scores = uncertainty.bootstrap_scores(published, 100, 0)
    assert (scores[:, 1] > 0).all()  # the other workload was missed by both
    assert found.notes[0].startswith("No interval for b:")


times = st.one_of(st.floats(1, 100), st.just(INF))


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.lists(times, min_size=4, max_size=4), min_size=3, max_size=3),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from(Mode),
)
def test_judging_resamples_together_is_judging_each(tables, mode):
    times_RSB = np.array(tables)
    base_RSB, variant_RSV = times_RSB[..., :2], times_RSB[..., 2:]
    together = judge(base_RSB, variant_RSV, [0, 1], 4.0, mode)
    each = [
        judge(base, variant, [0, 1], 4.0, mode)
        for base, variant in zip(base_RSB, variant_RSV, strict=True)
    ]
    np.testing.assert_array_equal(together, each)


NEAR = [[10.0, 14.0], [11.0, 12.0], [13.0, 12.5]]
FAR = [[3 * t for t in study] for study in NEAR]


def test_what_is_far_apart_differs_and_what_is_near_does_not(make_result):
    result = make_result(
        {
            "a": {RESNET: NEAR, LM: NEAR},
            "b": {RESNET: NEAR[::-1], LM: NEAR},
            "c": {RESNET: FAR, LM: FAR},
        }
    )
    found = estimate_uncertainty(result)
    expected = [[False, False, True], [False, False, True], [True, True, False]]
    np.testing.assert_array_equal(found.is_different_SS, expected)
    np.testing.assert_array_equal(found.rank_low_S, [1, 1, 3])
    np.testing.assert_array_equal(found.rank_high_S, [2, 2, 3])
    assert (found.score_low_S <= result.scores).all()
    assert (result.scores <= found.score_high_S).all()
    assert found.notes == ()
    np.testing.assert_allclose(found.difference_low_SS, -found.difference_high_SS.T)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(make_result):
    result = make_result({"a": {RESNET: NEAR}, "b": {RESNET: NEAR[::-1]}})
    one, again = (estimate_uncertainty(result, seed=1) for _ in range(2))
    other = estimate_uncertainty(result, seed=2)
    np.testing.assert_array_equal(one.score_low_S, again.score_low_S)
    np.testing.assert_array_equal(one.difference_high_SS, again.difference_high_SS)
    draws = [uncertainty.bootstrap_scores(result, 100, seed) for seed in (1, 2)]
    assert not np.array_equal(*draws)
    assert other.seed == 2


def test_misses_take_part(make_result):
    rare = [[None, 10.0], [None, None], [12.0, None]]
    result = make_result({"a": {RESNET: rare, LM: NEAR}, "b": {RESNET: NEAR, LM: NEAR}})
    found = estimate_uncertainty(result)
    assert found.score_low_S[0] < 0.55 < 0.9 < found.score_high_S[0]


def test_one_trial_has_no_interval_and_is_different_from_nobody(make_result):
    result = make_result(
        {
            "a": {RESNET: [[1.0]], LM: NEAR},
            "b": {RESNET: NEAR, LM: NEAR},
            "c": {RESNET: FAR, LM: FAR},
        }
    )
    found = estimate_uncertainty(result)
    for ends in (found.score_low_S, found.score_high_S, found.rank_low_S):
        np.testing.assert_array_equal(np.isnan(ends), [True, False, False])
    assert not found.is_different_SS[0].any()
    assert not found.is_different_SS[:, 0].any()
    assert found.is_different_SS[1, 2]
    assert np.isnan(found.difference_low_SS[0]).all()
    (note,) = found.notes
    assert note.startswith("No interval for a:")


def test_one_study_is_noted(make_result):
    found = estimate_uncertainty(make_result({"a": {RESNET: NEAR[:1], LM: NEAR}}))
    assert np.isfinite(found.score_low_S).all()
    assert found.notes[0].startswith("One study of a on some workload")


def test_without_trials_one_study_is_nothing_to_resample(make_result):
    result = make_result({"a": {RESNET: NEAR[:1], LM: NEAR}, "b": {LM: NEAR}})
    found = estimate_uncertainty(result, with_trials=False)
    np.testing.assert_array_equal(np.isnan(found.score_low_S), [True, False])
    (note,) = found.notes
    assert note.startswith("No interval for a: with one study on a workload")


def test_trials_widen_the_intervals(make_result):
    table = {"a": {RESNET: NEAR, LM: NEAR}, "b": {RESNET: NEAR[::-1], LM: FAR}}
    both = estimate_uncertainty(make_result(table))
    alone = estimate_uncertainty(make_result(table), with_trials=False)
    assert (both.with_trials, alone.with_trials) == (True, False)
    wide = both.score_high_S - both.score_low_S
    assert (wide >= alone.score_high_S - alone.score_low_S).all()
    assert wide.sum() > (alone.score_high_S - alone.score_low_S).sum()


def test_too_few_resamples(make_result):
    with pytest.raises(UserError, match="at least 100 resamples, not 99"):
        estimate_uncertainty(make_result({"a": {RESNET: NEAR}}), resamples=99)


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.3, 0.3 + 1e-15, 1.0]), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_ranks_are_one_more_than_how_many_are_better(rows):
    found = uncertainty.ranks(np.array(rows))
    for row, mine in zip(rows, found, strict=True):
        for s, score in enumerate(row):
            assert mine[s] == 1 + sum(other > score + 1e-12 for other in row)


@pytest.fixture
def random_runs(make_result):
    """Judges random runs of v0.5, by which held-out variants strike times out."""

    def make(rules, mode):
        rng = np.random.default_rng(5)
        table = {}
        for submission in "abcd":
            speed = rng.uniform(1, 3)
            table[submission] = {
                workload: [
                    [None if rng.random() < 0.4 else float(t) for t in study]
                    for study in speed * rng.uniform(1, 3, (3, 2))
                ]
                for workload in load_rules("v0.5").workloads
            }
        return make_result(table, rules, mode)

    return make


@pytest.mark.parametrize("mode", Mode)
def test_leaving_a_workload_out_is_scoring_without_it(random_runs, mode):
    rules = load_rules("v0.5")
    found = estimate_uncertainty(random_runs(rules, mode), resamples=100)
    for b, left_out in enumerate(rules.base_workloads):
        rest = dataclasses.replace(
            rules,
            base_workloads=tuple(w for w in rules.base_workloads if w != left_out),
            held_out={v: w for v, w in rules.held_out.items() if w != left_out},
        )
        anew = random_runs(rest, mode)
        np.testing.assert_allclose(found.leave_one_out_scores_BS[b], anew.scores)
        for rank, s in enumerate(anew.ranking):
            assert found.leave_one_out_ranks_BS[b, s] <= rank + 1
    assert len(np.unique(found.leave_one_out_scores_BS)) > 8  # not all alike


def test_without_its_only_workload_nothing_is_left(make_result):
    rules = dataclasses.replace(RULES, base_workloads=(RESNET,))
    found = estimate_uncertainty(make_result({"a": {RESNET: NEAR}}, rules))
    assert np.isnan(found.leave_one_out_scores_BS).all()
    assert np.isnan(found.leave_one_out_ranks_BS).all()


@pytest.mark.parametrize("mode", Mode)
def test_another_r_max_is_scoring_by_it(random_runs, mode):
    rules = dataclasses.replace(load_rules("v0.5"), r_max=5.0)
    result = random_runs(rules, mode)
    found = estimate_uncertainty(result, resamples=100)
    assert 5.0 in found.r_max_R
    assert (np.diff(found.r_max_R) > 0).all()
    for r, r_max in enumerate(found.r_max_R.tolist()):
        anew = random_runs(dataclasses.replace(rules, r_max=r_max), mode)
        np.testing.assert_allclose(found.r_max_scores_RS[r], anew.scores, atol=1e-12)
    own = found.r_max_scores_RS[found.r_max_R == 5.0][0]
    np.testing.assert_allclose(own, result.scores)


@pytest.mark.parametrize("mode", Mode)
def test_archive_of_2024(archive, mode):
    result = score_runs(read_runs([archive]), load_rules("v0.5"), mode=mode)
    found = estimate_uncertainty(result)
    assert found.notes == ()
    assert (found.score_low_S <= result.scores).all()
    assert (result.scores <= found.score_high_S).all()
    best, worst = result.ranking[0], result.ranking[-1]
    assert found.is_different_SS[best, worst]
    assert found.r_max_ranks_RS[found.r_max_R == 4, best] == 1


def test_without_a_run_an_interval_is_unknown(study_runs, make_trial):
    runs = study_runs({"a": 1, "b": 2})
    stray = make_trial("c", "mnist", times=[1.0], values=[0.5])
    result = score_runs(Runs(trials=(*runs.trials, stray), skipped=()), RULES)
    found = estimate_uncertainty(result, resamples=100)
    c = result.submissions.index("c")
    assert np.isnan([found.score_low_S[c], found.rank_high_S[c]]).all()
    assert np.isfinite(np.delete(found.score_low_S, c)).all()
    assert not found.is_different_SS[c].any()
    assert "No interval for c: " in found.notes[0]
