"""What must not be compared is refused, what ran beside other load is named."""

import dataclasses

import pytest

from algoperf import cli
from algoperf.errors import UserError
from scoring import guards
from scoring.read import Runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.step_times import with_step_times
from scoring.time_to_target import TimeKind, Timing

RULES = load_rules("mini_fast")
FACTS = {
    "schema_version": 1,
    "status": "reached",
    "host": {"cpu": "EPYC", "cores": 2, "memory_gib": 23.5},
    "devices": {"platform": "cpu", "device_kind": "cpu", "device_count": 1},
    "versions": {"algoperf": "0.1", "jax": "0.10", "jaxlib": "0.10", "numpy": "2.4"},
    "git_revision": "c3b3a5c5ac08252d614245383dcc96f9ba452d40",
    "target": {"metric": "accuracy", "direction": "maximize", "validation": 0.862},
}


def _runs(make_trial, *records, workload="imagenet_resnet_mini"):
    trials = [
        make_trial(f"s{number}", workload, times=[1], values=[1], record=record)
        for number, record in enumerate(records)
    ]
    return Runs(trials=tuple(trials), skipped=())


def test_records_of_one_kind_are_let_through(make_trial):
    quiet = {**FACTS, "step_time": {"seconds": 1.0}, "start_time": "2026"}
    busy = {**FACTS, "step_time": {"seconds": 2.0}, "start_time": "2027"}
    other_memory = {**FACTS, "host": {**FACTS["host"], "memory_gib": 8.0}}
    other_numpy = {**FACTS, "versions": {**FACTS["versions"], "numpy": "2.0"}}
    runs = _runs(make_trial, quiet, busy, other_memory, other_numpy)
    assert guards.check_mixed(runs, RULES) == ()
    assert guards.check_mixed(_runs(make_trial, None, None), RULES) == ()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("devices", {"device_kind": "NVIDIA H100", "device_count": 8}, "hardware"),
        ("devices", {"device_kind": "cpu", "device_count": 2}, "hardware"),
        ("host", {"cpu": "Xeon", "cores": 2}, "hardware"),
        ("host", {"cpu": "EPYC", "cores": 4}, "hardware"),
        ("git_revision", FACTS["git_revision"] + "-dirty", "code"),
        ("versions", {**FACTS["versions"], "jax": "0.11"}, "code"),
        ("versions", {**FACTS["versions"], "flax": "0.12"}, "code"),
        ("target", {"metric": "accuracy", "validation": 0.8}, "target of imagenet"),
        ("schema_version", 2, "schema"),
        ("budget_sec", None, "budget"),
    ],
    ids=range(10),
)
def test_records_that_differ_are_refused_by_name(make_trial, key, value, message):
    runs = _runs(make_trial, FACTS, {**FACTS, key: value}, FACTS)
    with pytest.raises(UserError, match=f"records of different {message}") as caught:
        guards.check_mixed(runs, RULES)
    text = str(caught.value)
    assert "(s0, s2)" in text
    assert "(s1)" in text
    assert "--allow_mixed" in text
    assert "\n" not in text
    (warning,) = guards.check_mixed(runs, RULES, allow=True)
    assert warning in text


def test_a_trial_that_went_on_elsewhere_is_a_group_of_its_own(make_trial):
    on_a_gpu = {**FACTS, "devices": {"device_kind": "H100", "device_count": 1}}
    newer = {**FACTS, "versions": {**FACTS["versions"], "jax": "0.11"}}
    moved = {**FACTS, "earlier_environments": [on_a_gpu]}
    updated = {**newer, "earlier_environments": [FACTS, newer]}
    warnings = guards.check_mixed(
        _runs(make_trial, FACTS, moved, updated, newer), RULES, allow=True
    )
    assert len(warnings) == 2
    told = "1 x H100, EPYC, 2 cores, then 1 x cpu, EPYC, 2 cores (s1)"
    assert told in warnings[0]
    of_s2, of_s3 = (f"jaxlib 0.10, revision c3b3a5c5ac08 ({s})" for s in ("s2", "s3"))
    assert f"revision c3b3a5c5ac08, then algoperf 0.1, jax 0.11, {of_s2}" in warnings[1]
    assert f"; algoperf 0.1, jax 0.11, {of_s3}" in warnings[1]
    memory = {**FACTS, "host": {**FACTS["host"], "memory_gib": 8.0}}
    same = {**FACTS, "earlier_environments": [memory, {**FACTS, "placement": None}]}
    assert guards.check_mixed(_runs(make_trial, FACTS, same), RULES) == ()


