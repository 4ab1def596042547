"""Embedded sets: read back as written, or refused."""

import numpy as np
import pytest

from algoperf.data.embedded import load_embedded, read_about, save_embedded
from algoperf.errors import UserError

ARRAYS = {"x": np.arange(12, dtype=np.uint8).reshape(3, 4), "y": np.array([1.5])}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "set"
    save_embedded(path, ARRAYS, {"source": "here", "licence": "none"})
    return path


def test_arrays_are_read_as_they_were_written(path):
    found = load_embedded(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    about = read_about(path)
    assert about["source"] == "here"
    assert about["shapes"] == {"x": [3, 4], "y": [1]}
    assert about["bytes"] == path.with_suffix(".npz.xz").stat().st_size


def test_a_changed_file_is_refused(path):
    packed = path.with_suffix(".npz.xz")
    packed.write_bytes(packed.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"has changed .*reinstall"):
        load_embedded(path)


def test_a_missing_file_is_refused(path):
    path.with_suffix(".npz.xz").unlink()
    with pytest.raises(UserError, match=r"cannot be read .*reinstall"):
        load_embedded(path)


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_broken_description_is_refused(path, text):
    if text is None:
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=r"set.json cannot be read"):
        load_embedded(path)
