"""Rules files: what they say, and what is said of bad ones."""

import copy
import json

import pytest

from algoperf.errors import UserError
from algoperf.records import Direction
from scoring.rules import FOLDER, Protocol, known_rules, load_rules

VALID = {
    "name": "mine",
    "r_max": 4,
    "rulesets": {
        "external": {"studies": 3, "trials": 5},
        "self": {"studies": 3, "trials": 1},
    },
    "base_workloads": ["a"],
    "held_out": {"a_b": "a"},
    "workloads": {
        "a": {"metric": "wer", "direction": "minimize", "validation_target": 1},
        "a_b": {"metric": "wer", "direction": "minimize", "validation_target": 0.5},
    },
}


def test_v05_is_the_benchmark_of_2024():
    rules = load_rules("v0.5")
    assert len(rules.base_workloads) == 8
    assert len(rules.held_out) == 6
    assert rules.r_max == 4
    assert rules.protocol("external") == Protocol(studies=3, trials=5)
    assert rules.protocol("self") == Protocol(studies=3, trials=1)
    assert rules.goals["wmt"].column == "validation/bleu"
    assert rules.goals["wmt"].direction is Direction.MAXIMIZE
    assert str(rules.goals["criteo1tb"]) == "loss <= 0.123735"
    assert rules.held_out["wmt_glu_tanh"] == "wmt"


def test_mini_is_one_study_of_one_trial_without_held_out_workloads():
    rules = load_rules("mini")
    assert len(rules.base_workloads) == 9
    assert set(load_rules("mini_fast").base_workloads) <= set(rules.base_workloads)
    assert not rules.held_out
    assert rules.protocol("external") == Protocol(studies=1, trials=1)
    assert rules.protocol("self").studies == 1
    assert rules.goals["imagenet_resnet_mini"].direction is Direction.MAXIMIZE
    assert rules.goals["finewebedu_lm_mini"].direction is Direction.MINIMIZE


@pytest.mark.parametrize("name", known_rules())
def test_every_file_of_ours_loads_and_has_its_own_name(name):
    assert load_rules(name).name == name


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_a_file_is_loaded_by_its_path_too(path):
    assert load_rules(path) == load_rules(path.stem)


def test_a_subset_has_the_goals_of_the_whole_and_no_held_out_workloads():
    whole, part = load_rules("v0.5"), load_rules("v0.5_qualification")
    assert part.workloads == ("criteo1tb", "ogbg", "wmt")
    assert part.goals == whole.goals
    assert (part.r_max, part.protocols) == (whole.r_max, whole.protocols)


def test_own_file_in_a_path_with_spaces(tmp_path):
    path = tmp_path / "my own rules.json"
    path.write_text(json.dumps(VALID))
    rules = load_rules(str(path))
    assert rules.workloads == ("a", "a_b")
    assert rules.goals["a"].target == 1.0


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"unknown rules 'v05'; did you mean v0\.5\?"):
        load_rules("v05")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_rules(tmp_path / "none.json")


def test_unknown_ruleset_gets_the_nearest():
    with pytest.raises(UserError, match=r"unknown ruleset 'extern'; .*external"):
        load_rules("mini").protocol("extern")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["r_max"], None, "lacks the key 'r_max'"),
        (["r_max"], "four", "'r_max' must be of type float, not 'four'"),
        (["r_max"], True, "'r_max' must be of type float, not True"),
        (["r_max"], 1.0, "'r_max' must be greater than 1"),
        (["name"], None, "lacks the key 'name'"),
        (["base_workloads"], [], "non-empty list"),
        (["base_workloads"], [["a"]], "non-empty list of names"),
        (["base_workloads"], ["a", "a"], "a name twice"),
        (["base_workloads"], ["a", "c"], "'c' has no entry in 'workloads'"),
        (["held_out"], {"a_b": "z"}, "no base workload 'z'"),
        (["held_out"], {"a": "a"}, "'a' is a base workload as well"),
        (["rulesets", "self"], None, "lacks the key 'rulesets.self'"),
        (["rulesets", "self", "studies"], 0, "must be at least 1, not 0"),
        (["rulesets", "self", "studies"], 1.5, "must be of type int, not 1.5"),
        (["workloads", "a"], [], "'workloads.a' must be of type dict"),
        (["workloads", "a", "metric"], None, "lacks the key 'workloads.a.metric'"),
        (["workloads", "a", "direction"], "up", "minimize or maximize, not 'up'"),
        (["workloads", "a", "validation_target"], float("nan"), "must be finite"),
    ],
)
def test_malformed_files_are_explained_in_one_line(tmp_path, path, value, message):
    content = copy.deepcopy(VALID)
    *parents, key = path
    place = content
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[key]
    else:
        place[key] = value
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_rules(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "7", "\xff"])
def test_files_that_are_no_json_object(tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"bad\.json"):
        load_rules(file)