def test_workloads_may_have_run_on_different_machines(mini_runs):
    resnet, lm = RULES.base_workloads
    trials = [
        dataclasses.replace(
            trial,
            record={
                **FACTS,
                "devices": {"device_kind": "H100" if trial.workload == lm else "cpu"},
                "target": {"metric": None, "validation": None},
            },
        )
        for trial in mini_runs({"a": (10, 10), "b": (20, 20)}).trials
    ]
    (warning,) = guards.check_mixed(Runs(trials=tuple(trials), skipped=()), RULES)
    assert warning.startswith("workloads ran with different hardware: ")
    assert f"1 x H100, EPYC, 2 cores ({lm})" in warning
    assert f"1 x cpu, EPYC, 2 cores ({resnet})" in warning


def test_budgets_and_none_are_told_apart(make_trial):
    free = {**FACTS, "budget_sec": None}
    long, short = ({**FACTS, "budget_sec": seconds} for seconds in (60.0, 90.0))
    for alike in [(free, free), (long, short), (long, FACTS)]:
        assert guards.check_mixed(_runs(make_trial, *alike), RULES) == ()
    mixed = _runs(make_trial, long, free)
    (warning,) = guards.check_mixed(mixed, RULES, allow=True)
    told = "budget: a time budget (s0); no time budget (s1)"
    assert warning == f"records of different {told}"
    other = _runs(make_trial, free, workload="finewebedu_lm_mini")
    runs = Runs(trials=(mixed.trials[0], *other.trials), skipped=())
    (warning,) = guards.check_mixed(runs, RULES)
    assert warning.startswith("workloads ran with different budget: a time budget (ima")


def test_official_logs_are_a_group_of_their_own(make_trial):
    runs = _runs(make_trial, FACTS, None)
    warnings = guards.check_mixed(runs, RULES, allow=True)
    assert len(warnings) == 3  # hardware, code, schema
    assert all("unknown (s1)" in warning for warning in warnings)


def test_a_trial_without_a_target_of_its_own_goes_with_any(make_trial):
    untold = {**FACTS, "target": {"metric": "accuracy", "validation": None}}
    assert guards.check_mixed(_runs(make_trial, FACTS, untold), RULES) == ()


def _of_rulesets(make_trial, *names):
    return _runs(make_trial, *({**FACTS, "ruleset": name} for name in names))


@pytest.mark.parametrize(
    ("names", "asked", "line"),
    [
        (
            ["self", "self"],
            "external",
            "records of self tuning judged as external tuning: s0, s1; "
            "give --ruleset self, or give --allow_mixed",
        ),
        (
            ["external", None],
            "self",
            "records of external tuning judged as self tuning: s0; "
            "give --ruleset external, or give --allow_mixed",
        ),
        (
            ["external", "self"],
            "external",
            "records of self tuning judged as external tuning: s1; "
            "score them apart, or give --allow_mixed",
        ),
        (
            ["none\nknown"],
            "external",
            "records of none known tuning judged as external tuning: s0; "
            "score them apart, or give --allow_mixed",
        ),
    ],
)
def test_records_of_another_ruleset_are_refused(make_trial, names, asked, line):
    runs = _of_rulesets(make_trial, *names)
    with pytest.raises(UserError) as caught:
        guards.check_mixed(runs, RULES, asked)
    assert str(caught.value) == line
    warnings = guards.check_mixed(runs, RULES, asked, allow=True)
    assert warnings == (line.partition(";")[0],)


def test_records_of_the_ruleset_that_is_asked_for_are_let_through(make_trial):
    for name in ("external", "self"):
        runs = _of_rulesets(make_trial, name, None, "")
        assert guards.check_mixed(runs, RULES, name) == ()


# The second is in the benchmark that the subset is of.
@pytest.mark.parametrize("workload", ["mnist", "ogbg_mini"])
def test_workloads_that_are_not_scored_do_not_count(make_trial, workload):
    tuned = {**FACTS, "ruleset": "self"}
    strange = _runs(make_trial, tuned, None, workload=workload)
    subset = load_rules("mini_fast")
    assert guards.check_mixed(strange, subset) == ()
    assert with_step_times(strange, subset, {}) == strange
    free = make_trial(times=[1], values=[1], record=FACTS | {"budget_sec": None})
    runs = Runs(trials=(free, *strange.trials), skipped=())
    assert score_runs(runs, subset).no_budget


