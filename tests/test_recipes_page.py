"""docs/recipes.md is what the runs in docs/recipes/ say."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import scripts

from algoperf import calibration
from algoperf.run_store import Store

DOCS = Path(__file__).resolve().parents[1] / "docs"


make_recipes = scripts.load("docs/make_recipes.py")
STORES = make_recipes.stores()


@pytest.mark.parametrize("workload", STORES, ids=lambda workload: workload.variant)
def test_runs_are_of_the_workload_as_it_is(workload):
    facts = calibration.facts_of(workload) | {
        "submission": "quantized_adamw",
        "share": 1.0,
        "max_steps": None,
    }
    assert json.loads(json.dumps(facts)) == STORES[workload].facts
    points = {}
    for run in STORES[workload].runs.values():
        point = {**run.hyperparameters}
        assert point.pop("recipe") == run.space
        points[json.dumps(point)] = point
    assert len(points) == 1  # the same for all recipes


@pytest.mark.slow
def test_the_page_is_what_the_runs_say():
    text, figure = make_recipes.page(STORES)
    assert text == make_recipes.PAGE.read_text()
    assert figure == make_recipes.FIGURE.read_text()


@pytest.mark.slow
def test_no_efficiency_of_a_recipe_that_diverged_where_the_baseline_did_not():
    store = Store.read(make_recipes.SCALING)
    key = next(key for key, run in store.runs.items() if run.space == "quartet")
    lost = [{**store.runs[key].evaluations[-1], "validation": math.nan}]
    store.runs[key] = dataclasses.replace(store.runs[key], evaluations=lost)
    rows = make_recipes.of_scaling(store)[-1].splitlines()
    assert rows[-1] == "| `quartet` | 15 of 16 | - | - | - |"
    assert sum("16 of 16" in row for row in rows) == 3
