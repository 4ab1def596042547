"""The main job: a good optimizer reaches the targets, and the score says so."""

import pytest

import scoring
from algoperf import cli, records, registry
from algoperf.records import Status

MINI = registry.select_workloads(["all"], "mini")


def test_the_rules_have_the_targets_of_the_workloads():
    rules = scoring.load_rules("mini")
    assert set(rules.base_workloads) == {workload.name for workload in MINI}
    for workload in MINI:
        goal = rules.goals[workload.name]
        assert goal.metric == workload.target_metric_name
        assert goal.direction is workload.target_direction
        assert goal.target == workload.validation_target_value


@pytest.mark.slow
def test_adamw_reaches_every_target_and_is_scored(tmp_path, capsys):
    out = tmp_path / "runs"
    assert cli.main(["sweep", "--submissions=adamw", f"--out={out}"]) == 0
    for workload in MINI:
        folder = records.trial_folder(out, "adamw", 0, workload.name, 1)
        record = records.read_record(folder)
        assert record["status"] is Status.REACHED
        last = records.read_measurements(folder / records.EVAL_FILE)[-1]
        assert workload.has_reached_validation_target(last)
        assert last[records.SUBMISSION_TIME] <= workload.max_allowed_runtime_sec
        clock, compiled = record["clock"], record["compile"]
        assert 0 < compiled["submission"] < clock["submission"]
        steps, step_time = record["global_step"], record["step_time"]["seconds"]
        assert steps * step_time < clock["submission"]
    assert cli.main(["score", str(out), f"--report={tmp_path}/page.html"]) == 0
    assert "adamw reached the target on 2 of 2 workloads" in capsys.readouterr().out
