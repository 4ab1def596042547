"""`algoperf numerics`: lists, explanations, and tables of runs that are in a store."""

import csv
import math
import xml.etree.ElementTree as ElementTree

import pytest

from algoperf import cli, numerics, registry, tuning
from algoperf.calibration import facts_of
from algoperf.cli.numerics import scaling, shared
from algoperf.cli.numerics.scaling import layer_parameters, sized, tokens
from algoperf.numerics import cost
from algoperf.numerics.scaling_law import Law
from algoperf.run_store import Run, Store

ENVIRONMENT = {"host": {}, "devices": {}, "versions": {}}


def _rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


SPACE = registry.find_submission("quantized_adamw").with_name(
    "tuning_search_space.json"
)
FIRST_POINT = tuning.load_search_space(SPACE)[0]


def _run(phase, recipe, seed, rows):
    evaluations = [
        {"step": s, "time": 0.0, "train_loss": v, "validation": v, "test": v}
        for s, v in rows
    ]
    point = {**FIRST_POINT, "recipe": recipe}
    return Run(phase, recipe, seed, point, "completed", evaluations, None, 0.0)


def test_all_recipes_and_formats_are_listed(capsys):
    assert cli.main(["numerics", "list"]) == 0
    printed = capsys.readouterr().out
    for name in (*numerics.RECIPES, *numerics.FORMATS):
        assert f" {name} " in printed


