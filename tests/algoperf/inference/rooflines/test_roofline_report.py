"""Rows, tables and pictures of ideal and measured time, from kernels known by hand."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from algoperf.inference.rooflines import roofline, roofline_plot, roofline_report
from algoperf.inference.rooflines.peak_rates import Benchmark
from algoperf.inference.rooflines.roofline import Peak
from algoperf.inference.timing import profiler
from algoperf.inference.timing.hlo import Kernel
from algoperf.inference.timing.programs import Program

PEAK = Peak(flops=100.0, bytes_per_second=10.0)
# 10 s of FLOPs (2 s of bytes); 5 s of bytes (0.1 s of FLOPs), twice.
KERNELS = (Kernel("product", "dot", 1000, 20), Kernel("sum", "add", 10, 50, repeats=2))
PROGRAM = Program("tiny", "forward", 4, None, KERNELS, tuple)
ROW = roofline_report.row(PROGRAM, PEAK, (60.0, 40.0, 41.0))


def test_a_row_by_hand():
    assert ROW.ideal_seconds == 10 + 2 * 5
    assert ROW.one_roofline_seconds == pytest.approx(2 + 2 * 5)
    assert ROW.compute_bound_share == 0.5
    assert (ROW.flops, ROW.bytes, ROW.kernels) == (1020, 120, 3)
    assert ROW.measured_seconds == 41
    assert ROW.efficiency == pytest.approx(20 / 41)
    roofline_report.check([ROW])


def test_what_was_not_run_has_no_efficiency():
    row = roofline_report.row(PROGRAM, PEAK)
    assert row.measured_seconds is None
    assert row.efficiency is None
    assert roofline_report.table_row(row)[-2:] == ["-", "-"]
    roofline_report.check([row])


def test_faster_than_ideal_is_refused():
    row = roofline_report.row(PROGRAM, PEAK, (10.0,) * 3)
    with pytest.raises(UserError, match=r"tiny forward \(2.00\).*too low"):
        roofline_report.check([ROW, row])


def test_csv_says_what_rows_do():
    (found,) = csv.DictReader(io.StringIO(roofline_report.to_csv([ROW])))
    wanted = dataclasses.asdict(ROW)
    assert list(found) == list(wanted)
    assert float(found["efficiency"]) == ROW.efficiency


def test_markdown_has_a_line_for_each_row_and_level():
    peak = Peak(100.0, 10.0, ((1024.0, 30.0), (2.0**20, 10.0)))
    text = roofline_report.to_markdown([ROW, ROW], peak, {"cpu": "abacus"})
    assert text.count("| tiny | forward | 4 |") == 2
    assert "- cpu: abacus" in text
    assert "| 1 KiB or more |" in text
    assert "| 1 MiB or more |" in text


def test_programs_and_peak_rates_are_measured_in_turns():
    seen = []
    now = 0.0

    def takes(name, seconds):
        def run(*_):
            nonlocal now
            seen.append(name)
            now += seconds

        return run

    @dataclasses.dataclass(frozen=True)
    class Fake:
        runner: object

    program = Fake(lambda: takes("program", 2.0))
    benchmark = Benchmark("product", 1, 1.0, takes("product", 0.004), ())
    times, peaks = roofline_report.measure(
        [program], [benchmark], profiler.Plan(5, 5, 1e9), clock=lambda: now
    )
    assert times == [pytest.approx((2.0,) * 5)]
    assert peaks == [pytest.approx((0.004,) * 5)]  # the mean of three: 0.01 s at least
    turns = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
    assert turns.count("program") >= 3


def test_levels_must_ascend():
    with pytest.raises(UserError, match="ascend"):
        Peak(1.0, 1.0, ((2.0, 1.0), (1.0, 2.0)))


def test_columns_and_the_water_on_them_are_the_ideal_time():
    found = roofline_plot.columns(KERNELS, PEAK)
    assert [(c.name, c.seconds, c.height) for c in found] == [
        ("product", 2.0, 5.0),
        ("sum", 10.0, pytest.approx(0.02)),
    ]
    assert sum(c.area for c in found) == ROW.ideal_seconds


KERNEL = st.builds(
    Kernel,
    name=st.just("k"),
    kind=st.just("dot"),
    flops=st.floats(0, 1e6),
    bytes=st.floats(1, 1e6),
    repeats=st.integers(1, 5),
)


@settings(max_examples=30)
@given(st.lists(KERNEL, min_size=1, max_size=30), st.floats(0, 1e5))
def test_joining_narrow_columns_keeps_the_area(kernels, least):
    peak = Peak(100.0, 10.0, ((10.0, 40.0), (1000.0, 10.0)))
    found = roofline_plot.columns(kernels, peak)
    joined = roofline_plot.merged(found, least)
    ideal = roofline.ideal_seconds(kernels, peak)
    for one in (found, joined):
        assert sum(column.area for column in one) == pytest.approx(ideal)
    assert len(joined) <= len(found)


def circles(svg):
    root = ElementTree.fromstring(svg)
    return [float(e.get("cx")) for e in root.iter() if e.tag.endswith("circle")]


def test_the_gap_is_one_over_the_efficiency():
    """On the axis, a factor is a distance, whatever the time."""
    twice = dataclasses.replace(ROW, ideal_seconds=2e-3, measured_seconds=2e-2)
    other = dataclasses.replace(ROW, ideal_seconds=5e-4, measured_seconds=5e-3)
    one, two, three, four = circles(roofline_plot.efficiency_gap_svg([twice, other]))
    assert two - one == pytest.approx(four - three, abs=0.2)
    assert two - one > 50


def test_pictures_are_xml_whatever_the_names():
    kernels = [Kernel("<&>", "dot", 1000, 20), Kernel("free", "add", 5, 0)]
    svg = roofline_plot.waterline_svg("a < b", kernels, PEAK)
    assert "a &lt; b" in svg
    ElementTree.fromstring(svg)
    assert circles(roofline_plot.efficiency_gap_svg([])) == []
