"""Rows of examples of different sizes: greedy, complete, by seed and number."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf.data.packing import Packing, greedy_starts, ranges

SIZES = st.lists(
    st.tuples(st.integers(0, 10), st.integers(1, 7)), min_size=1, max_size=60
)
LIMITS = np.array([10, 7])


def _one_by_one(sizes, limits):
    starts, room = [], None
    for i, size in enumerate(sizes):
        if room is None or (size > room).any():
            starts.append(i)
            room = limits.copy()
        room = room - size
    return starts


@given(sizes=SIZES)
def test_greedy_is_what_one_gets_one_by_one(sizes):
    sizes = np.array(sizes)
    assert greedy_starts(sizes, LIMITS).tolist() == _one_by_one(sizes, LIMITS)


def test_an_example_larger_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="example 1 is larger"):
        greedy_starts(np.array([[1], [11]]), np.array([10]))


@given(sizes=SIZES, seed=st.integers(0, 1000))
def test_each_epoch_holds_each_example_once_and_rows_fit(sizes, seed):
    sizes = np.array(sizes)
    packing = Packing(sizes, LIMITS, seed)
    seen, number = [], 0
    while len(seen) < 3 * len(sizes):
        row = packing.row(number)
        assert len(row)
        assert (sizes[row].sum(axis=0) <= LIMITS).all()
        seen += row.tolist()
        number += 1
    epochs = np.array(seen).reshape(3, -1)  # no row reaches into the next epoch
    assert (np.sort(epochs, axis=1) == np.arange(len(sizes))).all()


def test_any_row_can_be_asked_for_first_and_by_workers():
    sizes = np.random.default_rng(0).integers(1, 6, (50, 2))
    one = Packing(sizes, LIMITS, 3)
    rows = [one.row(i).tolist() for i in range(100)]
    other = pickle.loads(pickle.dumps(Packing(sizes, LIMITS, 3)))
    assert other.row(97).tolist() == rows[97]
    assert other.row(2).tolist() == rows[2]
    assert pickle.loads(pickle.dumps(one)).row(40).tolist() == rows[40]
    assert Packing(sizes, LIMITS, 4).row(0).tolist() != rows[0]
    first = np.concatenate(rows[:8])
    assert not np.array_equal(np.sort(first), first)


def test_without_a_seed_the_order_is_kept():
    packing = Packing(np.array([[4], [4], [4], [9]]), np.array([10]), None)
    assert packing.num_rows() == 3
    assert [packing.row(i).tolist() for i in range(3)] == [[0, 1], [2], [3]]


def test_ranges():
    got = ranges(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert got.tolist() == [5, 6, 9, 10, 11]


def test_threads_that_ask_at_once_get_the_same_rows():
    sizes = np.random.default_rng(0).integers(1, 6, (400, 2))
    expected = Packing(sizes, LIMITS, 3)
    rows = [expected.row(i).tolist() for i in range(2000)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                packing = Packing(sizes, LIMITS, 3)
                found = pool.map(packing.row, range(2000))
                assert [row.tolist() for row in found] == rows
    finally:
        sys.setswitchinterval(interval)
