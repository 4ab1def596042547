"""Judging runs: results, warnings, subsets, and the published scores of 2024."""

import dataclasses
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from algoperf.errors import UserError
from scoring.profile import exact_areas, official_areas
from scoring.read import Runs, read_runs
from scoring.rules import FOLDER, Rules, load_rules
from scoring.score import judge, score_runs
from scoring.time_to_target import Mode, TimeKind, Timing

# Scores of the external ruleset as published with the competition.
PUBLISHED = {
    "shampoo_submission": 0.7784,
    "schedule_free_adamw": 0.7077,
    "generalized_adam": 0.6383,
    "cyclic_lr": 0.6301,
    "nadamp": 0.5909,
    "baseline": 0.5707,
    "amos": 0.4918,
    "caspr_adaptive": 0.4722,
    "lawa_queue": 0.3699,
    "lawa_ema": 0.3384,
    "schedule_free_prodigy": 0.0,
}


FAST = {"imagenet_resnet_mini": "accuracy", "finewebedu_lm_mini": "ppl"}  # mini_fast


def _score(runs: Runs, **kwargs):
    return score_runs(runs, load_rules("mini_fast"), **kwargs)


def test_by_hand(mini_runs):
    result = _score(mini_runs({"b": (20, 10), "a": (10, 30), "c": (None, 50)}))
    assert result.submissions == ("a", "b", "c")
    np.testing.assert_array_equal(result.times, [[10, 30], [20, 10], [np.inf, 50]])
    np.testing.assert_array_equal(result.ratios, [[1, 3], [2, 1], [np.inf, 5]])
    np.testing.assert_allclose(result.scores, [2 / 3, 2.5 / 3, 0])
    assert [result.submissions[s] for s in result.ranking] == ["b", "a", "c"]
    np.testing.assert_array_equal(
        result.counts, [[True, True], [True, True], [False, False]]
    )
    assert result.warnings == ()


def test_official_mode_samples_the_profile(mini_runs):
    result = _score(mini_runs({"a": (10, 30), "b": (10.1, 30)}), mode="official")
    taus, rho = result.profile()
    assert len(taus) == 100
    assert rho.shape == (2, 100)
    np.testing.assert_allclose(result.scores, [1, 1 - 0.25 / 99])


def test_order_of_trials_does_not_matter(mini_runs):
    runs = mini_runs({"a": (10, 30), "b": (20, 10)})
    turned = dataclasses.replace(runs, trials=runs.trials[::-1])
    np.testing.assert_array_equal(_score(runs).scores, _score(turned).scores)


def test_unknown_ruleset_and_mode(mini_runs):
    runs = mini_runs({"a": (1, 1)})
    with pytest.raises(UserError, match="unknown ruleset 'both'"):
        _score(runs, ruleset="both")
    with pytest.raises(UserError, match=r"unknown scoring mode 'offical'; .*official"):
        _score(runs, mode="offical")


def test_part_of_a_benchmark_scores_with_a_warning(make_trial):
    trial = make_trial(
        "a", "ogbg", times=[5], metric="mean_average_precision", values=[1]
    )
    variant = make_trial(
        "a", "ogbg_model_size", times=[5], metric="mean_average_precision", values=[1]
    )
    rules = load_rules("v0.5")
    result = score_runs(Runs(trials=(trial, variant), skipped=()), rules)
    assert result.scores[0] == pytest.approx(1 / 8)
    assert any("no submission ran criteo1tb, fastmri" in w for w in result.warnings)
    without = score_runs(Runs(trials=(trial,), skipped=()), rules)
    assert without.scores[0] == 0
    assert without.times[0, rules.base_workloads.index("ogbg")] == 5


