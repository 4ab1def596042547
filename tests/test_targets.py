"""The targets, budgets and docs/targets.md are what the calibrations in docs/ say."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts

from algoperf import calibration, registry
from algoperf.calibration import Phase, Store
from algoperf.run_store import Run

DOCS = Path(__file__).resolve().parents[1] / "docs"


make_targets = scripts.load("docs/make_targets.py")
STORES = [Store.read(path) for path in sorted(DOCS.glob("calibration/*.xz"))]


def having(phase, at_least=1):
    """Returns the calibrations that have so many runs of a phase."""
    found = [store for store in STORES if len(store.of(phase)) >= at_least]
    return {"argvalues": found, "ids": [store.facts["name"] for store in found]}


def workload_of(store):
    return registry.find_workload(store.facts["name"], "mini")


@pytest.mark.parametrize("store", **having(Phase.SEARCH))
def test_a_calibration_is_of_the_workload_as_it_is(store):
    workload = workload_of(store)
    assert store.path.name == f"{workload.name}.json.xz"
    facts = calibration.facts_of(workload) | {"max_steps": None}
    assert json.loads(json.dumps(facts)) == store.facts


@pytest.mark.parametrize("store", **having(Phase.REPEATS, make_targets.FEWEST_REPEATS))
def test_targets_are_those_of_the_repeats(store):
    workload = workload_of(store)
    found = store.targets()
    for typed, target in (
        (workload.validation_target_value, found.validation),
        (workload.test_target_value, found.test),
    ):
        assert typed == calibration.rounded(target, store.direction)


@pytest.mark.parametrize("store", **having(Phase.TIMED))
def test_budgets_are_those_of_the_timed_run(store):
    budget = calibration.budget_sec(store.of(Phase.TIMED)[0])
    workload = workload_of(store)
    assert workload.max_allowed_runtime_sec == pytest.approx(budget, abs=0.5)


def test_the_page_is_up_to_date():
    assert make_targets.PAGE.read_text() == make_targets.page(make_targets.stores())


WORKLOAD = SimpleNamespace(
    variant="w",
    target_metric_name="loss",
    validation_target_value=1.5,
    test_target_value=1.6,
)


def a_store(tmp_path, **phases):
    facts = {"name": "w", "metric": "loss", "direction": "minimize"}
    store = Store.open(tmp_path / "w.json.xz", facts)
    for phase, runs in phases.items():
        for trial, (space, values) in enumerate(runs, start=1):
            rows = [
                {"step": 10.0 * i, "time": 0.0, "validation": v, "test": v}
                for i, v in enumerate(values)
            ]
            point = {"learning_rate": 0.5}
            run = Run(Phase(phase), space, trial, point, "completed", rows, 0.5, 2.0)
            store.add(run, {})
    return store


def test_cells_by_hand(tmp_path):
    store = a_store(
        tmp_path,
        search=[("adamw", [3.0, 1.0]), ("sgd", [3.0, 2.0])],
        repeats=[("adamw", [3.0, v]) for v in (1.0, 1.5, 1.25, 1.75, 1.125)],
        fresh=[("adamw", [3.0, 2.0, 1.0]), ("adamw", [1.0]), ("adamw", [2.0])],
        weak=[
            *(("sgd", [3.0, 2.0]), ("sgd", [3.0, 2.5])),
            *(("adamw_off", [3.0, 1.25]), ("adamw_off", [math.nan])),
        ],
        timed=[("adamw", [3.0, 1.0])],
    )
    cells = ["loss", "1.25", "1.25", "1 to 1.75", "adamw, rate 0.5", "2", "5"]
    assert make_targets.targets(WORKLOAD, store) == cells
    times = ["500", "10", "2 of 3", "10 (0 to 20)", "7 (2 to 12)"]
    assert make_targets.times(None, store) == times
    bests = ["loss", "1.25", "1, reached", "-", "-", "-"]
    assert make_targets.search_bests(None, store) == bests
    weak = ["loss", "1.25", "2", "1.25, reached", "diverged"]
    assert make_targets.weak_runs(None, store) == weak


def test_what_is_not_there_yet_is_a_dash(tmp_path):
    store = a_store(tmp_path, search=[("adamw", [3.0, 1.0])])
    assert make_targets.targets(WORKLOAD, store)[1:4] == [
        *("1.5, provisional", "1.6, provisional", "-")
    ]
    assert make_targets.times(None, store) == ["-"] * 5
    assert make_targets.search_bests(None, store)[1:] == ["-"] * 5
    assert make_targets.weak_runs(None, store)[1:] == ["-"] * 4


def test_a_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    values = [3.0, math.nan, 1.0]
    store = a_store(tmp_path, search=[("adamw", values)], repeats=[("adamw", values)])
    make_targets.draw(WORKLOAD, store, tmp_path / "a.svg")
    make_targets.draw(WORKLOAD, store, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<svg" in (tmp_path / "a.svg").read_text()
