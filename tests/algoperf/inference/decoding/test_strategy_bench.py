"""The bench of strategies, with a clock that lies as we please; its table, its picture.

No JAX: what is measured is a function of the test.
"""

import math
import xml.etree.ElementTree

import numpy as np
import pytest
import scipy.stats

from algoperf.errors import UserError
from algoperf.inference.decoding import strategy_bench, strategy_report
from algoperf.inference.decoding.speculation import Counts
from algoperf.inference.decoding.strategy_bench import PLAIN, Cell

CELLS = strategy_bench.cells(["draft"], [1, 4], [0.5], True, True)
TAKES = {
    "plain": 8.0,
    "draft alone": 1.0,
    "draft length 1": 6.0,
    "draft length 4": 4.0,
    "draft threshold 0.5": 3.0,
    "draft head 0.5": 2.5,
    "draft oracle": 2.0,
}
COUNTS = Counts(drafted=40, verified=10, accepted=30, unused=5)


class _Machine:
    """A clock, and strategies that take their time; rounds can be slow."""

    def __init__(self, slow=()):
        self.now, self.asked, self.slow = 0.0, [], set(slow)

    def ask(self, cell):
        self.asked.append(cell.name)
        # The first round only compiles.
        turn = (len(self.asked) - 1) // len(CELLS)
        slowness = 3.0 if turn in self.slow else 1.0
        self.now += slowness * TAKES[cell.name]
        return None if cell.kind in ("plain", "alone") else COUNTS

    def measure(self, rounds, done=(), seconds=1e9):
        saved = []
        found = strategy_bench.measure(
            self.ask, CELLS, rounds, seconds, lambda: self.now, list(done), saved.append
        )
        return *found, saved


def test_every_cell_is_named():
    assert {cell.name for cell in CELLS} == set(TAKES)
    without = strategy_bench.cells(["a", "b"], [2], [0.5], False, False)
    names = ["plain", "a alone", "a length 2", "a threshold 0.5", "b alone"]
    assert [cell.name for cell in without][:5] == names


def test_rounds_take_turns_and_are_saved():
    machine = _Machine()
    rounds, counts, saved = machine.measure(4)
    assert rounds == [TAKES] * 4
    assert counts["draft oracle"] == COUNTS
    assert counts["plain"] is None
    assert len(saved) == 4
    turns = [machine.asked[i : i + 7] for i in range(7, 35, 7)]
    assert all(set(turn) == set(TAKES) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_an_interrupted_bench_goes_on():
    rounds, *_ = _Machine().measure(3)
    machine = _Machine()
    again, _, saved = machine.measure(5, done=rounds)
    assert len(again) == 5
    assert len(saved) == 2
    assert len(machine.asked) == 3 * len(CELLS)  # compiling, and two rounds
    assert len(_Machine().measure(3, done=again)[0]) == 5
    assert len(_Machine().measure(50, seconds=0.0)[0]) == 3


def test_a_slow_round_moves_no_figure():
    """Medians of five, one of them three times as slow."""
    rounds, counts, _ = _Machine(slow={2}).measure(5)
    rows = strategy_bench.summarise(CELLS, rounds, counts, 80, 0.1)
    by_name = {row.cell.name: row for row in rows}
    assert by_name["plain"].tokens_per_second == pytest.approx(10.0)
    assert by_name["draft oracle"].speed_up == pytest.approx(4.0)
    # The speed-up is of the same rounds, slow for both: it is known well.
    assert by_name["draft oracle"].speed_up_low == pytest.approx(4.0)
    assert by_name["draft oracle"].speed_up_high == pytest.approx(4.0)
    assert by_name["draft oracle"].tokens_per_second_low < 40.0


def test_rates_follow_from_counts():
    rounds, counts, _ = _Machine().measure(3)
    rows = strategy_bench.summarise(CELLS, rounds, counts, 80, 0.1)
    row = next(row for row in rows if row.cell.name == "draft head 0.5")
    assert row.acceptance == pytest.approx(30 / 40)
    assert row.tokens_per_round == pytest.approx(40 / 10)
    assert row.discard_rate == pytest.approx(10 / 40)
    assert row.verification_rate == pytest.approx(10 / 40)
    # A draft token takes 1/80 s, one of the target 8/80 s.
    assert row.modelled_speed_up == pytest.approx(40 * 8 / (45 * 1 + 10 * 8))
    assert row.speed_up_at_ratio == pytest.approx(40 / (45 * 0.1 + 10))
    assert math.isnan(rows[0].acceptance)


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    times = rng.lognormal(size=400)
    rounds = [{"plain": float(t)} for t in times]
    (row,) = strategy_bench.summarise([PLAIN], rounds, {"plain": None}, 100, 0.1)
    want = scipy.stats.bootstrap(
        (times,), lambda x, axis: 100 / np.median(x, axis=axis), method="percentile",
        n_resamples=4000, rng=rng,
    ).confidence_interval  # fmt: skip
    assert row.tokens_per_second == pytest.approx(100 / np.median(times))
    assert row.tokens_per_second_low == pytest.approx(want.low, rel=0.03)
    assert row.tokens_per_second_high == pytest.approx(want.high, rel=0.03)


def test_the_report_holds_every_row():
    rounds, counts, _ = _Machine().measure(3)
    rows = strategy_bench.summarise(CELLS, rounds, counts, 80, 0.1)
    table = [strategy_report.values(row) for row in rows]
    assert [line[:3] for line in table[2:4]] == [
        ["draft", "length", 1.0],
        ["draft", "length", 4.0],
    ]
    assert table[3][strategy_report.COLUMNS.index("speed_up")] == pytest.approx(2.0)
    page = strategy_report.markdown(rows, "A title", ["a fact"])
    assert "- a fact" in page
    assert "| draft length 4 | 20 (20 to 20) | 2.00 (2.00 to 2.00) | 0.750 |" in page
    root = xml.etree.ElementTree.fromstring(strategy_report.svg(rows, "A & title"))
    assert root.get("aria-label") == "A & title"
    texts = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert set(TAKES) <= texts


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(UserError, match="rounds give no interval"):
        _Machine().measure(2)
    with pytest.raises(UserError, match="other strategies"):
        _Machine().measure(3, done=[{"plain": 1.0}])
    assert Cell("length", 4.0, "draft").name == "draft length 4"
