"""docs/make_leaderboard.py: records go in and out, and its statistics are right."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts
from mini_runs import RULES, write_runs
from scipy import stats

import scoring
from algoperf import records
from algoperf.errors import UserError
from scoring.step_times import StepTime, StepTimes

DOCS = Path(__file__).resolve().parents[1] / "docs"


gains = scripts.load("docs/gains.py")
packed = scripts.load("docs/packed.py")
leaderboard = scripts.load("docs/make_leaderboard.py")
make_tuned = scripts.load("docs/make_tuned.py")


def test_records_go_in_and_come_out(tmp_path):
    runs = write_runs(tmp_path / "runs", {"adamw": 1, "muon": 0.5})
    first, second = tmp_path / "a.tar.xz", tmp_path / "b.tar.xz"
    assert packed.pack(runs, first) == 18
    packed.unpack(first, tmp_path / "out")
    kept = [p for p in runs.rglob("*") if p.is_file() and p.name != "checkpoint"]
    assert len(kept) == 3 * 18
    for path in kept:
        copy = tmp_path / "out" / path.relative_to(runs)
        assert copy.read_bytes() == path.read_bytes()
    assert not list((tmp_path / "out").rglob("checkpoint"))
    packed.pack(tmp_path / "out", second)
    assert second.read_bytes() == first.read_bytes()


def change(root, name, **facts):
    """Changes the first trial's record of a submission; returns its folder."""
    folder = root / name / "study_0" / f"{RULES.base_workloads[0]}_jax" / "trial_1"
    file = folder / records.RECORD_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return folder


def without_budget(root):
    """Makes all records those of runs without a budget, on a very slow machine."""
    for file in root.rglob(records.RECORD_FILE):
        record = json.loads(file.read_text())
        facts = {"budget_sec": None, "max_steps": 9, "step_hint": 9, "target": {}}
        file.write_text(json.dumps(record | facts))
        rows = records.read_measurements(file.with_name(records.EVAL_FILE))
        for row in rows:
            row[records.SUBMISSION_TIME] *= 1e6
        records.write_measurements(file.with_name(records.EVAL_FILE), rows)


def test_the_page_of_runs_without_a_budget_says_so(tmp_path):
    factors = {"adamw": 1, "nadamw": 0.5}
    root = write_runs(tmp_path, factors)
    assert "budget" not in page_of(root)
    without_budget(root)
    text = page_of(root)
    words = "No time budget applied: trials went on for their step hint, however long"
    assert f".\n{words} that took.\nTimes are" in text
    assert text.count("9 of 9") == 2
    assert "## What the scorer warns of" not in text
    for file in root.rglob(records.RECORD_FILE):
        record = json.loads(file.read_text()) | {"target": {"validation": 0.5}}
        file.write_text(json.dumps(record))
    assert "trials ended at their target, their own plan's end or" in page_of(root)
    change(root, "adamw", max_steps=8)
    text = page_of(root)
    assert "applied: trials had the steps of their run, however long that" in text
    change(root, "adamw", budget_sec=60.0)
    text = page_of(root)
    assert "No time budget applied to 17 of them.\n" in text
    assert "- records of different budget: a time budget (adamw); no time" in text
    with pytest.raises(UserError, match="records of different budget"):
        packed.pack(root, tmp_path / "a.tar.xz")


def test_an_unfinished_trial_is_not_packed(tmp_path):
    runs = write_runs(tmp_path / "runs", {"adamw": 1})
    archive = tmp_path / "a.tar.xz"
    packed.pack(runs, archive)
    before = archive.read_bytes()
    change(runs, "adamw", status="preempted")
    with pytest.raises(UserError, match="1 trials are not at their end, such as adamw"):
        packed.pack(runs, archive)
    assert archive.read_bytes() == before


def test_a_trial_that_cannot_be_read_is_not_left_out_silently(tmp_path):
    runs = write_runs(tmp_path / "runs", {"adamw": 1})
    folder = change(runs, "adamw", status="reached")
    (folder / records.RECORD_FILE).write_text("{")
    with pytest.raises(UserError, match=r"1 trials cannot be read, such as .*adamw"):
        packed.pack(runs, tmp_path / "a.tar.xz")


