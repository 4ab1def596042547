"""The main job: a good optimizer reaches the targets, and the score says so."""

import pytest

import scoring
from algoperf import cli, records, registry, trials
from algoperf.records import Status

pytestmark = pytest.mark.alone

MINI = registry.select_workloads(["all"], "mini")


def test_the_rules_have_the_targets_of_the_workloads():
    rules = scoring.load_rules("mini")
    assert set(rules.base_workloads) == {workload.name for workload in MINI}
    for workload in MINI:
        goal = rules.goals[workload.name]
        assert goal.metric == workload.target_metric_name
        assert goal.direction is workload.target_direction
        assert goal.target == workload.validation_target_value
        assert goal.budget_sec == workload.max_allowed_runtime_sec
    assert rules.protocol("self").budget_factor == trials.SELF_TUNING_BUDGET_FACTOR


@pytest.mark.parametrize("name", ["v0.5", "v0.6"])
def test_published_rules_have_the_targets_and_budgets_of_the_full_workloads(name):
    rules = scoring.load_rules(name)
    for base in rules.base_workloads:
        workload, goal = registry.find_workload(base, "full"), rules.goals[base]
        assert goal.metric == workload.target_metric_name
        assert goal.direction is workload.target_direction
        assert goal.target == workload.validation_target_value
        assert goal.budget_sec == workload.published_budgets_sec[name.removeprefix("v")]


def train_and_score(submission, name, tmp_path, capsys):
    """Trains one trial, looks at its record, and scores it."""
    workload = registry.find_workload(name, "mini")
    out = tmp_path / "runs"
    names = [f"--submissions={submission}", f"--workloads={name}"]
    assert cli.main(["sweep", *names, f"--out={out}"]) == 0
    folder = records.trial_folder(out, submission, 0, workload.name, 1)
    record = records.read_record(folder)
    assert record["status"] is Status.REACHED
    last = records.read_measurements(folder / records.EVAL_FILE)[-1]
    assert workload.has_reached_validation_target(last)
    assert last[records.SUBMISSION_TIME] <= record["budget_sec"]
    clock, compiled = record["clock"], record["compile"]
    assert 0 < compiled["submission"] < clock["submission"]
    steps, step_time = record["global_step"], record["step_time"]["seconds"]
    assert steps * step_time < clock["submission"]
    assert cli.main(["score", str(out), f"--report={tmp_path}/page.html"]) == 0
    assert f"{submission} reached the target on 1 of" in capsys.readouterr().out


def test_the_language_model_is_trained_to_its_target(tmp_path, capsys):
    train_and_score("nadamw", "finewebedu_lm", tmp_path, capsys)


@pytest.mark.slow
def test_image_classification_is_trained_to_its_target(tmp_path, capsys):
    train_and_score("schedule_free_adamw", "imagenet_resnet", tmp_path, capsys)
