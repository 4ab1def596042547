"""Runs joined with profiles: by hand, and against brute force."""

import csv
import dataclasses
import io
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from comparison import NAME, SETTING, write_profile, write_run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from algoperf import records
from algoperf.errors import UserError
from algoperf.inference.timing import profiles
from algoperf.inference.tradeoffs import pareto, pareto_plot, pareto_text, pareto_views
from algoperf.records import Direction

REQUEST = pareto.Request(prompt=16, output=5, number=1000.0, dollars_per_hour=3.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two submissions, two seeds of the first, served in two ways."""
    out = tmp_path_factory.mktemp("pareto")
    first = write_run(out / "runs", "adamw", 1, (90.0, 30.0, 18.0))
    second = write_run(out / "runs", "adamw", 2, (90.0, 19.0, 16.0))
    third = write_run(out / "runs", "muon", 1, (90.0, 24.0))
    for trial, quality in ((first, 18.0), (second, 16.0), (third, 24.0)):
        name = f"{trial['submission']}{trial['trial']}"
        write_profile(
            out / "profiles" / f"{name}_float32.json",
            "float32",
            0.010,
            0.001,
            trial=trial,
            quality=quality,
            weight_bytes=1000,
            step_bytes=1200.0,
        )
        write_profile(
            out / "profiles" / f"{name}_nvfp4.json",
            "nvfp4",
            0.020,
            0.003,
            trial=trial,
            quality=quality + 1,
            weight_bytes=200,
            step_bytes=1500.0,
        )
    return out


@pytest.fixture(scope="module")
def joined(folder):
    runs, notes = pareto.read_runs([folder / "runs"])
    assert not notes
    return pareto.joined(runs, read_profiles(folder / "profiles"), REQUEST)


def read_profiles(folder):
    return {path.name: profiles.load_profile(path) for path in folder.glob("*.json")}


def test_rows_are_what_the_files_say(joined):
    rows, notes = joined
    assert not notes
    assert len(rows) == 6
    (row,) = (
        r for r in rows if (r.submission, r.trial) == ("adamw", 2) and r.quality < 17
    )
    assert row.recipe == "float32"
    assert row.train_seconds == 10.0
    assert row.seconds_to_target == 5.0
    assert row.request_seconds == pytest.approx(0.014)
    assert row.weight_bytes == 1000
    assert row.request_dollars == pytest.approx(0.014 * 3.6 / 3600)
    assert row.total_dollars == pytest.approx((10.0 + 1000 * 0.014) * 3.6 / 3600)
    assert all(math.isinf(r.seconds_to_target) for r in rows if r.submission == "muon")


def test_every_device_of_a_training_run_is_paid(folder, tmp_path):
    write_run(tmp_path, "adamw", 1, (90.0, 30.0, 18.0), devices=8)
    runs, _ = pareto.read_runs([tmp_path])
    fresh = write_profile(tmp_path / "f.json", "float32", 0.010, 0.001)
    ((row,), _) = pareto.joined(runs, {"f": fresh}, REQUEST)
    assert row.train_seconds == 10.0
    assert row.total_dollars == pytest.approx((8 * 10.0 + 1000 * 0.014) * 3.6 / 3600)


def test_points_are_medians_over_runs(joined):
    points = pareto.points(joined[0], Direction.MINIMIZE)
    found = {point.name: point for point in points}
    assert sorted(found) == [
        "adamw, float32", "adamw, nvfp4", "muon, float32", "muon, nvfp4"
    ]  # fmt: skip
    adamw = found["adamw, float32"]
    assert adamw.num_runs == 2
    assert (adamw.best, adamw.worst) == (16.0, 18.0)
    assert adamw.values["quality"] == 17.0
    assert adamw.values["seconds_to_target"] == 7.5
    assert found["muon, nvfp4"].values["weight_bytes"] == 200


def test_ways_of_serving_are_not_runs(folder, tmp_path):
    """A point for each setting; a run that was profiled twice is one run."""
    runs, _ = pareto.read_runs([folder / "runs"])
    run, other = runs[:2]  # two seeds of adamw
    ways = (
        ("float32", {}, "float32"),
        ("float32", {"batch_size": 8}, "float32, batch 8"),
        ("float32", {"capacity": 64}, "float32, cache 64"),
        ("float32", {"parallel": 2}, "float32, 2 devices"),
        ("nvfp4", {}, "nvfp4"),
        ("nvfp4", {"dtype": "bfloat16"}, "nvfp4, bfloat16"),
        ("bfloat16 + rank 4", {"dtype": "bfloat16"}, "bfloat16 + rank 4"),
    )
    found = {}
    for number, (recipe, setting, _) in enumerate(ways):
        found[recipe + str(setting)] = write_profile(
            tmp_path / f"{number}.json",
            recipe,
            0.010 * (number + 1),
            0.001,
            setting=dataclasses.replace(SETTING, **setting),
            trial=dict(run.identity),
            quality=18.0,
        )
    for name, trial, seconds in (("again", run, 0.030), ("other", other, 0.060)):
        found[name] = write_profile(
            tmp_path / f"{name}.json", "float32", seconds, 0.001,
            trial=dict(trial.identity), quality=18.0,
        )  # fmt: skip
    rows, _ = pareto.joined([run, other], found, REQUEST)
    points = {p.recipe: p for p in pareto.points(rows, Direction.MINIMIZE)}
    assert set(points) == {name for _, _, name in ways}
    assert points["float32"].num_runs == 2
    want = ((0.010 + 0.030) / 2 + 0.060) / 2 + 4 * 0.001
    assert points["float32"].values["request_seconds"] == pytest.approx(want)
    assert points["float32, batch 8"].num_runs == 1
    one = points["float32, batch 8"].values["request_seconds"]
    assert one == pytest.approx((0.020 + 4 * 0.001) / 8)


def test_machines_are_not_mixed(folder, tmp_path):
    """Two seeds, profiled on two machines, and the first one's workload on the other.

    No median is of both machines; an own profile stands for the workload's on its
    machine alone.
    """
    runs, _ = pareto.read_runs([folder / "runs"])
    found = {}
    for name, cpu, seconds, served in (
        (
            "first",
            "Some CPU",
            0.010,
            {"trial": dict(runs[0].identity), "quality": 18.0},
        ),
        (
            "second",
            "Another",
            0.030,
            {"trial": dict(runs[1].identity), "quality": 16.0},
        ),
        ("fresh", "Another", 0.050, {}),
    ):
        found[name] = write_profile(
            tmp_path / f"{name}.json", "float32", seconds, 0.0, cpu=cpu, **served
        )
    rows, _ = pareto.joined(runs[:2], found, REQUEST)
    points = pareto.points(rows, Direction.MINIMIZE)
    seconds = {p.name: (p.num_runs, p.values["request_seconds"]) for p in points}
    assert seconds == {
        "adamw, float32, on 1 core of Some CPU": (1, pytest.approx(0.010)),
        "adamw, float32, on 1 core of Another": (2, pytest.approx(0.040)),
    }
    rows, _ = pareto.joined(runs[:1], {"first": found["first"]}, REQUEST)
    assert rows[0].recipe == "float32"


def test_views_by_hand(joined):
    points = pareto.points(joined[0], Direction.MINIMIZE)
    found = {v.axis: v for v in pareto_views.views(points, Direction.MINIMIZE, 20.0)}

    def names(axis, kind):
        return [point.name for point in getattr(found[axis], kind)]

    assert set(found) == set(pareto_views.AXES)
    assert names("train_seconds", "frontier") == ["muon, float32", "adamw, float32"]
    assert names("weight_bytes", "frontier") == ["adamw, nvfp4", "adamw, float32"]
    assert names("request_seconds", "frontier") == ["adamw, float32"]
    assert found["weight_bytes"].budget == 600
    assert names("weight_bytes", "best") == ["adamw, nvfp4"]
    assert found["weight_bytes"].goal == 20.0
    assert names("weight_bytes", "cheapest") == ["adamw, nvfp4"]
    assert names("request_seconds", "cheapest") == ["adamw, float32"]


def test_budgets_and_goals_can_be_given(joined):
    points = pareto.points(joined[0], Direction.MINIMIZE)
    views = pareto_views.views(
        points,
        Direction.MINIMIZE,
        20.0,
        {"train_seconds": 5.0, "weight_bytes": 1},
        24.0,
    )
    found = {view.axis: view for view in views}
    assert [p.name for p in found["train_seconds"].best] == ["muon, float32"]
    assert not found["weight_bytes"].best
    assert [p.name for p in found["train_seconds"].cheapest] == ["muon, float32"]
    with pytest.raises(UserError, match="did you mean weight_bytes"):
        pareto_views.views(points, Direction.MINIMIZE, 20.0, {"weight_byte": 5.0})


def test_without_a_reached_target_the_goal_is_the_median(joined):
    points = pareto.points(joined[0], Direction.MINIMIZE)  # 17, 18, 24, 25
    (goal,) = {v.goal for v in pareto_views.views(points, Direction.MINIMIZE, 5.0)}
    assert goal == 24.0


def _point(number, cost, quality):
    values = dict.fromkeys(pareto.NUMBERS, math.nan)
    values |= {"quality": quality, "train_seconds": cost}
    return pareto.Point(f"s{number}", "float32", 1, quality, quality, values)


numbers = st.integers(0, 6).map(float)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8),
    st.sampled_from(list(Direction)),
    numbers,
    numbers,
)
def test_views_against_brute_force(pairs, direction, budget, goal):
    points = [_point(n, cost, q) for n, (cost, q) in enumerate(pairs)]
    (view,) = pareto_views.views(
        points, direction, None, {"train_seconds": budget}, goal
    )
    sign = 1 if direction is Direction.MAXIMIZE else -1
    places = [(p.values["train_seconds"], sign * p.values["quality"]) for p in points]

    def is_beaten(place):
        return any(
            other != place and other[0] <= place[0] and other[1] >= place[1]
            for other in places
        )

    kept = [p for p, place in zip(points, places, strict=True) if not is_beaten(place)]
    assert sorted(p.submission for p in view.frontier) == sorted(
        p.submission for p in kept
    )
    within = [q for cost, q in places if cost <= budget]
    assert {sign * p.values["quality"] for p in view.best} == (
        {max(within)} if within else set()
    )
    enough = [cost for cost, q in places if q >= sign * goal]
    assert {p.values["train_seconds"] for p in view.cheapest} == (
        {min(enough)} if enough else set()
    )


def test_a_profile_of_the_workload_serves_every_run_in_float32(folder, tmp_path):
    """Any weights have its speed; the quality is that of the record."""
    runs, _ = pareto.read_runs([folder / "runs"])
    fresh = {
        "f": write_profile(tmp_path / "f.json", "float32", 0.01, 0.001),
        "b": write_profile(tmp_path / "b.json", "bfloat16", 0.01, 0.001),
    }
    rows, notes = pareto.joined(runs, fresh, REQUEST)
    assert [row.quality for row in rows] == [18.0, 16.0, 24.0]
    assert all(math.isnan(row.weight_bytes) for row in rows)
    assert notes == ["b: of none of these runs"]
    # A profile of the run's own is in its place, but in no other setting's.
    fresh["8"] = write_profile(
        tmp_path / "8.json", "float32", 0.01, 0.001,
        setting=dataclasses.replace(SETTING, batch_size=8),
    )  # fmt: skip
    fresh["own"] = write_profile(
        tmp_path / "o.json", "float32", 1.0, 1.0, trial=dict(runs[0].identity),
        quality=18.0,
    )  # fmt: skip
    rows, _ = pareto.joined(runs[:1], fresh, REQUEST)
    assert sorted(row.profile for row in rows) == ["8", "own"]


def test_what_cannot_be_joined_is_named(folder, tmp_path):
    runs, _ = pareto.read_runs([folder / "runs"])
    trial = dict(runs[0].identity)
    known = write_profile(
        tmp_path / "a.json", "float32", 1.0, 1.0, trial=trial, quality=3.0
    )
    blind = write_profile(tmp_path / "b.json", "int8", 1.0, 1.0, trial=trial)
    other = write_profile(
        tmp_path / "c.json", "float32", 1.0, 1.0, trial=trial | {"trial_seed": 1}
    )
    rows, notes = pareto.joined(runs, {"a": known, "b": blind, "c": other}, REQUEST)
    assert len(rows) == 1
    assert (
        notes[2]
        == "b: the quality of int8 is not known; profile it without --noevaluate"
    )
    assert notes[3] == "c: of none of these runs"
    assert all("no profile; measure one" in note for note in notes[:2])
    with pytest.raises(UserError, match="no profile belongs"):
        pareto.joined(runs, {"c": other}, REQUEST)


def test_trials_without_a_result_are_left_out(tmp_path):
    write_run(tmp_path, "adamw", 1, (9.0, 8.0))
    write_run(tmp_path, "adamw", 2, (9.0, 8.0), status="running")
    write_run(tmp_path, "adamw", 3, (9.0, math.nan), status="diverged")
    runs, notes = pareto.read_runs([tmp_path, tmp_path])
    assert [run.trial for run in runs] == [1]
    assert [note.partition(": ")[2] for note in notes] == [
        "the trial is running", "its last validation/ppl is no number"
    ]  # fmt: skip


def test_times_of_two_machines_do_not_compare(folder, tmp_path):
    write_run(tmp_path, "adamw", 1, (9.0, 8.0), cpu="Another CPU")
    found = read_profiles(folder / "profiles")
    runs, _ = pareto.read_runs([folder / "runs", tmp_path])
    with pytest.raises(UserError, match="trained on different hardware"):
        pareto.check_comparable(runs, found)
    runs, _ = pareto.read_runs([folder / "runs"])
    pareto.check_comparable(runs, found)
    other = write_profile(tmp_path / "p.json", "int8", 1.0, 1.0, cpu="Another CPU")
    with pytest.raises(UserError, match="profiled on different hardware"):
        pareto.check_comparable(runs, found | {"p": other})


def test_a_run_that_went_on_elsewhere_compares_with_neither(folder, tmp_path):
    write_run(tmp_path, "adamw", 1, (9.0, 8.0))
    (path,) = tmp_path.rglob(records.RECORD_FILE)
    record = json.loads(path.read_text())
    gpu = {"platform": "gpu", "device_kind": "H100", "device_count": 2}
    part = {"devices": gpu, "host": record["host"]}
    path.write_text(json.dumps(record | {"earlier_environments": [part, part]}))
    runs, _ = pareto.read_runs([folder / "runs", tmp_path])
    with pytest.raises(UserError, match=r"\(2 x H100, then Some CPU; Some CPU\)"):
        pareto.check_comparable(runs, read_profiles(folder / "profiles"))


def test_a_broken_record_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is no folder of runs"):
        pareto.read_runs([tmp_path / "none"])
    with pytest.raises(UserError, match="no trial with a result"):
        pareto.read_runs([tmp_path])
    write_run(tmp_path, "adamw", 1, (9.0,))
    (path,) = tmp_path.rglob("record.json")
    path.write_text(path.read_text().replace("trial_seed", "seed"))
    with pytest.raises(UserError, match="lacks what a run needs"):
        pareto.read_runs([tmp_path])


@pytest.fixture(scope="module")
def comparison(joined):
    points = pareto.points(joined[0], Direction.MINIMIZE)
    views = pareto_views.views(points, Direction.MINIMIZE, 20.0)
    return pareto_text.Comparison(
        NAME, "ppl", "minimize", 20.0, tuple(points), tuple(views)
    )


def test_csv_holds_every_row(joined):
    text = pareto_text.csv_text(joined[0])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6
    assert {row["seconds_to_target"] for row in rows} == {"", "5.0", "10.0"}
    assert float(rows[0]["request_seconds"]) == joined[0][0].request_seconds


def test_markdown_and_headline(comparison):
    assert comparison.headline == (
        "At a ppl of 20 or better training takes least with adamw (10 s), serving "
        "takes least with adamw, float32 (14 ms)."
    )
    text = pareto_text.markdown([comparison], ["a note"])
    assert "| adamw | nvfp4 | 2 | 18 | 17 to 19 | 10 s |" in text
    assert "| weights | 600 B | 18: adamw, nvfp4 | 200 B: adamw, nvfp4 |" in text
    assert "| missed |" in text  # muon does not reach the target
    assert text.rstrip().endswith("- a note")


def test_the_picture_has_every_point_in_its_panel(comparison):
    root = ET.fromstring(pareto_plot.svg_file([comparison, comparison]))
    marks = [el for el in root.iter() if el.get("class") == "point"]
    drawn = ("train_seconds", "request_seconds", "weight_bytes", "total_dollars")
    assert len(marks) == 2 * len(drawn) * len(comparison.points)
    width = float(root.get("width"))
    places = [re.findall(r"[\d.]+", el.get("transform")) for el in marks]
    for x, y in places:
        assert 0 <= float(x) <= width
        assert 34 <= float(y) <= 310 - 46
    # Better is up: less perplexity.
    panel = {
        el[0].text.partition(": ")[0]: float(place[1])
        for el, place in zip(marks[: len(comparison.points)], places, strict=False)
    }
    assert panel["adamw, float32"] < panel["adamw, nvfp4"] < panel["muon, float32"]


@given(st.floats(1e-9, 1e9), st.floats(6.0, 1e12))
@example(999999999.9999999, 6.0)
@settings(max_examples=60, deadline=None)
def test_ticks_hold_the_values(low, factor):
    high = low * factor
    for ticks in (pareto_plot._log_ticks([low, high]), pareto_plot._ticks(low, high)):
        assert ticks[0] <= low * (1 + 1e-9)
        assert ticks[-1] >= high * (1 - 1e-9)
        assert 2 <= len(ticks) <= 13
        assert all(a < b for a, b in itertools.pairwise(ticks))