def test_a_subset_that_is_just_what_was_run_is_named(make_trial):
    rules = load_rules("v0.6")
    trials = [
        make_trial(submission, workload, times=[5], values=[1])
        for submission in "ab"
        for workload in load_rules("v0.6_2025").base_workloads
        if (submission, workload) != ("b", "wmt")
    ]
    warnings = score_runs(Runs(trials=tuple(trials), skipped=()), rules).warnings
    assert (
        "no submission ran finewebedu_lm: counted as missed by all; to leave them out: "
        "--benchmark v0.6_2025"
    ) in warnings
    assert "b has no run of wmt: counted as missed" in warnings
    assert not any(w.startswith("a has no run") for w in warnings)


def test_the_subset_that_a_warning_names_can_be_loaded(make_trial, tmp_path):
    shipped = json.loads((FOLDER / "mini.json").read_text())
    workload = shipped["base_workloads"][0]
    path = tmp_path / "my rules.json"
    # Under the name of shipped rules, which have no such subset.
    path.write_text(json.dumps({**shipped, "subsets": {"small": [workload]}}))
    runs = Runs(trials=(make_trial("a", workload, times=[5], values=[1]),), skipped=())
    warning = next(w for w in score_runs(runs, load_rules(path)).warnings if "--" in w)
    *_, flag, part = shlex.split(warning)
    assert flag == "--benchmark"
    assert load_rules(part).base_workloads == (workload,)


def test_unknown_workloads_are_ignored_with_a_warning(mini_runs, make_trial):
    runs = mini_runs({"a": (1, 1)})
    extra = make_trial("a", "mnist", times=[1], values=[1])
    result = _score(dataclasses.replace(runs, trials=(*runs.trials, extra)))
    assert result.scores[0] == 1
    assert result.warnings == ("ignored, not in the rules mini_fast: mnist",)


def _three_studies_of_five() -> Rules:
    return dataclasses.replace(
        load_rules("mini_fast"), protocols=load_rules("v0.5").protocols
    )


def test_too_few_trials_and_studies_are_warned_of(make_trial):
    trials = [
        make_trial("x", study=study, trial=trial, times=[1], values=[1])
        for study, count in ((0, 5), (2, 3))
        for trial in range(1, count + 1)
    ]
    result = score_runs(
        Runs(trials=tuple(trials), skipped=()), _three_studies_of_five()
    )
    warnings = "\n".join(result.warnings)
    assert "study_2 of x on imagenet_resnet_mini has 3 of 5 trials" in warnings
    assert "study_0" not in warnings
    assert "x has 2 of 3 studies on imagenet_resnet_mini" in warnings


def test_self_tuning_expects_one_trial_per_study(make_trial):
    trials = [
        make_trial("x", study=study, times=[study + 1], values=[1])
        for study in range(3)
    ]
    runs = Runs(trials=tuple(trials), skipped=())
    result = score_runs(runs, _three_studies_of_five(), ruleset="self")
    assert result.times[0, 0] == 2
    assert not any("trials" in w or "studies" in w for w in result.warnings)
    external = score_runs(runs, _three_studies_of_five())
    assert any("have 1 of 5 trials" in w for w in external.warnings)


@pytest.mark.parametrize("noun", ["studies", "trials"])
def test_more_than_asked_for_is_told_of_where_not_all_have_as_many(make_trial, noun):
    counts = {"a": (3, 1), "b": (3, 1), "c": (3, 1)}

    def warnings():
        trials = [
            make_trial(
                name,
                workload,
                **{"studies": {"study": k}, "trials": {"trial": k + 1}}[noun],
                times=[1],
                metric=metric,
                values=[1],
            )
            for name, of_name in counts.items()
            for (workload, metric), count in zip(FAST.items(), of_name, strict=True)
            for k in range(count)
        ]
        return _score(Runs(trials=tuple(trials), skipped=())).warnings

    assert warnings() == ()  # by all alike
    counts["b"] = (2, 1)
    words = f"numbers of {noun} differ on"
    assert warnings() == (
        f"{words} imagenet_resnet_mini, where the rules ask for 1: 2 (b), 3 (a, c)",
    )
    counts["c"] = (3, 3)
    assert warnings() == (
        f"{words} every workload, where the rules ask for 1: 1 to 2 (b), 1 to 3 (a), "
        "3 (c)",
    )