def test_a_trial_that_failed_before_its_first_evaluation_is_packed(tmp_path):
    runs = write_runs(tmp_path / "runs", {"adamw": 1})
    folder = change(runs, "adamw", status="failed")
    (folder / records.EVAL_FILE).unlink()
    assert packed.pack(runs, tmp_path / "a.tar.xz") == 9
    packed.unpack(tmp_path / "a.tar.xz", tmp_path / "out")
    told = f"adamw/study_0/{RULES.base_workloads[0]}/trial_1 failed, a miss"
    assert f"## What the scorer warns of\n\n- {told}\n" in page_of(tmp_path / "out")


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_trial_that_ended_badly_is_told_of_as_it_is_scored(tmp_path, status):
    first = RULES.base_workloads[0]
    root = write_runs(tmp_path, {"adamw": 1, "lawa": 2}, {("lawa", first)})
    for name in ("adamw", "lawa"):
        change(root, name, status=status)
    text = page_of(root)
    assert f"- adamw/study_0/{first}/trial_1 {status} after its target, which" in text
    assert f"- lawa/study_0/{first}/trial_1 {status}, a miss\n" in text
    assert " | 9 of 9 |" in next(x for x in text.splitlines() if "| adamw |" in x)


def test_no_archive_is_said(tmp_path):
    with pytest.raises(UserError, match="--pack RUNS"):
        packed.unpack(tmp_path / "none.tar.xz", tmp_path)


def board_of(root, **seconds):
    """The board of runs whose steps take 0.1 s, or what is given by name."""
    runs = scoring.read_runs([root])
    times = {
        name: StepTime(seconds.get(name, 0.1), 0.01, "") for name in runs.submissions
    }
    of_all = StepTimes(times, {}, "Abacus, 2 cores")
    return leaderboard.board(runs, RULES, dict.fromkeys(RULES.base_workloads, of_all))


def page_of(root, **seconds):
    return leaderboard.page(board_of(root, **seconds))


def result_of(root):
    return board_of(root).in_time


