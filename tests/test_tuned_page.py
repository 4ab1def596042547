"""docs/make_tuned.py, and what the bundled submissions say of their tuning."""

import hashlib
import json
import math

import pytest
import scripts

from algoperf import coordinate_search, registry, tuned
from algoperf.cli import tune
from algoperf.run_store import Run, Store
from algoperf.tuned import Goal, Tuning

make_tuned = scripts.load("docs/make_tuned.py")
TUNED = make_tuned.read_tunings()
SUBMISSIONS = registry.submission_paths()
HOST = {"host": {"cores": 1, "cpu": "AMD EPYC"}}
GOALS = {
    "wmt_mini": Goal("bleu", "maximize", 10.0, step_hint=100, steps=100),
    "ogbg_mini": Goal("loss", "minimize", 0.5, step_hint=200, steps=200),
}


@pytest.mark.parametrize("name", sorted(TUNED))
def test_a_search_space_is_what_its_tuning_chose(name):
    """From these ranges, with the code that is there now."""
    tuning, folder = TUNED[name], SUBMISSIONS[name].parent
    assert tuning.waiting() == []  # it is done
    text = (folder / tune.SPACE_FILE).read_text()
    assert text == tune.listed([p.point for p in tuning.chosen()])
    assert tuning.plan.ranges == json.loads((folder / tune.RANGES_FILE).read_text())
    sha256 = hashlib.sha256(SUBMISSIONS[name].read_bytes()).hexdigest()
    assert {e["submission_sha256"] for e in tuning.store.environments} == {sha256}


@pytest.mark.parametrize("name", sorted(TUNED))
def test_all_were_tuned_equally(name):
    """As many trials, of the same kind; workloads that it is not for are left out."""
    tuning, base = TUNED[name], TUNED["adamw"]
    own = {"submission", "ranges", "workloads"}
    facts, others = (
        {key: value for key, value in t.store.facts.items() if key not in own}
        for t in (tuning, base)
    )
    assert facts == others
    assert tuning.goals.items() <= base.goals.items()
    machines = [(e["host"]["cores"], e["devices"]) for e in tuning.store.environments]
    assert machines == [
        (e["host"]["cores"], e["devices"]) for e in base.store.environments
    ]


def a_tuning(folder, values, workloads=("wmt_mini", "ogbg_mini")):
    """A tuning of one hyperparameter; values are of evaluations, every 50 steps."""
    goals = {name: GOALS[name] for name in workloads}
    part = {"min": 1.0, "max": 4.0, "scaling": "log", "start": 2.0}
    ranges = {"learning_rate": part, "b": {"feasible_points": [7]}}
    plan = coordinate_search.Plan(ranges=ranges, budget=len(values), search=2)
    tuning = Tuning(folder.name, plan, goals, Store(folder / tune.STORE_FILE, {}))
    store = Store(tuning.store.path, json.loads(json.dumps(tuned.facts(tuning))))
    for trial, by_workload in enumerate(values, start=1):
        for name, measured in zip(workloads, by_workload, strict=True):
            rows = [
                {"step": 50.0 * i, "time": 1.0 * i, "validation": v, "test": v}
                for i, v in enumerate(measured)
            ]
            run = Run("tune", name, trial, {}, "completed", rows, 0.1, 1.0)
            store.add(run, HOST)


def test_the_page_says_what_a_tuning_found(tmp_path):
    hit, missed = [0.0, 10.0], [0.0, 5.0, 5.0]  # at step 50 of 100, or half the way
    loss = [1.0, 1.0, 0.5]  # at step 100 of 200
    a_tuning(tmp_path / "lion", [(missed, loss), (hit, loss)])
    a_tuning(tmp_path / "muon", [(missed, loss), (missed, loss)])
    a_tuning(tmp_path / "short", [([0.0, 5.0, 10.0],), (missed,)], ("wmt_mini",))
    tunings = {
        name: make_tuned.read_tuning(tmp_path / name)
        for name in ("lion", "muon", "short")
    }
    assert tunings["lion"].scores()[2] == pytest.approx(math.log(0.5))
    text = make_tuned.page(tunings)
    assert "    algoperf tune NAME --workloads ogbg,wmt \\\n" in text
    assert "--budget 2 --search 2 --seed 0\n" in text
    assert "for: `short`. 10 runs, each on one core of an AMD EPYC.\n" in text
    rate = tunings["lion"].chosen()[0].point["learning_rate"]
    start = f"{math.exp((math.log(4) + 0.5 + math.log(0.5)) / 2):.2f}"
    lines = text.splitlines()
    words = f"| 100 (0.50) | 50 (0.50) | `learning_rate` {rate} |"
    assert f"| `lion` | 2 | {start} | 0.50 {words}" in lines
    words = "| 100 (0.50) | 50.0% short | `learning_rate` 2.0 |"
    assert f"| `muon` | 2 | {start} | {start} {words}" in lines
    words = "| - | 100 (1.00) | `learning_rate` 2.0 |"
    assert f"| `short` | 2 | 1.00 | 1.00 {words}" in lines


def test_a_tuning_that_ended_early_has_the_budget_of_the_others(tmp_path, monkeypatch):
    """With as many trials as it has, it would be taken for done as it stands."""
    miss = ([0.0, 5.0, 5.0], [1.0, 1.0, 1.0])
    a_tuning(tmp_path / "lion", [miss] * 3)
    a_tuning(tmp_path / "muon", [miss] * 2)
    paths = {name: tmp_path / name / "submission.py" for name in ("lion", "muon", "no")}
    monkeypatch.setattr(registry, "submission_paths", lambda: paths)
    found = make_tuned.read_tunings()
    assert {name: t.plan.budget for name, t in found.items()} == {"lion": 3, "muon": 3}
    assert found["muon"].waiting() != []