def test_studies_with_unlike_numbers_of_trials_are_told_of(make_trial):
    """The fastest of more trials is faster, whoever else has as many."""
    trials = [
        make_trial(name, study=study, trial=k + 1, times=[1], values=[1])
        for name in "ab"
        for study, count in enumerate((5, 1, 1))
        for k in range(count)
    ]
    (words,) = (
        warning
        for warning in _score(Runs(trials=tuple(trials), skipped=())).warnings
        if "trials" in warning
    )
    assert words.startswith("numbers of trials differ on ")
    assert words.endswith("where the rules ask for 1: 1 to 5 (a, b)")


@pytest.mark.parametrize("status", ["running", "preempted"])
def test_unfinished_trials_are_warned_of(make_trial, status):
    trial = make_trial(times=[1], values=[0.1], record={"status": status})
    warnings = _score(Runs(trials=(trial,), skipped=())).warnings
    assert any(w.endswith(f"is not finished: {status}") for w in warnings)


@pytest.mark.parametrize("status", ["failed", "diverged", "budget"])
def test_status_does_not_undo_a_target_that_was_reached(make_trial, status):
    reached = make_trial(times=[1, 2], values=[0.9, np.nan], record={"status": status})
    missed = make_trial(
        "b", times=[1, 2], values=[0.1, np.nan], record={"status": status}
    )
    never = make_trial("c", record={"status": status})
    result = _score(Runs(trials=(reached, missed, never), skipped=()))
    np.testing.assert_array_equal(result.times[:, 0], [1, np.inf, np.inf])


def test_record_that_reached_another_target_is_warned_of(make_trial):
    trial = make_trial(times=[1], values=[0.5], record={"status": "reached"})
    warnings = _score(Runs(trials=(trial,), skipped=())).warnings
    goal = load_rules("mini_fast").goals["imagenet_resnet_mini"]
    says = f"reached its own target, but never {goal}"
    assert any(says in warning for warning in warnings)


@pytest.mark.parametrize(
    ("ruleset", "record", "budgets"),
    [
        ("external", None, 1.0),
        ("self", None, 1.5),
        ("external", {"status": "reached", "budget_ratio": 2.0}, 2.0),
    ],
)
@pytest.mark.parametrize(("after", "counts"), [(0.0, True), (0.1, False)])
def test_a_target_after_the_budget_is_missed(
    make_trial, ruleset, record, budgets, after, counts
):
    rules = load_rules("mini_fast")
    budget = rules.goals["imagenet_resnet_mini"].budget_sec
    seconds = budgets * budget + after
    trial = make_trial(times=[1.0, seconds], values=[0.0, 1.0], record=record)
    runs = Runs(trials=(trial,), skipped=())
    result = score_runs(runs, rules, ruleset)
    assert result.times[0, 0] == (seconds if counts else np.inf)
    late = "1 trial of adamw on imagenet_resnet_mini reached the target after the"
    assert any(late in warning for warning in result.warnings) != counts
    assert not any("its own target" in warning for warning in result.warnings)
    official = score_runs(runs, rules, ruleset, mode="official")
    assert official.times[0, 0] == seconds  # the official code does not look


def test_a_run_that_knew_its_budget_is_believed(make_trial):
    rules = load_rules("mini_fast")
    budget = 2 * rules.goals["imagenet_resnet_mini"].budget_sec
    record = {"status": "reached", "budget_sec": budget}
    trial = make_trial(times=[budget + 0.1], values=[1.0], record=record)
    result = score_runs(Runs(trials=(trial,), skipped=()), rules, "external")
    assert result.times[0, 0] == budget + 0.1


