"""Rules files: what they say, and what is said of bad ones."""

import copy
import json
import re

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
    assert rules.protocol("self") == Protocol(studies=3, trials=1, budget_factor=3)
    assert rules.goals["wmt"].column == "validation/bleu"
    assert rules.goals["wmt"].direction is Direction.MAXIMIZE
    assert str(rules.goals["criteo1tb"]) == "loss <= 0.123735"
    assert rules.held_out["wmt_glu_tanh"] == "wmt"


def test_v06_is_the_nine_workloads_without_held_out_ones():
    rules, old = load_rules("v0.6"), load_rules("v0.5")
    assert set(rules.base_workloads) == {*old.base_workloads, "finewebedu_lm"}
    assert not rules.held_out
    assert rules.protocol("external") == Protocol(studies=3, trials=5)
    assert rules.protocol("self") == Protocol(studies=3, trials=1, budget_factor=1.5)
    assert str(rules.goals["finewebedu_lm"]) == "ppl <= 22.2995"
    board = load_rules("v0.6_2025")
    assert board.base_workloads == old.base_workloads
    for workload in old.base_workloads:
        assert rules.goals[workload].target == old.goals[workload].target
    assert rules.subset_of_exactly(old.base_workloads) == "v0.6_2025"
    assert rules.subset_of_exactly(["wmt"]) is None
    assert board.subset_of_exactly(old.base_workloads) is None


def test_budgets_of_variants_are_those_of_their_base_workloads():
    rules = load_rules("v0.5")
    for variant, base in rules.held_out.items():
        assert rules.goals[variant].budget_sec == rules.goals[base].budget_sec


def test_toml_is_read_like_json(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(VALID))
    (tmp_path / "a.toml").write_text(
        """
        name = "mine"
        r_max = 4
        base_workloads = ["a"]
        [rulesets]
        external = {studies = 3, trials = 5}
        self = {studies = 3, trials = 1}
        [held_out]
        a_b = "a"
        [workloads]
        a = {metric = "wer", direction = "minimize", validation_target = 1}
        a_b = {metric = "wer", direction = "minimize", validation_target = 0.5}
        """
    )
    assert load_rules(tmp_path / "a.toml") == load_rules(tmp_path / "a.json")
    (tmp_path / "a.toml").write_text("a = [")
    with pytest.raises(UserError, match="is not TOML"):
        load_rules(tmp_path / "a.toml")


def test_budget_and_factor_are_optional(tmp_path):
    assert _load(tmp_path, VALID).goals["a"].budget_sec is None
    assert _load(tmp_path, VALID).protocol("self").budget_factor == 1
    content = copy.deepcopy(VALID)
    content["workloads"]["a"]["budget_sec"] = 60
    content["rulesets"]["self"]["budget_factor"] = 1.5
    assert _load(tmp_path, content).goals["a"].budget_sec == 60
    assert _load(tmp_path, content).protocol("self").budget_factor == 1.5


def _load(folder, content):
    (folder / "mine.json").write_text(json.dumps(content))
    return load_rules(folder / "mine.json")


def test_what_is_required_is_in_the_docs(tmp_path):
    text = (FOLDER.parents[1] / "docs/scoring.md").read_text()
    (example,) = re.findall("```json\n(.*?)```", text, re.DOTALL)
    value = json.loads(example)
    rules = _load(tmp_path, value)
    assert rules.workloads == rules.base_workloads
    assert list(rules.protocols) == ["external"]
    with pytest.raises(UserError, match="unknown ruleset 'self'; known: external"):
        rules.protocol("self")
    for place in (value, *value["workloads"].values(), *value["rulesets"].values()):
        for key in list(place):  # there is no less than that
            content = place.pop(key)
            with pytest.raises(UserError, match=r"lacks the key|no entry in"):
                _load(tmp_path, value)
            place[key] = content


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


def test_a_subset_of_an_own_file_follows_its_path(tmp_path):
    content = copy.deepcopy(VALID)
    content["base_workloads"].append("a_b")
    content["held_out"] = {}
    content["subsets"] = {"small": ["a"]}
    whole = _load(tmp_path, content)
    name = whole.subset_of_exactly(["a"])
    assert name == f"{tmp_path}/mine.json:small"
    part = load_rules(name)
    assert (part.name, part.workloads) == ("mine_small", ("a",))
    with pytest.raises(UserError, match=r"mine\.json: unknown subset 'smal'; did you"):
        load_rules(f"{tmp_path}/mine.json:smal")
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        load_rules(f"{tmp_path}/none.json:small")
    with pytest.raises(UserError, match="did you mean mini_fast"):
        load_rules("mini:fast")
    # A path with a colon is a path first.
    odd = (tmp_path / "mine.json").rename(tmp_path / "mine.json:smal")
    assert load_rules(odd) == whole


def test_own_file_in_a_path_with_spaces(tmp_path):
    path = tmp_path / "my own rules.json"
    path.write_text(json.dumps(VALID))
    rules = load_rules(str(path))
    assert rules.workloads == ("a", "a_b")
    assert rules.goals["a"].target == 1.0


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"unknown rules 'v05'; did you mean v0\.5 or"):
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
        (["rulesets", "self", "studies"], 0, "must be at least 1, not 0"),
        (["rulesets", "self", "studies"], 1.5, "must be of type int, not 1.5"),
        (["workloads", "a"], [], "'workloads.a' must be of type dict"),
        (["workloads", "a", "metric"], None, "lacks the key 'workloads.a.metric'"),
        (["workloads", "a", "direction"], "up", "minimize or maximize, not 'up'"),
        (["workloads", "a", "validation_target"], float("nan"), "must be finite"),
        (["workloads", "a", "validation_target"], 10**400, "must be finite"),
        (["workloads", "a", "metric"], "w\ner", "cannot be shown"),
        (["workloads", "a\ud800"], VALID["workloads"]["a"], "cannot be shown"),
        (["workloads", "a", "budget_sec"], 0, "must be greater than 0, not 0"),
        (["workloads", "a", "budget_sec"], "1h", "must be of type float"),
        (["rulesets", "self", "budget_factor"], -1, "must be greater than 0"),
        (["heldout"], {}, "unknown key 'heldout'; did you mean held_out?"),
        (["x"], 1, "unknown key 'x'; known: base_workloads, held_out, name, r_max"),
        (
            ["workloads", "a", "target"],
            1,
            "in 'workloads.a': unknown key 'target'; did you mean validation_target?",
        ),
        (
            ["rulesets", "self", "trial"],
            1,
            "in 'rulesets.self': unknown key 'trial'; did you mean trials?",
        ),
        (["rulesets", "own"], {}, "in 'rulesets': unknown key 'own'"),
        (["rulesets", "external"], None, "lacks the key 'rulesets.external'"),
        (["subsets"], ["a"], "'subsets' must be of type dict"),
        (["subsets"], {"b": []}, "'subsets.b' must be different names"),
        (["subsets"], {"b": ["c"]}, "'subsets.b': no base workload 'c'"),
        (["subsets"], {"b/c": ["a"]}, "a subset cannot be named 'b/c'"),
        (["subsets"], {"b:c": ["a"]}, "a subset cannot be named 'b:c'"),
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


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "7", "\xff", "[" * 10**5, "1" * 10**4, " " * 2**21],
    ids=range(8),
)
def test_files_that_are_no_json_object(tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"bad\.json"):
        load_rules(file)
