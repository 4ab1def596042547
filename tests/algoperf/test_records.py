"""Names, columns and files of a record: written whole, read with exact complaints."""

import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import Direction, RecordError, Status

GOOD = {"schema_version": records.SCHEMA_VERSION, "status": "completed"}


@given(st.lists(st.floats(), min_size=1))
def test_measurements_are_read_as_they_were_written(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    rows = [{"global_step": i, "loss": v} for i, v in enumerate(values)]
    records.write_measurements(path, rows)
    found = records.read_measurements(path, required=("loss",))
    assert [row["loss"] for row in found] == pytest.approx(values, rel=0, nan_ok=True)


def test_columns_are_the_sorted_union_and_gaps_are_left_out(tmp_path):
    path = tmp_path / "rows.csv"
    records.write_measurements(path, [{"b": 1, "a": 2}, {"c": 3}])
    assert path.read_text() == "a,b,c\n2,1,\n,,3\n"
    assert records.read_measurements(path, ()) == [{"a": 2.0, "b": 1.0}, {"c": 3.0}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing"),
        (b"", "is empty"),
        (b"global_step\n1\n", "lacks the column 'accumulated_submission_time'"),
        (b"global_step,accumulated_submission_time\n1\n", "line 2: 1 cells"),
        (b"global_step,accumulated_submission_time\n1,2\n1,x\n", "line 3: .*'x'"),
        (b"\xff\xfe\n", "cannot be read"),
    ],
)
def test_broken_measurements_are_named(tmp_path, content, says):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordError, match=says):
        records.read_measurements(path)


def test_json_has_no_nan_and_no_tuple(tmp_path):
    value = {"a": math.nan, "b": (1.5, -math.inf), 3: Status.FAILED}
    records.write_json(tmp_path / "x.json", value)
    expected = {"a": None, "b": [1.5, None], "3": "failed"}
    assert json.loads((tmp_path / "x.json").read_text()) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is missing"),
        ("", "cannot be read"),
        ('{"schema_version": 1', "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        (json.dumps({**GOOD, "status": "happy"}), "cannot be read"),
        (json.dumps({**GOOD, "schema_version": 99}), "has schema version 99"),
    ],
)
def test_a_broken_record_is_named(tmp_path, text, says):
    if text is not None:
        (tmp_path / records.RECORD_FILE).write_text(text)
    with pytest.raises(RecordError, match=says):
        records.read_record(tmp_path)


def test_a_record_is_read_with_its_status(tmp_path):
    records.write_json(tmp_path / records.RECORD_FILE, {**GOOD, "seeds": [1]})
    record = records.read_record(tmp_path)
    assert record["status"] is Status.COMPLETED
    assert record["seeds"] == [1]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_harms_nothing(tmp_path, monkeypatch, function):
    path = tmp_path / "record.json"
    records.write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, function, full)
    with pytest.raises(UserError, match=r"No space left on device.*unharmed"):
        records.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_reads_sees_a_whole_file(tmp_path):
    path = tmp_path / "x.json"
    records.write_json(path, ["0" * 5000])
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            records.write_json(path, [str(number % 10) * 5000])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            (text,) = json.loads(path.read_text())
            assert text == text[0] * 5000
    finally:
        stop.set()
        writer.join()


def test_only_running_and_preempted_trials_go_on():
    open_ended = {status for status in Status if not status.is_final}
    assert open_ended == {Status.RUNNING, Status.PREEMPTED}


def test_reaching_includes_the_target_and_never_nan():
    assert records.reaches(0.9, 0.9, Direction.MAXIMIZE)
    assert not records.reaches(0.89, 0.9, Direction.MAXIMIZE)
    assert records.reaches(0.1, 0.1, Direction.MINIMIZE)
    assert not records.reaches(0.11, 0.1, Direction.MINIMIZE)
    assert not any(records.reaches(math.nan, 0.5, direction) for direction in Direction)


def test_the_folder_has_the_official_form(tmp_path):
    folder = records.trial_folder(tmp_path, "adamw", 2, "imagenet_resnet_mini", 5)
    wanted = "adamw/study_2/imagenet_resnet_mini_jax/trial_5"
    assert folder == tmp_path / wanted
