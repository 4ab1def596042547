"""docs/make_methods.py: methods beside the dense one, as planted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
from mini_runs import RULES, write_runs

import scoring
from algoperf import records
from algoperf.errors import UserError
from scoring.step_times import StepTime, StepTimes

scripts.load("docs/make_recipes.py")
scripts.load("docs/packed.py")
make_methods = scripts.load("docs/make_methods.py")
DENSE_SIZES = dict.fromkeys(make_methods.SIZES, 1000)
FEW = "criteo1tb_mini"


def read(root):
    return scoring.read_runs([root])


def step_time(seconds):
    return StepTime(seconds, error=0.01, sha256="")


# A step of `small` takes 1.1 times as long on wmt, and is unknown elsewhere.
ON_WMT = StepTimes({"adamw": step_time(2.0), "small": step_time(2.2)}, {}, "a machine")
STEP_TIMES = {"wmt_mini": ON_WMT}


@pytest.fixture
def runs(tmp_path):
    """Two seeds; `small` takes 4/3 of the steps, and misses a workload."""
    for study, (dense, factor) in enumerate([(1.0, 1.5), (1.25, 1.5)]):
        write_runs(
            tmp_path,
            {"adamw": dense, "small": factor},
            {("small", FEW)},
            study=study,
            sizes={"adamw": DENSE_SIZES, "small": dict.fromkeys(DENSE_SIZES, 250)},
        )
    return tmp_path


def test_ratios_are_of_medians_and_sizes_of_the_dense_ones(runs):
    trials = [t for t in read(runs).trials if t.workload == "wmt_mini"]
    dense, small = make_methods.methods(trials, RULES.goals["wmt_mini"], ON_WMT)
    assert (dense.in_steps.recipe, small.in_steps.recipe) == ("adamw", "small")
    expected = 1.5 / 1.125
    assert small.in_steps.to_target.value == pytest.approx(expected, rel=1e-3)
    assert small.in_steps.to_target.low < expected < small.in_steps.to_target.high
    assert small.time == pytest.approx(1.1 * expected, rel=1e-3)
    assert small.sizes == pytest.approx(dict.fromkeys(make_methods.SIZES, 0.25))
    assert dense.time == dense.step == 1
    assert small.step == pytest.approx(1.1)


def test_a_miss_is_told_and_not_averaged(runs):
    text = make_methods.page(read(runs), STEP_TIMES)
    line = next(line for line in text.splitlines() if line.startswith("| `small`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "16 of 18"
    assert cells[2].startswith("1.33 (")
    assert cells[2].endswith("), 8")
    assert cells[-3:] == ["0.25"] * 3
    assert "2 seeds of" in text
    assert "--studies 2 --seed 5 " in text
    of_missed = text.split(f"### {FEW}")[1].split("###")[0]
    assert "| `small` | 0 of 2 | - | - | - | - |" in of_missed


def test_a_study_without_the_dense_one_is_a_clear_error(tmp_path):
    write_runs(tmp_path, {"small": 1.0})
    with pytest.raises(UserError, match="no trial of adamw on criteo1tb"):
        make_methods.page(read(tmp_path), STEP_TIMES)


def test_a_trial_that_failed_before_its_first_evaluation_is_a_miss(runs):
    folder = runs / "small" / "study_0" / "wmt_mini_jax" / "trial_1"
    record = json.loads((folder / records.RECORD_FILE).read_text())
    record |= {"status": "failed", "sizes": {}}
    (folder / records.RECORD_FILE).write_text(json.dumps(record))
    (folder / records.EVAL_FILE).unlink()
    text = make_methods.page(read(runs), STEP_TIMES)
    assert "ended early: small/study_0/wmt_mini/trial_1 failed, a miss.\n" in text
    line = "| `small` | 1 of 2 | - | - | - | - | - | 1.10 | 0.25 | 0.25 | 0.25 |\n"
    assert line in text.split("### wmt_mini")[1]


def test_a_trial_that_diverged_after_its_target_is_no_miss(runs):
    folder = runs / "small" / "study_0" / "wmt_mini_jax" / "trial_1"
    record = json.loads((folder / records.RECORD_FILE).read_text())
    records.write_json(folder / records.RECORD_FILE, record | {"status": "diverged"})
    text = make_methods.page(read(runs), STEP_TIMES)
    told = "small/study_0/wmt_mini/trial_1 diverged after its target, which counts"
    assert f"These ended early: {told}.\n" in text
    assert "| `small` | 2 of 2 |" in text.split("### wmt_mini")[1]


def test_masks_have_no_sizes(tmp_path):
    factors = {"adamw": 1.0, "pruned": 1.1}
    write_runs(tmp_path, factors, sizes=dict.fromkeys(factors, DENSE_SIZES))
    text = make_methods.page(read(tmp_path), STEP_TIMES)
    line = next(line for line in text.splitlines() if line.startswith("| `pruned`"))
    assert line.endswith("| - | - | - |")


def test_the_level_is_the_median_of_values_after_half_of_the_steps():
    goal = RULES.goals[FEW]
    trials = [
        SimpleNamespace(
            columns={
                records.GLOBAL_STEP: np.array([0.0, 10.0, 20.0, 30.0, 40.0]),
                goal.column: np.array([9.0, 7.0, value, 4.0, 3.0]),
            },
            times=np.zeros(5),
        )
        for value in (5.0, 6.0, 5.5)
    ]
    assert make_methods.level(trials, goal) == 5.5


def test_the_page_is_what_the_records_say(tmp_path):
    if not make_methods.ARCHIVE.exists():
        pytest.skip("no records are kept yet")
    folder = tmp_path / "records"
    make_methods.packed.unpack(make_methods.ARCHIVE, folder)
    step_times = scoring.load_step_times(make_methods.STEP_TIMES)
    assert make_methods.page(read(folder), step_times) == make_methods.PAGE.read_text()