@pytest.mark.parametrize("kind", TimeKind)
@pytest.mark.parametrize("ruleset", ["external", "self"])
def test_a_run_without_a_budget_is_never_late(make_trial, kind, ruleset):
    record = {**_record(3.0), "budget_sec": None, "budget_ratio": 1.0}
    trial = make_trial(times=[0.0, 1e6], values=[0.0, 1.0], record=record)
    runs = Runs(trials=(trial,), skipped=())
    result = _score(runs, ruleset=ruleset, timing=Timing(kind=kind))
    assert result.times[0, 0] == {"submission": 1e6, "idealized": 3, "steps": 1}[kind]
    assert result.no_budget
    assert not any("budget" in warning for warning in result.warnings)
    # What an official log leaves open, the rules say.
    late = dataclasses.replace(trial, record=None)
    mixed = _score(dataclasses.replace(runs, trials=(trial, late)))
    assert not mixed.no_budget
    assert any("1 trial of adamw on" in w and "budget" in w for w in mixed.warnings)
    assert not _score(Runs(trials=(), skipped=())).no_budget


def test_missing_metric_is_a_miss_with_a_warning(make_trial):
    trial = make_trial(times=[1], metric="wer", values=[0.0])
    result = _score(Runs(trials=(trial,), skipped=()))
    assert np.isinf(result.times[0, 0])
    assert any("has no column validation/accuracy" in w for w in result.warnings)


def test_two_frameworks_of_one_workload_are_not_pooled(make_trial):
    jax = make_trial(times=[9], values=[1])
    pytorch = make_trial(framework="pytorch", times=[1], values=[1])
    result = _score(Runs(trials=(jax, pytorch), skipped=()))
    assert result.times[0, 0] == 9
    assert any("in JAX and in PyTorch" in w for w in result.warnings)


def test_official_folder_on_disk(tmp_path, write_trial):
    for study, hit in enumerate((30.0, 10.0, 20.0)):
        for workload, metric in (("ogbg", "mean_average_precision"),):
            for name in (f"{workload}_pytorch", f"{workload}_model_size_pytorch"):
                write_trial(
                    tmp_path,
                    "theirs",
                    name,
                    study=study,
                    times=[1, hit],
                    metric=metric,
                    values=[0.1, 0.5],
                )
    result = score_runs(read_runs([tmp_path]), load_rules("v0.5"), mode="official")
    assert result.times[0, result.workloads.index("ogbg")] == 20
    assert result.scores[0] == pytest.approx(1 / 8)


IDEALIZED = Timing(kind=TimeKind.IDEALIZED)


def _record(seconds):
    return {"status": "reached", "step_time": {"seconds": seconds}}


def test_idealized_time_ranks_by_steps_and_step_time(make_trial):
    # Step 1 each; b's machine was busy, its steps are faster.
    trials = (
        make_trial("a", times=[0, 10], values=[0.1, 0.9], record=_record(2.0)),
        make_trial("b", times=[0, 30], values=[0.1, 0.9], record=_record(1.0)),
    )
    runs = Runs(trials=trials, skipped=())
    np.testing.assert_array_equal(_score(runs).times[:, 0], [10, 30])
    result = _score(runs, timing=IDEALIZED)
    np.testing.assert_array_equal(result.times[:, 0], [2, 1])
    assert result.timing is IDEALIZED
    steps = _score(runs, timing=Timing(kind=TimeKind.STEPS))
    np.testing.assert_array_equal(steps.times[:, 0], [1, 1])


def test_idealized_time_needs_records(mini_runs):
    runs = mini_runs({"a": (10, 10)})
    with pytest.raises(UserError, match="no trial of a has one; use --time"):
        _score(runs, timing=IDEALIZED)


def test_one_trial_without_a_step_time_is_a_miss_with_a_warning(make_trial):
    trials = (
        make_trial(times=[1], values=[0.9], record=_record(None)),
        make_trial(trial=2, times=[9], values=[0.9], record=_record(1.0)),
        make_trial(trial=3, times=[9], values=[0.1], record=_record(None)),
    )
    result = _score(Runs(trials=trials, skipped=()), timing=IDEALIZED)
    words = [w for w in result.warnings if "has no step time: counted as missed" in w]
    assert len(words) == 1
    assert words[0].startswith("trial_1 of study_0 of adamw")


