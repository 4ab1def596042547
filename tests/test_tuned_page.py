"""docs/make_tuned.py, and what the bundled submissions say of their tuning."""

import hashlib
import json
import math

import pytest
import scripts

from algoperf import coordinate_search, hardware, registry, tuned
from algoperf.cli import tune
from algoperf.errors import UserError
from algoperf.run_store import Run, Store
from algoperf.tuned import Goal, Tuning

make_tuned = scripts.load("docs/make_tuned.py")
TUNED = make_tuned.read_tunings()
SUBMISSIONS = registry.submission_paths()
# Their points are those of their papers, or of the studies in docs/reparam.md and
# docs/numerics.md, which measure them.
NOT_TUNED = {"apollo", "factorised", "fira", "galore", "lora", "pruned", "relora"}
NOT_TUNED |= {"quantized_adamw", "quantized_lora", "stable_rps"}
OF_FEWER_WORKLOADS = {"infinite_compute": ["finewebedu_lm_mini"]}
HOST = {"host": {"cores": 1, "cpu": "AMD EPYC"}}
GOALS = {
    "wmt_mini": Goal("bleu", "maximize", 10.0, step_hint=100, steps=100),
    "ogbg_mini": Goal("loss", "minimize", 0.5, step_hint=200, steps=200),
}


@pytest.mark.parametrize("name", sorted(TUNED))
def test_a_search_space_is_what_its_tuning_chose(name):
    """From these ranges in this order, with the submission's file as it is now."""
    tuning, folder = TUNED[name], SUBMISSIONS[name].parent
    assert tuning.waiting() == []  # it is done
    text = (folder / tune.SPACE_FILE).read_text()
    assert text == tune.listed([p.point for p in tuning.chosen()])
    ranges = json.loads((folder / tune.RANGES_FILE).read_text())
    assert list(tuning.plan.ranges.items()) == list(ranges.items())
    for proposal in tuning.tried():
        for workload in tuning.goals:
            run = tuning.run(proposal.trial, workload)
            assert run.hyperparameters == proposal.point
    sha256 = hashlib.sha256(SUBMISSIONS[name].read_bytes()).hexdigest()
    assert {e["submission_sha256"] for e in tuning.store.environments} == {sha256}


@pytest.mark.parametrize("name", sorted(TUNED))
def test_all_were_tuned_equally(name):
    """As many trials, of the same kind, on as many cores of one kind."""
    tuning, base = TUNED[name], TUNED["adamw"]
    own = {"submission", "ranges", "workloads"}
    facts, others = (
        {key: value for key, value in t.store.facts.items() if key not in own}
        for t in (tuning, base)
    )
    assert facts == others
    fewer = OF_FEWER_WORKLOADS.get(name, base.goals)
    assert tuning.goals == {w: base.goals[w] for w in fewer}
    hosts, others = (
        {hardware.host_words(e["host"]) for e in t.store.environments}
        for t in (tuning, base)
    )
    assert hosts == others


def test_the_page_is_of_these_tunings():
    assert make_tuned.PAGE.read_text(encoding="utf-8") == make_tuned.page(TUNED)
    assert SUBMISSIONS.keys() - TUNED.keys() == NOT_TUNED


def a_tuning(folder, values, workloads=("wmt_mini", "ogbg_mini"), early_stop=False):
    """A tuning of one hyperparameter; values are of evaluations, every 50 steps."""
    goals = {name: GOALS[name] for name in workloads}
    part = {"min": 1.0, "max": 4.0, "scaling": "log", "start": 2.0}
    ranges = {"learning_rate": part, "b": {"feasible_points": [7]}}
    plan = coordinate_search.Plan(ranges=ranges, budget=len(values), search=2)
    tuning = Tuning(folder.name, plan, goals, Store(folder / tune.STORE_FILE, {}))
    facts = tuned.facts(tuning, early_stop=early_stop, step_factor=1.0)
    store = Store(tuning.store.path, json.loads(json.dumps(facts)))
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
    assert "--budget 8 --search 2 --seed 0\n" in text
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


def test_what_is_no_such_tuning_is_said(tmp_path, monkeypatch):
    a_tuning(tmp_path / "lion", [([0.0, 10.0], [1.0, 0.5])], early_stop=True)
    with pytest.raises(UserError, match="is not of "):
        make_tuned.read_tuning(tmp_path / "lion")
    paths = {"muon": tmp_path / "muon" / "submission.py"}
    monkeypatch.setattr(registry, "submission_paths", lambda: paths)
    with pytest.raises(UserError, match="no submission has tuning"):
        make_tuned.read_tunings()
