"""Arrays on disk stay there when they are sent to another process."""

import pickle

import cloudpickle
import numpy as np
import pytest

from algoperf.data.mapped import Mapped, mapped

NUMBERS = np.arange(600_000, dtype=np.int32).reshape(-1, 40)


@pytest.fixture
def array(tmp_path):
    NUMBERS.tofile(tmp_path / "numbers.bin")
    return mapped(tmp_path / "numbers.bin", np.int32, NUMBERS.shape)


PARTS = {
    "whole": lambda a: a,
    "rows": lambda a: a[100:9000],
    "every third": lambda a: a[::3][:1000],
    "backwards": lambda a: a[::-1],
    "column": lambda a: a[:, 7],
    "turned": lambda a: a.T,
    "part of a part": lambda a: a[100:9000][5:50, 3:9],
    "none": lambda a: a[:0],
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("package", [pickle, cloudpickle])
def test_a_part_is_pickled_as_its_place(array, part, package):
    assert isinstance(part(array), Mapped)
    pickled = package.dumps(part(array))
    assert len(pickled) < 1000
    np.testing.assert_array_equal(package.loads(pickled), part(NUMBERS))
    with pytest.raises(ValueError, match="read-only"):
        part(array)[...] = 0


@pytest.mark.parametrize("shape", [(15_000, 40), (600_000,), (5, 3)])
def test_an_array_behind_a_header_is_pickled_as_its_place(tmp_path, shape):
    numbers = NUMBERS.ravel()[: np.prod(shape)].reshape(shape)
    np.save(tmp_path / "numbers.npy", numbers)
    array = mapped(tmp_path / "numbers.npy")
    pickled = pickle.dumps(array[2:])
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled), numbers[2:])


def test_what_is_computed_from_an_array_is_pickled_whole(array):
    rows = array[[3, 1, 2]]
    for computed in (rows, array[:10] + 1, array.sum(0)):
        copy = pickle.loads(pickle.dumps(computed))
        np.testing.assert_array_equal(copy, computed)
    np.testing.assert_array_equal(rows, NUMBERS[[3, 1, 2]])
