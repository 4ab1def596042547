"""The embedded flights: splits, the planes of label 0, rows."""

import csv
import io
import zipfile

import numpy as np
import pytest

from algoperf.data.embedded import load_embedded
from algoperf.data.pipeline import ALL_HERE
from workloads.criteo1tb import flights, make_flights, prepare
from workloads.criteo1tb.workload import MINI

SPLITS = {
    "train": flights.NUM_TRAIN,
    "validation": flights.NUM_VALIDATION,
    "test": flights.NUM_TEST,
}
DAY = 1 + flights.INTEGERS.index("day")


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_rows_have_the_plane_that_flew(split):
    rows = flights.rows_of(split)
    assert rows.shape == (SPLITS[split], prepare.ROW_INTEGERS)
    assert rows[:, 0].mean() == 0.5


def test_no_row_and_no_day_is_in_two_splits():
    days = [set(flights.rows_of(split)[:, DAY].tolist()) for split in SPLITS]
    assert sum(map(len, days)) == len(set().union(*days)) == 365
    rows = [{row.tobytes() for row in flights.rows_of(split)} for split in SPLITS]
    assert sum(map(len, rows)) == len(set().union(*rows))


def test_the_other_plane_is_one_of_the_carrier_and_brings_its_facts():
    columns = flights.flights("validation")
    other = flights.with_another_plane(columns)
    changed = {"tail", *flights.PLANE}
    for name, column in columns.items():
        assert np.array_equal(column, other[name]) == (name not in changed)
    fleets: dict[int, set[int]] = {}
    for carrier, tail in zip(columns["carrier"], columns["tail"], strict=True):
        fleets.setdefault(int(carrier), set()).add(int(tail))
    for carrier, tail in zip(other["carrier"], other["tail"], strict=True):
        assert int(tail) in fleets[int(carrier)]
    assert (other["tail"] == columns["tail"]).mean() < 0.05
    facts = np.stack([columns[name] for name in flights.PLANE])
    of_tail = dict(zip(columns["tail"].tolist(), facts.T.tolist(), strict=True))
    drawn = np.stack([other[name] for name in flights.PLANE]).T.tolist()
    assert drawn == [of_tail[tail] for tail in other["tail"].tolist()]


def test_planes_alone_tell_nothing():
    """A plane is as often drawn as it flies, so its number has no odds."""
    columns = flights.flights("train")
    other = flights.with_another_plane(columns)
    size = columns["tail"].max() + 1
    flown = np.bincount(columns["tail"], minlength=size)
    drawn = np.bincount(other["tail"], minlength=size)
    # A count of Poisson's law has this spread.
    assert np.abs((drawn - flown) / np.sqrt(flown + 1)).mean() < 1.0


def test_eval_train_is_part_of_train():
    train = {row.tobytes() for row in flights.rows_of("train")}
    part = flights.rows_of("eval_train")
    assert len(part) == MINI.num_eval_train_examples
    assert all(row.tobytes() in train for row in part)


def test_equal_categories_have_equal_buckets_and_others_do_not():
    columns = flights.flights("test")
    rows = flights.as_rows(columns, 1)
    for number, names in enumerate(flights.CATEGORIES):
        buckets = rows[:, 1 + prepare.NUM_INTEGERS + number]
        keys = list(zip(*(columns[name].tolist() for name in names), strict=True))
        pairs = set(zip(keys, buckets.tolist(), strict=True))
        assert len(pairs) == len(set(keys))
        assert len({bucket for _, bucket in pairs}) == len(set(keys))


def test_one_value_has_a_bucket_for_each_category():
    rows = flights.as_rows({name: np.array([3]) for name in flights.flights("test")}, 0)
    assert len(set(rows[0, 1 + prepare.NUM_INTEGERS :])) == prepare.NUM_CATEGORIES


def test_batches_are_those_of_the_click_logs():
    batch = MINI.dataset("train", 64, seed=1)[5]
    assert batch["inputs"]["dense"].shape == (64, prepare.NUM_INTEGERS)
    assert batch["inputs"]["ids"].shape == (64, prepare.NUM_CATEGORIES)
    assert batch["inputs"]["ids"].min() >= 0
    assert np.isfinite(batch["inputs"]["dense"]).all()
    again = flights.dataset("train", 64, 1, ALL_HERE)[5]
    assert np.array_equal(batch["inputs"]["ids"], again["inputs"]["ids"])


def test_month_hour_and_weekday_are_those_of_the_calendar():
    columns = flights.flights("train")
    wanted = np.flatnonzero(columns["day"] == 31)[0]  # the first of February, a Friday
    assert columns["month"][wanted] == 2
    first = np.flatnonzero(columns["day"] == 3)[0]  # the fourth of January, too
    assert columns["weekday"][wanted] == columns["weekday"][first]
    assert columns["hour"][wanted] == columns["minute"][wanted] // 60


def _csv(**columns):
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def test_build_script(tmp_path, monkeypatch):
    text = _csv(
        month=[2, 1, 1],
        day=[1, 1, 1],
        sched_dep_time=[5, 1330, 1000],
        arr_delay=[-3, 7, "NA"],
        carrier=["B", "A", "A"],
        flight=[10, 20, 30],
        tailnum=["N2", "N1", "NA"],
        origin=["JFK", "EWR", "JFK"],
        dest=["X", "Y", "Z"],
        distance=[100, 200, 300],
    )
    with zipfile.ZipFile(tmp_path / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", text)
    facts = {key: [50.4] for key in ("temp", "dewp", "wind_dir", "wind_speed")}
    facts |= {"precip": [0.03], "pressure": ["NA"], "visib": [2.5]}
    weather = _csv(origin=["EWR"], month=[1], day=[1], hour=[13], **facts)
    (tmp_path / "weather.csv").write_text(weather)
    planes = _csv(
        tailnum=["N1"], year=["NA"], seats=[55], manufacturer=["M"], model=["T"]
    )
    (tmp_path / "planes.csv").write_text(planes)
    monkeypatch.setattr(flights, "EMBEDDED", tmp_path / "flights")
    monkeypatch.setattr("sys.argv", ["make_flights", str(tmp_path)])
    make_flights.main()
    made = load_embedded(tmp_path / "flights")
    assert made["day"].tolist() == [0, 31]  # in order, the cancelled one is gone
    assert made["minute"].tolist() == [13 * 60 + 30, 5]
    assert made["flight"].tolist() == [20, 10]
    assert made["weather"][0, 13].tolist() == [50, 50, 5, 50, 3, -1, 25]
    assert (made["weather"][1] == -1).all()
    tails = made["tail"].tolist()
    assert made["planes"][tails[0]].tolist() == [-1, 55, 0, 0]
    assert made["planes"][tails[1]].tolist() == [-1, -1, -1, -1]