def _steps(windows, contended, slowest, seconds=1.0):
    return {
        **FACTS,
        "step_time": {
            "windows": windows,
            "contended_windows": contended,
            "slowest_window": slowest,
            "seconds": seconds,
        },
    }


def test_contention_bounds_the_time_that_was_added(make_trial):
    """Windows of equal steps: 6 calm ones, 4 that took up to 1.5 times as long."""
    (trial,) = _runs(make_trial, _steps(10, 4, 3.0, seconds=2.0)).trials
    assert guards.contention(trial) == pytest.approx(0.2)
    calm, worst = [2.0] * 6, [2.0, 2.4, 2.9, 3.0]
    assert sum(calm + worst) / (10 * 2.0) - 1 <= guards.contention(trial)


@pytest.mark.parametrize(
    "record",
    [
        None,
        FACTS,
        {**FACTS, "step_time": {"seconds": None, "windows": 0}},
        {**FACTS, "step_time": None},
        _steps(10, 0, 1.0),
        _steps(10, 1, 1.9),
        _steps(10, 10, None),
    ],
)
def test_steady_trials_and_those_that_say_nothing(make_trial, record):
    (trial,) = _runs(make_trial, record).trials
    assert not guards.is_contended(trial)


def test_contended_trials_are_warned_of(make_trial):
    runs = _runs(make_trial, _steps(10, 5, 2.0), _steps(10, 1, 1.5))
    warnings = score_runs(runs, RULES).warnings
    named = [warning for warning in warnings if "other load" in warning]
    assert named == [
        "other load may have slowed s0: study_0/imagenet_resnet_mini/trial_1 "
        "(up to 50 %)"
    ]


@pytest.mark.parametrize(
    ("kind", "in_turns", "free"),
    [("steps", False, 0), ("idealized", True, 0), ("idealized", False, 1)],
)
def test_times_without_other_load_need_no_warning_of_it(
    make_trial, kind, in_turns, free
):
    timing = Timing(kind=TimeKind(kind), in_turns=in_turns)
    for more, count in (({"budget_sec": None}, free), ({}, 1)):  # ends by the clock
        runs = _runs(make_trial, {**_steps(10, 5, 2.0), **more})
        warnings = score_runs(runs, RULES, timing=timing).warnings
        assert len([line for line in warnings if "other load" in line]) == count


def test_different_budgets_are_warned_of(make_trial):
    def warnings(*budgets):
        runs = _runs(make_trial, *({**FACTS, "budget_sec": b} for b in budgets))
        found = score_runs(runs, RULES).warnings
        return [warning for warning in found if "budgets" in warning]

    (line,) = warnings(60.0, 75.0)
    assert "imagenet_resnet_mini 60 to 75 s" in line
    assert not warnings(60.0, 63.0)
    assert not warnings(None, 63.0)


def test_on_the_command_line(tmp_path, write_trial, capsys):
    write_trial(tmp_path, "a", **FACTS)
    other = {**FACTS, "devices": {"device_kind": "H100", "device_count": 1}}
    write_trial(tmp_path, "b", **other)
    assert cli.main(["score", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "algoperf: records of different hardware: 1 x H100, EPYC, 2 cores (b); "
        "1 x cpu, EPYC, 2 cores (a); score them apart, or give --allow_mixed\n"
    )
    assert cli.main(["score", str(tmp_path), "--allow_mixed"]) == 0
    assert "warning: records of different hardware" in capsys.readouterr().out


def test_a_longer_budget_is_no_silent_gift(tmp_path, write_trial, capsys):
    # The target was reached after the external budget, within that of self-tuning.
    goal = RULES.goals["imagenet_resnet_mini"]
    own = {**FACTS, "ruleset": "self", "budget_sec": 1.5 * goal.budget_sec}
    late = 1.2 * goal.budget_sec
    write_trial(tmp_path, "a", times=(1.0, late), **own)
    assert cli.main(["score", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "algoperf: records of self tuning judged as external tuning: a; "
        "give --ruleset self, or give --allow_mixed\n"
    )
    assert cli.main(["score", str(tmp_path), "--ruleset=self"]) == 0
    assert "judged as" not in capsys.readouterr().out
    assert cli.main(["score", str(tmp_path), "--allow_mixed"]) == 0
    assert "warning: records of self tuning judged" in capsys.readouterr().out