def rows_of(text):
    """The rows of the table of gains, by submission."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 9 and row[0] != "---"}


def test_the_page(tmp_path):
    factors = {"adamw": 1, "nadamw": 0.5, "shampoo": 0.25, "lawa": 2}
    missed = {("lawa", "ogbg_mini"), ("shampoo", "wmt_mini")}
    root = write_runs(tmp_path, factors, missed)
    text = page_of(root, shampoo=0.2)
    assert "36 trials: one study of one point" in text
    assert "2 cores of an Abacus" in text
    assert "AdamW reaches all targets.\n" in text
    found = rows_of(text)
    assert found.keys() == factors.keys() - {"adamw"} | {"submission"}
    # Eight workloads in a quarter of the steps, which take twice as long; the one that
    # it missed, four times as slow.
    in_time, elsewhere, first, with_misses, in_steps, step, won, lost = found["shampoo"]
    assert (in_time, elsewhere, first) == ("2.00 (8)", "2.00 (6)", "2.00 (8)")
    assert (in_steps, step) == ("4.00 (8)", "2.00")
    assert float(with_misses.split()[0]) == pytest.approx(2 ** (6 / 9), abs=0.01)
    assert (won, lost) == ("0", "1")
    logs = [math.log(0.5)] * 8 + [-math.log(4)]
    value = float(found["lawa"][3].split()[0])
    assert value == pytest.approx(math.exp(np.mean(logs)), rel=0.02)
    assert found["lawa"][3].endswith("; 9)*")
    assert "Submissions: `lawa`, `shampoo`." in text


def test_what_the_reference_misses_is_told(tmp_path):
    root = write_runs(tmp_path, {"adamw": 1, "lawa": 2}, {("adamw", "wmt_mini")})
    goal = RULES.goals["wmt_mini"]
    missed = f"`wmt_mini` ({goal.target / 2:.4g}, where {goal.target:.4g} is asked for)"
    text = page_of(root)
    assert f"AdamW misses {missed}. All rows share its runs" in text
    assert rows_of(text)["lawa"][-2:] == ["1", "0"]


def test_equal_scores_share_a_rank(tmp_path):
    missed = {(name, w) for name in ("lawa", "ema") for w in RULES.base_workloads}
    text = page_of(write_runs(tmp_path, {"adamw": 1, "ema": 1, "lawa": 1}, missed))
    assert "| 2 | ema | 0.00 | 0 of 9 |\n| 2 | lawa | 0.00 | 0 of 9 |\n" in text
    assert rows_of(text)["ema"][3] == "0.25 (9)"


def test_the_first_point_is_apart_from_the_fastest(tmp_path):
    root = write_runs(tmp_path, {"adamw": 1, "lawa": 1})
    for folder in list(root.glob("lawa/study_0/*/trial_1")):
        second = shutil.copytree(folder, folder.with_name("trial_2"))
        rows = records.read_measurements(second / records.EVAL_FILE)
        for row in rows:
            row[records.GLOBAL_STEP] /= 2
        records.write_measurements(second / records.EVAL_FILE, rows)
    found = rows_of(page_of(root))["lawa"]
    assert (found[0], found[2]) == ("2.00 (9)", "1.00 (9)")


def test_the_page_without_adamw_has_no_gains_over_it(tmp_path):
    text = page_of(write_runs(tmp_path, {"nadamw": 1, "muon": 0.5}))
    assert "over AdamW" not in text
    assert "| 1 | muon | 1.00 | 9 of 9 |\n" in text


def test_who_did_not_run_all_workloads_is_not_ranked(tmp_path):
    missed = {("muon", RULES.base_workloads[1])}
    root = write_runs(tmp_path, {"adamw": 1, "nadamw": 0.5, "muon": 0.5}, missed)
    for name in RULES.base_workloads[2:]:
        shutil.rmtree(root / "muon" / "study_0" / f"{name}_jax")
    text = page_of(root)
    assert "18 trials: " in text
    assert "muon |" not in text
    first, second = RULES.base_workloads[:2]
    words = f"`muon` ran on `{first}`, `{second}` alone, hence is not ranked; it"
    assert f"{words} reaches 1 of 2.\n" in text
    # Nor is it compared with, or a part of the comparison with the field.
    root = write_runs(tmp_path / "other", {"adamw": 1, "muon": 0.5})
    shutil.rmtree(root / "adamw" / "study_0" / f"{first}_jax")
    assert "over AdamW" not in page_of(root)


def test_the_points_were_tuned_where_the_page_says():
    goals = make_tuned.read_tunings()["adamw"].goals
    assert sorted(goals) == sorted(leaderboard.TUNED_ON)


def test_a_gain_with_its_interval_by_hand(tmp_path):
    result = result_of(write_runs(tmp_path, {"adamw": 1, "muon": 0.5}))
    changed = np.array([0.3, -0.3, *[0.0] * 7])
    result.times[1] *= np.exp(changed)
    half = stats.t.ppf(0.975, 8) * math.sqrt(2 * 0.3**2 / 8) / 3
    words = f"2.00 ({2 * math.exp(-half):.2f} to {2 * math.exp(half):.2f}; 9)"
    found = gains.over(result, "adamw", result.workloads)
    assert {name: str(gain) for name, gain in found.items()} == {"muon": words}
    wanted = stats.ttest_1samp(np.log(2) - changed, 0).pvalue
    assert found["muon"].p_value == pytest.approx(wanted)
    # What both miss says nothing of either, or counts as equal.
    result.times[:, 2] = math.inf
    logs = np.log(2) + np.array([0.3, -0.3, *[0.0] * 6])
    gain = gains.over(result, "adamw", result.workloads)["muon"]
    assert (gain.value, gain.count) == (pytest.approx(math.exp(logs.mean())), 8)
    gain = gains.over(result, "adamw", result.workloads, with_misses=True)["muon"]
    wanted = np.mean([*logs, 0.0])
    assert (gain.value, gain.count) == (pytest.approx(math.exp(wanted)), 9)
    # What one misses is left out, or counts as much as the rules let it.
    result.times[1, 3] = math.inf
    gain = gains.over(result, "adamw", result.workloads)["muon"]
    assert gain.count == 7
    gain = gains.over(result, "adamw", result.workloads, with_misses=True)["muon"]
    wanted = np.mean([*logs[:-1], 0.0, -math.log(RULES.r_max)])
    assert gain.value == pytest.approx(math.exp(wanted))


def test_what_does_not_vary_has_no_interval():
    gain = gains.gain(np.full(9, -math.log(4)))
    assert str(gain) == "0.25 (9)"
    assert math.isnan(gain.p_value)
    assert str(gains.gain(np.log([1.5, 6.0]))) == "3.00 (2)"
    assert gains.gain(np.ones(1)) is None
    assert gains.sure({"sgd": gain}) == set()


def test_what_is_sure_is_that_of_holm():
    def found(*p_values):
        return {str(k): gains.Gain(1.0, 0.9, 1.1, 9, p) for k, p in enumerate(p_values)}

    # Against 0.05 / 4, / 3, / 2 and / 1.
    assert gains.sure(found(0.04, 0.012, 0.9, 0.016)) == {"1", "3"}
    assert gains.sure(found(0.013, 0.013, 0.013, 0.013)) == set()
    assert gains.sure(found(0.012, 0.016, 0.024, 0.04)) == set("0123")
    assert gains.sure(found(0.04)) == {"0"}
    # One of which nothing is known was looked at too.
    assert gains.sure(found(0.03, math.nan)) == set()
    assert gains.sure(found(0.02, math.nan)) == {"0"}


def test_the_figure_shows_each_submission_and_repeats(tmp_path):
    by_name = {
        "muon": gains.Gain(1.5, 1.2, 1.9, 9, 0.1),
        "sgd": gains.Gain(0.3, math.nan, math.nan, 9, math.nan),
    }
    for file in ("a.svg", "b.svg"):
        leaderboard.draw({"in time": by_name, "in steps": by_name}, tmp_path / file)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    for name in ("muon", "sgd", "in time", "in steps"):
        assert f"<!-- {name} -->" in text


def test_log_ratios_of_misses():
    times = np.array([[1.0, 1, np.inf, np.inf], [2, np.inf, 1, np.inf], [9, 0.1, 5, 1]])
    got = gains.log_ratios(times, 0, r_max=4)
    wanted = np.log(
        [[1, 1, math.nan, math.nan], [2, 4, 0.25, math.nan], [4, *[0.25] * 3]]
    )
    np.testing.assert_allclose(got, wanted)


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for size in (3, 10, 40):
        x, y = rng.integers(0, 5, (2, size)).astype(float)
        wanted = stats.spearmanr(x, y).statistic
        assert gains.spearman(x, y) == pytest.approx(wanted)
    assert math.isnan(gains.spearman(np.ones(3), np.arange(3.0)))


def test_correlation_of_a_known_order():
    same = np.arange(5.0)[:, None] + np.linspace(0, 0.5, 8)
    found = gains.correlations(same, same**3)
    for value in found.values():
        assert (value.rho, value.low, value.high) == pytest.approx((1, 1, 1))
    assert [value.count for value in found.values()] == [40, 5]
    opposite = gains.correlations(same, -same)["the mean"]
    assert opposite.rho == pytest.approx(-1)
    # Without an order its interval holds 0.
    noise = np.random.default_rng(1).normal(size=(2, 5, 8))
    chance = gains.correlations(*noise)["each workload"]
    assert chance.low < 0 < chance.high


def test_missing_cells_are_left_out():
    ours = np.array([[0.0, 1.0, np.nan], [1.0, 2.0, 5.0], [2.0, 3.0, 6.0]])
    found = gains.correlations(ours, np.nan_to_num(ours))
    assert found["each workload"].count == 8
    assert found["each workload"].rho == pytest.approx(1)


def test_the_field_agrees_with_itself():
    """Published times taken as ours correlate perfectly."""
    field = scoring.load_published("v0.5")
    workloads = [w.removesuffix("_mini") for w in RULES.base_workloads]
    shared = [w for w in workloads if w in field.times["documented"]["baseline"]]
    times = np.full((len(leaderboard.COUNTERPARTS), len(workloads)), np.inf)
    for s, theirs in enumerate(leaderboard.COUNTERPARTS.values()):
        for w, workload in enumerate(workloads):
            if workload in shared:
                times[s, w] = field.times["documented"][theirs][workload]

    class Result:
        submissions = tuple(leaderboard.COUNTERPARTS)
        workloads = RULES.base_workloads
        rules = RULES

    Result.times = times
    found = leaderboard.field_correlations(Result)
    assert [value.rho for value in found.values()] == [pytest.approx(1)] * 2
    # imagenet_resnet was missed by all six.
    assert found["each workload"].count == 5 * (len(shared) - 1)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_leaderboard_draws_the_page_of_the_committed_records(tmp_path):
    (tmp_path / "docs").symlink_to(DOCS)
    options = [f"--file={DOCS.parent / 'Makefile'}", "--old-file=.venv/dev"]
    subprocess.run(
        ["make", *options, f"BIN={Path(sys.executable).parent}", "leaderboard"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    page = (tmp_path / "runs" / "leaderboard.html").read_text()
    found = scoring.read_runs([tmp_path / "runs" / "leaderboard"])
    names = {trial.submission for trial in found.trials}
    assert len(names) >= 5
    assert all(name in page for name in names)