def test_a_submission_that_missed_everything_needs_no_step_time(make_trial):
    trials = (
        make_trial("a", times=[1], values=[0.1], record={"status": "failed"}),
        make_trial("b", times=[1], values=[0.9], record=_record(1.0)),
    )
    result = _score(Runs(trials=trials, skipped=()), timing=IDEALIZED)
    np.testing.assert_array_equal(result.times[:, 0], [np.inf, 0])


def test_interpolated_times_are_judged(make_trial):
    trial = make_trial(times=[0, 10], values=[0.0, 1.0])
    target = load_rules("mini_fast").goals["imagenet_resnet_mini"].target
    result = _score(Runs(trials=(trial,), skipped=()), timing=Timing(interpolate=True))
    assert result.times[0, 0] == pytest.approx(10 * target)


def test_result_keeps_the_studies(make_trial):
    trials = [
        make_trial(study=study, trial=trial, times=[time], values=[0.9])
        for study, trial, time in ((0, 1, 5), (0, 2, 4), (1, 1, 8))
    ]
    studies = _score(Runs(trials=tuple(trials), skipped=())).studies
    ((key, (first, second)),) = studies.items()
    assert key == ("adamw", "imagenet_resnet_mini")
    np.testing.assert_array_equal(first, [4, 5])
    np.testing.assert_array_equal(second, [8])


# Two base workloads, each with a held-out variant.
tables = arrays(
    float, (4, 4), elements=st.one_of(st.floats(1, 30), st.just(float("inf")))
)


def _judged_scores(times_SW, mode):
    ratios_SB = judge(times_SW[:, :2], times_SW[:, 2:], [0, 1], 4.0, mode)
    areas = official_areas if mode is Mode.OFFICIAL else exact_areas
    return areas(ratios_SB, 4.0).mean(axis=1)


@given(tables, st.integers(0, 3), st.integers(0, 3), st.floats(1, 9), st.booleans())
@pytest.mark.parametrize("mode", Mode)
def test_a_worse_time_never_raises_the_own_score(mode, times, s, w, factor, is_miss):
    worse = times.copy()
    worse[s, w] = np.inf if is_miss else factor * times[s, w]
    before, after = _judged_scores(times, mode), _judged_scores(worse, mode)
    assert after[s] <= before[s] + 1e-12


@given(tables, st.permutations(range(4)))
@pytest.mark.parametrize("mode", Mode)
def test_judging_does_not_depend_on_the_order_of_submissions(mode, times, order):
    found = _judged_scores(times[order], mode)
    np.testing.assert_array_equal(found, _judged_scores(times, mode)[order])


@given(tables)
@pytest.mark.parametrize("mode", Mode)
def test_fastest_everywhere_scores_one_in_spite_of_variants(mode, times):
    best = np.minimum(times.min(axis=0), 1e3)
    scores = _judged_scores(np.vstack([times, best]), mode)
    assert scores[-1] == pytest.approx(1)


def test_scoring_does_not_import_jax():
    code = "import sys, scoring; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_published_scores_of_2024(archive):
    result = score_runs(read_runs([archive]), load_rules("v0.5"), mode="official")
    found = dict(zip(result.submissions, result.scores.round(4).tolist(), strict=True))
    assert found == PUBLISHED


def test_documented_mode_keeps_the_order_of_2024(archive):
    runs = read_runs([archive])
    assert len(runs.trials) == 3700
    assert len(runs.skipped) == 18  # trials outside any workload folder
    result = score_runs(runs, load_rules("v0.5"))
    names = [result.submissions[s] for s in result.ranking]
    assert names == list(PUBLISHED)
    official = np.array([PUBLISHED[name] for name in result.submissions])
    np.testing.assert_allclose(result.scores, official, atol=0.005)
