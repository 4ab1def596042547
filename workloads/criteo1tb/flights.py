"""Flights out of New York in 2013, the click logs of the mini scale.

Each of 327,346 flights gives two rows: one with the plane that flew it, labelled 1, and
one with the plane of another flight of its carrier, labelled 0. So a model learns which
planes fly where and when, as one of click logs learns who clicks on what; the planes of
label 0 play the part of advertisements that were shown and not clicked. Rows have the
same 40 integers as those of the click logs (see `prepare`) and pass through the same
batches. Whole days are validation or test; a split's planes are its own flights'.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import grain
import numpy as np

from algoperf.data.embedded import load_embedded
from algoperf.data.pipeline import DataOptions
from workloads.criteo1tb import prepare
from workloads.criteo1tb.data import EvalRows, TrainRows

EMBEDDED = Path(__file__).parent / "embedded" / "flights"
HOURS = 366 * 24
# Columns of numbered names, and what the source calls them.
NAMED = {
    "carrier": "carrier",
    "tail": "tailnum",
    "origin": "origin",
    "destination": "dest",
}
WEATHER = (
    *("temperature", "dew_point", "wind_direction", "wind_speed"),
    *("rain", "pressure", "visibility"),
)
PLANE = ("built", "seats", "maker", "model")
INTEGERS = (
    *("minute", "day", "month", "distance", "departures", "built", "seats"),
    *("temperature", "dew_point", "wind_speed", "rain", "pressure", "visibility"),
)
# Each category is a column, or columns together.
CATEGORIES = (
    *(("tail",), ("maker",), ("model",), ("built",), ("seats",)),
    *(("carrier",), ("flight",), ("origin",), ("destination",)),
    *(("hour",), ("weekday",), ("week",), ("month",), ("wind_direction",)),
    *(("carrier", "flight"), ("carrier", "destination"), ("origin", "destination")),
    *(("carrier", "hour"), ("origin", "hour"), ("destination", "hour")),
    *(("carrier", "weekday"), ("weekday", "hour"), ("month", "hour")),
    *(("month", "origin"), ("month", "destination"), ("month", "flight")),
)
EVERY = 10  # of so many days one is validation and one is test
NUM_TRAIN = 2 * 262_494
# Evaluation takes every eighth flight, so that it costs little beside training.
EVAL_EVERY = 8
NUM_EVAL_TRAIN = 2_048
NUM_VALIDATION = 2 * 4_078
NUM_TEST = 2 * 4_029
SHUFFLE_SEED = 1_000
Columns = Mapping[str, np.ndarray]


def split(days: np.ndarray) -> dict[str, np.ndarray]:
    """Returns which flights are in each split, from their days of the year."""
    role = days % EVERY
    validation, test = role == EVERY // 2, role == EVERY - 1
    return {
        "train": np.flatnonzero(~validation & ~test),
        "validation": np.flatnonzero(validation),
        "test": np.flatnonzero(test),
    }


def flights(name: str) -> dict[str, np.ndarray]:
    """Returns the columns of a split's flights, int64."""
    arrays = load_embedded(EMBEDDED)
    weather, planes = arrays.pop("weather"), arrays.pop("planes")
    wanted = split(arrays["day"])[name]
    columns = {key: array[wanted].astype(np.int64) for key, array in arrays.items()}
    day, hour = columns["day"], columns["minute"] // 60
    dates = np.datetime64("2013-01-01") + day
    slot = (columns["origin"] * 366 + day) * 24 + hour
    return {
        **columns,
        "hour": hour,
        "weekday": day % 7,
        "week": day // 7,
        "month": dates.astype("datetime64[M]").astype(np.int64) % 12 + 1,
        "departures": np.bincount(slot)[slot],  # from the airport in that hour
        **_facts(WEATHER, weather[columns["origin"], day * 24 + hour]),
        **_facts(PLANE, planes[columns["tail"]]),
    }


def _facts(names: tuple[str, ...], table: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, table.T.astype(np.int64), strict=True))


def with_another_plane(columns: Columns) -> dict[str, np.ndarray]:
    """Returns the flights, each with the plane of some flight of its carrier.

    Which one follows from the flight's place in the table. It may be the same plane,
    seldom: a carrier has many.
    """
    by_carrier = np.argsort(columns["carrier"], kind="stable")
    counts = np.bincount(columns["carrier"])
    first = np.cumsum(counts) - counts
    carrier = columns["carrier"]
    drawn = mixed(np.arange(len(carrier), dtype=np.uint64)) >> np.uint64(33)
    other = by_carrier[first[carrier] + drawn.astype(np.int64) % counts[carrier]]
    planes = {name: columns[name][other] for name in ("tail", *PLANE)}
    return {**columns, **planes}


def as_rows(columns: Columns, label: int) -> np.ndarray:
    """Returns rows (flights, 40) int32: label, 13 integers, 26 buckets.

    A bucket is a hash of the category's values and of the category's number.
    """
    rows = np.empty((len(columns["day"]), prepare.ROW_INTEGERS), np.int32)
    rows[:, 0] = label
    for place, name in enumerate(INTEGERS, start=1):
        rows[:, place] = columns[name]
    for number, names in enumerate(CATEGORIES):
        key = np.full(len(rows), number, np.uint64)
        for name in names:
            key = mixed(key ^ (columns[name] + 1).astype(np.uint64))
        rows[:, 1 + prepare.NUM_INTEGERS + number] = key >> np.uint64(33)
    return rows


def mixed(key: np.ndarray) -> np.ndarray:
    """Spreads 64-bit keys: the finaliser of SplitMix64 (Steele et al. 2014)."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@functools.cache
def rows_of(name: str) -> np.ndarray:
    """Returns the rows of a split; those of training were shuffled, as click logs are.

    'eval_train' is the first NUM_EVAL_TRAIN of them. Validation and test hold every
    EVAL_EVERY-th flight of their days.
    """
    if name == "eval_train":
        return rows_of("train")[:NUM_EVAL_TRAIN]
    columns = flights(name)
    rows = np.stack([as_rows(columns, 1), as_rows(with_another_plane(columns), 0)], 1)
    if name != "train":
        return rows[::EVAL_EVERY].reshape(-1, prepare.ROW_INTEGERS)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(2 * len(rows))
    return rows.reshape(-1, prepare.ROW_INTEGERS)[order]


def dataset(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    They are described at `data.read`.
    """
    rows = rows_of(split)
    if split == "train":
        return grain.MapDataset.source(TrainRows(rows, batch_size, seed, options))
    return grain.MapDataset.source(EvalRows(rows, batch_size, options))
