"""Figures and tables for papers: whole files, right numbers, no stray markup."""

import dataclasses
import itertools
import re
import struct
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from markdown_it import MarkdownIt

from algoperf import cli
from algoperf.errors import UserError
from scoring import assess, figures, load_rules, paper, read_runs, score_runs
from scoring.read import Runs
from scoring.time_to_target import TimeKind, Timing
from scoring.uncertainty import estimate_uncertainty

RULES = load_rules("mini_fast")
EVIL = "a_$x^2_&%#{}~\\"


@pytest.fixture
def scored(mini_runs):
    runs = mini_runs({EVIL: (10, 20), "mo_mentum": (15, None), "slow": (70, 21)})
    return assess(runs, score_runs(runs, RULES), resamples=0)


def test_figures_are_png_and_pdf_of_one_page_with_fonts(tmp_path, scored):
    written = paper.write_figures(tmp_path, scored)
    assert [path.name for path in written] == [
        f"{name}.{kind}"
        for name in (
            "performance_profile",
            "times_to_target",
            *(f"curves_{workload}" for workload in RULES.workloads),
        )
        for kind in ("png", "pdf")
    ]
    for path in written:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
            width, height = struct.unpack(">II", content[16:24])
            # 300 dots per inch; a curve fits a column.
            inches = paper.TEXT if "times" in path.name else paper.COLUMN
            assert width == pytest.approx(300 * inches, abs=1)
            assert height > 300
        else:
            assert content.startswith(b"%PDF-")
            assert len(re.findall(rb"/Type /Page\b", content)) == 1
            # TrueType, embedded, and no bitmap of the figure.
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
            assert b"/Subtype /Image" not in content


@pytest.mark.parametrize("name", ["n" * 200, "名前", "_hidden", "$\\frac{1}$"])
def test_names_of_any_kind_are_drawn(tmp_path, mini_runs, name):
    runs = mini_runs({name: (10, 20), "b": (15, 5)})
    paper.write_figures(tmp_path, assess(runs, score_runs(runs, RULES)))


def test_the_same_records_give_the_same_figures(tmp_path, scored):
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = paper.write_figures(tmp_path / name, scored)
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_figures_without_matplotlib_are_a_user_error(tmp_path, scored, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="figures need matplotlib"):
        paper.write_figures(tmp_path, scored)


def test_figures_into_a_missing_folder_are_a_user_error(tmp_path, scored):
    with pytest.raises(UserError, match="cannot write"):
        paper.write_figures(tmp_path / "none", scored)


def _plain_latex(text: str) -> str:
    """What LaTeX would set, by a reading of its own."""
    words = {
        "textbackslash": "\\",
        "textasciitilde": "~",
        "textasciicircum": "^",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
        "textquotedbl": '"',
    }
    token = re.compile(r"\\([a-z]+)\{\}|\\([&%$#_{}])|([^\\&%$#_{}~^])", re.S)
    out, at = "", 0
    while at < len(text):
        match = token.match(text, at)
        assert match, f"a bare special character: {text[at:]!r}"
        out += words[match[1]] if match[1] else match[2] or match[3]
        at = match.end()
    return out


@hypothesis.given(st.text(max_size=30).filter(lambda text: "†" not in text))
def test_latex_sets_any_text_as_it_stands(text):
    assert _plain_latex(paper.escape_latex(text)) == text


def test_latex_table_has_every_number(scored):
    result = scored.result
    lines = paper.latex_table(result).splitlines()
    assert [line for line in lines if line.startswith(("\\begin", "\\end"))] == [
        "\\begin{tabular}{lrrrr}",
        "\\end{tabular}",
    ]
    rules = [line for line in lines if line.endswith("rule")]
    assert rules == ["\\toprule", "\\midrule", "\\bottomrule"]
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix("\\\\"))]
        for line in lines
        if line.endswith(" \\\\")
    ]
    header, first, *_ = rows
    assert {len(row) for row in rows} == {5}
    assert header[3] == "\\shortstack[r]{imagenet\\_\\\\resnet\\_\\\\mini}"
    assert _plain_latex(first[0]) == EVIL
    assert first[1:3] == ["1.0000", "2/2"]
    assert first[3:] == ["\\textbf{10.0}", "\\textbf{20.0}"]
    by_name = {_plain_latex(row[0]): row for row in rows[1:]}
    assert by_name["mo_mentum"][3:] == ["15.0", "--"]
    assert by_name["slow"][3:] == ["70.0$^{\\dagger}$", "21.0"]


