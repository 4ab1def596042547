"""Draws of held-out workloads, and the rules that score them."""

import json

import pytest

import scoring
from algoperf import cli, registry


@pytest.mark.parametrize(("scale", "base"), [("mini", "mini"), ("full", "v0.6")])
def test_a_draw_becomes_rules(tmp_path, capsys, scale, base):
    path = tmp_path / "not_there_yet" / "rules.json"
    arguments = ["heldout", "--seed=3", f"--scale={scale}", f"--rules={path}"]
    assert cli.main(arguments) == 0
    names = capsys.readouterr().out.strip().split(",")
    assert names == registry.held_out(3, scale)
    rules, published = scoring.load_rules(path), scoring.load_rules(base)
    assert rules.base_workloads == published.base_workloads
    assert not rules.subsets
    drawn = [registry.find_workload(name, scale) for name in names]
    assert list(rules.held_out) == [w.name for w in drawn]
    for workload in drawn:
        goal = rules.goals[workload.name]
        assert goal.metric == workload.target_metric_name
        assert goal.target == workload.validation_target_value
        assert goal.direction == workload.target_direction
        assert goal.budget_sec == workload.max_allowed_runtime_sec
        name = workload.base_workload + ("_mini" if scale == "mini" else "")
        assert rules.held_out[workload.name] == name


def test_rules_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "rules.json"
    assert cli.main(["heldout", "--seed=0", f"--rules={path}"]) != 0
    assert "choose another --rules" in capsys.readouterr().err


def test_a_seed_is_asked_for(capsys):
    assert cli.main(["heldout"]) == 2
    assert "--seed" in capsys.readouterr().err


def test_names_as_json(capsys):
    assert cli.main(["heldout", "--seed=0", "--json=-"]) == 0
    assert json.loads(capsys.readouterr().out) == registry.held_out(0, "mini")