def test_an_explanation_names_every_product(capsys):
    arguments = ["numerics", "explain", "nvfp4", "--workload=finewebedu_lm"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "8 of 13 products are quantised" in printed
    assert "no: the recipe keeps products of type EMBEDDING" in printed
    assert "yes: float32" in printed or "yes: bfloat16" in printed
    assert "modelled, not measured" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give an action: list, explain"),
        (["explian"], "explain"),
        (["explain"], "one recipe"),
        (["explain", "mxfp8"], "--workload"),
        (["explain", "mxpf8", "--workload=wmt"], "mxfp8"),
        (["sweep", "--recipes=mxpf8"], "mxfp8"),
        (["sweep", "--share=0"], "a share of 0.0 leaves no step"),
        (["sweep", "--workloads=ogbg,ogbg"], "ogbg_mini is named twice"),
        (["scaling", "--widths=32,64"], "at least 3"),
        (["scaling", "--widths=32,64,70"], "multiples of 32"),
        (["scaling", "--budgets=1,2,x"], "whole numbers"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, said, tmp_path, capsys):
    if arguments and arguments[0] in ("sweep", "scaling"):
        arguments = [*arguments, f"--out={tmp_path}"]
    assert cli.main(["numerics", *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["numerics", "sweep", "--workloads=ogbg"],
        ["numerics", "scaling"],
        ["reparam", "--study=rank", "--workload=ogbg"],
        ["calibrate", "--workload=ogbg"],
    ],
    ids=" ".join,
)
def test_where_nothing_can_be_written(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for out, says in (
        ("gs://bucket/x", "gs://bucket/x is no folder"),
        ("/dev/null/x", "cannot make /dev/null/x"),
    ):
        assert cli.main([*arguments, f"--out={out}"]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_that_is_done_is_only_shown(tmp_path, capsys):
    workload = registry.find_workload("finewebedu_lm", "mini")
    facts = {"submission": "quantized_adamw", "share": 1.0, "max_steps": None}
    path = tmp_path / "finewebedu_lm_mini.json.xz"
    store = Store.open(path, facts_of(workload) | facts)
    good, bad = 0.9 * workload.validation_target_value, 1e3
    steps = {"bf16": (1000, 1100), "mxfp4": (1500, 1650), "luq": (math.inf,) * 2}
    for recipe, both in steps.items():
        for seed, at in enumerate(both, start=1):
            reaches = [(at, good), (2000, good)] if at < math.inf else [(2000, bad)]
            store.add(_run("sweep", recipe, seed, [(0, bad), *reaches]), ENVIRONMENT)
    arguments = ["numerics", "sweep", "--workloads=finewebedu_lm", "--seeds=2"]
    assert cli.main([*arguments, "--recipes=mxfp4,luq", f"--out={tmp_path}"]) == 0
    assert "6 of 6 runs are done" in capsys.readouterr().out
    rows = _rows(tmp_path / "recipes.csv")
    assert [row["recipe"] for row in rows] == ["bf16", "mxfp4", "luq"]
    assert [row["reached"] for row in rows] == ["2", "2", "0"]
    assert float(rows[1]["times bf16 to target"]) == pytest.approx(1.5)
    assert float(rows[1]["times bf16 to its level"]) == pytest.approx(1.5)
    assert float(rows[1]["low"]) < 1.5 < float(rows[1]["high"])
    front = {row["recipe"]: row for row in _rows(tmp_path / "front.csv")}
    assert front["mxfp4"]["on the front"] == front["bf16"]["on the front"] == "yes"
    assert front["luq"]["on the front"] == ""
    costs = {name: float(row["bit operations"]) for name, row in front.items()}
    assert costs["mxfp4"] < costs["bf16"]
    ElementTree.parse(tmp_path / "front.svg")
    again = ["--recipes=mxfp4", f"--out={tmp_path}", "--share=0.5"]
    assert cli.main([*arguments, *again]) == 1
    assert "share" in capsys.readouterr().err


def test_runs_of_another_point_are_not_mixed_in(tmp_path, capsys):
    workload = registry.find_workload("finewebedu_lm", "mini")
    facts = {"submission": "quantized_adamw", "share": 1.0, "max_steps": None}
    path = tmp_path / "finewebedu_lm_mini.json.xz"
    run = _run("sweep", "bf16", 1, [(0, 1e3), (2000, 10.0)])
    run.hyperparameters["learning_rate"] *= 2
    Store.open(path, facts_of(workload) | facts).add(run, ENVIRONMENT)
    arguments = ["numerics", "sweep", "--workloads=finewebedu_lm", "--seeds=1"]
    assert cli.main([*arguments, "--recipes=mxfp4", f"--out={tmp_path}"]) == 1
    assert "a run of bf16 at another point" in capsys.readouterr().err


def test_running_statistics_cost_an_eighth_of_a_forward_pass_in_16_bits():
    workload = registry.find_workload("imagenet_resnet", "mini")
    found = shared.traced_products(workload, "mxfp4")
    multiply_adds = sum(
        item.repeats * math.prod(item.shapes[2]) * cost.inner_length(item)
        for item in found
    )
    of_statistics = shared.statistics_cost(workload, found, kept_bits=16)
    assert of_statistics.bit_operations == multiply_adds * 16 * 16 / 8
    assert of_statistics.overhead_bit_operations == 0
    whole = cost.modelled_cost("mxfp4", found) + of_statistics
    assert whole.full_bit_operations == 3 * multiply_adds * 32 * 32
    language = registry.find_workload("finewebedu_lm", "mini")
    assert shared.statistics_cost(language, found, kept_bits=16) == cost.Cost()


EFFICIENCIES = {"bf16": (1, 1), "mxfp4": (0.5, 0.8), "luq": (0.5, 0.8)}
LAW = Law(a=3e3, alpha=0.6, b=2e4, beta=0.5, gamma=0.6, e=2.0)


def test_a_scaling_study_that_is_done_is_fitted(tmp_path, capsys):
    base = registry.find_workload("finewebedu_lm", "mini")
    facts = {"submission": "quantized_adamw", "max_steps": None}
    store = Store.open(tmp_path / "scaling.json.xz", facts_of(base) | facts)
    for width in (32, 64, 96, 128):
        for steps in (160, 640, 1280):
            workload = sized(base, width, steps)
            for recipe, efficiency in EFFICIENCIES.items():
                loss = LAW.loss(
                    layer_parameters(workload), tokens(workload, steps), *efficiency
                )
                key = scaling.Cell(width, steps, recipe).key
                if (recipe, width, steps) == ("luq", 128, 1280):
                    loss = math.nan
                store.add(_run(*key, [(steps, math.exp(loss))]), ENVIRONMENT)
    arguments = ["numerics", "scaling", "--recipes=mxfp4,luq", f"--out={tmp_path}"]
    assert cli.main([*arguments, "--budgets=160,640,1280"]) == 0
    printed = capsys.readouterr().out
    assert "36 of 36 runs are done" in printed
    assert "no efficiency is told" in printed
    found = {row["recipe"]: row for row in _rows(tmp_path / "efficiencies.csv")}
    assert float(found["mxfp4"]["effN"]) == pytest.approx(0.5, rel=0.05)
    assert float(found["mxfp4"]["effD"]) == pytest.approx(0.8, rel=0.05)
    assert [found["mxfp4"][name] for name in ("runs used", "made")] == ["12", "12"]
    assert [found["luq"][name] for name in ("runs used", "made")] == ["11", "12"]
    assert not any(found["luq"][name] for name in ("effN", "effD", "low"))


def test_sizes_of_the_language_model():
    base = registry.find_workload("finewebedu_lm", "mini")
    small, large = (sized(base, width, 10) for width in (32, 64))
    assert small.step_hint == 10
    assert large.name == "finewebedu_lm_width_64_steps_10_mini"
    ratio = layer_parameters(large) / layer_parameters(small)
    assert 3.8 < ratio < 4.1  # matrices grow in both axes, norms in one
    embedding = base.model.vocab_size * 64
    assert large.num_parameters - layer_parameters(large) == embedding
    assert tokens(small, 10) == 10 * 16 * 64


@pytest.mark.slow
def test_both_studies_run_and_go_on(tmp_path, capfd):
    few = ["--recipes=bf16", "--max_steps=2"]
    out = f"--out={tmp_path / 'sweep'}"
    arguments = ["numerics", "sweep", "--workloads=imagenet_vit", "--seeds=1"]
    assert cli.main([*arguments, *few, out]) == 0
    assert "0 of 1 runs are done" in capfd.readouterr().out
    assert cli.main([*arguments, *few, out]) == 0
    assert "1 of 1 runs are done" in capfd.readouterr().out
    out = f"--out={tmp_path / 'scaling'}"
    arguments = ["numerics", "scaling", "--widths=32,64,96", "--budgets=1,2,3"]
    assert cli.main([*arguments, *few, out]) == 0
    assert "9 runs are in" in capfd.readouterr().out
    assert cli.main([*arguments, *few, out]) == 0
    assert "9 of 9 runs are done" in capfd.readouterr().out