def _parsed_markdown(text: str) -> list[list[str]]:
    """The cells of the table, without marks, by a parser of Markdown."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    cells = [
        "".join(child.content for child in token.children or ())
        for before, token in itertools.pairwise(tokens)
        if before.type in ("th_open", "td_open")
    ]
    columns = sum(token.type == "th_open" for token in tokens)
    assert columns
    return [cells[k : k + columns] for k in range(0, len(cells), columns)]


def test_markdown_parses_to_the_right_numbers(tmp_path, scored):
    result = scored.result
    uncertainty = dataclasses.replace(
        estimate_uncertainty(result),
        confidence=0.9,
        score_low_S=np.where(result.scores > 0.9, np.nan, result.scores * 0.9),
        score_high_S=np.where(result.scores > 0.9, np.nan, result.scores * 1.1),
    )
    found = dataclasses.replace(scored, uncertainty=uncertainty)
    latex, markdown = paper.write_tables(tmp_path, found)
    assert "90 \\% interval" in latex.read_text("utf-8")
    header, *rows = _parsed_markdown(markdown.read_text("utf-8"))
    assert header[:4] == ["submission", "score", "90 % interval", "targets"]
    assert header[4:] == list(result.workloads)
    assert len(rows) == 3
    for row, s in zip(rows, result.ranking, strict=True):
        assert row[0] == result.submissions[s]
        assert float(row[1]) == pytest.approx(result.scores[s], abs=1e-4)
        if result.scores[s] > 0.9:
            assert row[2] == "unknown"
        else:
            low, high = map(float, row[2].split(" to "))
            assert low == pytest.approx(0.9 * result.scores[s], abs=1e-3)
            assert high == pytest.approx(1.1 * result.scores[s], abs=1e-3)
        for text, time in zip(row[4:], result.times[s], strict=True):
            shown = np.inf if text == "miss" else float(text.removesuffix(" †"))
            assert shown == time


@hypothesis.given(st.text("ab_*`|\\<>[]()#+!~&{}", min_size=1, max_size=20))
def test_markdown_shows_any_name_as_it_stands(name):
    table = f"| x |\n| - |\n| n{paper.escape_markdown(name)}n |\n"
    assert _parsed_markdown(table)[1] == [f"n{name}n"]


def test_score_writes_figures_and_tables(tmp_path, write_trial, capsys):
    write_trial(tmp_path / "runs")
    arguments = ["score", str(tmp_path / "runs"), "--benchmark", "mini_fast"]
    figures, tables = str(tmp_path / "a" / "b"), str(tmp_path / "c")
    assert cli.main([*arguments, "--figures", figures, "--tables", tables]) == 0
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert {"performance_profile.pdf", "times_to_target.png"} < names
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "scores.tex",
        "scores.md",
    }
    assert "scores.tex" in capsys.readouterr().out


@pytest.mark.parametrize(("mode", "seconds"), [("documented", 10), ("official", 15)])
def test_curves_are_of_the_trial_that_the_score_counts(make_trial, mode, seconds):
    workload = RULES.base_workloads[0]
    trials = (
        make_trial(times=[1, 10], values=[0.1, 0.9]),
        make_trial(trial=2, times=[15], values=[0.9]),
    )
    result = score_runs(Runs(trials=trials, skipped=()), RULES, mode=mode)
    assert result.times[0, 0] == seconds
    figure = paper._curves(workload, trials, result, figures.styles(result))
    curve, _target = figure.axes[0].get_lines()
    assert curve.get_xdata()[-1] == seconds


def test_a_trial_that_never_evaluates_gives_no_curve(tmp_path, write_trial):
    write_trial(tmp_path / "runs", times=[], values=[], status="failed", message="oom")
    runs = read_runs([tmp_path / "runs"])
    files = paper.write_figures(tmp_path, assess(runs, score_runs(runs, RULES)))
    assert not any(path.name.startswith("curves") for path in files)


def test_another_time_is_named_in_tables_and_figures(tmp_path, mini_runs):
    runs = mini_runs({"a": (10, 20), "b": (15, 5)})
    result = score_runs(runs, RULES, timing=Timing(kind=TimeKind.STEPS))
    found = assess(runs, result)
    paper.write_figures(tmp_path, found)
    latex, markdown = paper.write_tables(tmp_path, found)
    assert "% time to target in steps" in latex.read_text("utf-8")
    assert "Time to target in steps." in markdown.read_text("utf-8")
