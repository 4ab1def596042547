"""Figures and tables for papers: PNG and PDF, LaTeX and Markdown.

Colours and marks are those of the page. Widths are those of a two-column paper: a curve
fits one column, the map of times the whole text. Fonts in PDF are embedded as TrueType,
so that text stays text. Matplotlib is needed for figures alone, and imported then.

Dimension key: S submissions, B base workloads.
"""

import functools
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.errors import UserError
from algoperf.records import write_bytes, write_text
from scoring import figures, page_data, words
from scoring.assessment import Assessment
from scoring.page_html import Style
from scoring.read import Trial
from scoring.score import Result
from scoring.time_to_target import TimeKind, evaluation_times, first_reached
from scoring.uncertainty import Uncertainty

COLUMN = 3.35  # inches, of a two-column paper
TEXT = 6.9
LONGEST = 48  # characters of a name in a figure
_SETTINGS: Any = {
    "pdf.fonttype": 42,  # TrueType, that any reader of PDF can search and edit
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dfe3ea",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
    "hatch.color": "#c9cfd9",
}
_DASHES: Mapping[str, Any] = {
    "solid": "-",
    "dash": (0, (4, 1.6)),
    "dot": (0, (1, 1.3)),
    "dashdot": (0, (5, 1.5, 1, 1.5)),
    "longdash": (0, (8, 2)),
}


def write_figures(folder: Path, assessment: Assessment) -> list[Path]:
    """Writes each figure as PNG and PDF.

    That are `performance_profile`, `times_to_target` and, for each workload with
    evaluations, `curves_<workload>`: the trial that counts of each study.

    Returns:
      The files, in this order.

    Raises:
      UserError: matplotlib is missing, or a file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "figures need matplotlib, which is not installed: pip install matplotlib"
        ) from error
    result, rules = assessment.result, assessment.rules
    style = figures.styles(result)
    drawings = {
        "performance_profile": functools.partial(_profile, result, style),
        "times_to_target": functools.partial(_heat_map, result),
    }
    for workload in rules.workloads:
        trials = [
            trial
            for trial in assessment.runs.trials
            if trial.workload == workload and trial.times.size
        ]
        if trials:
            drawings[f"curves_{_file_name(workload)}"] = functools.partial(
                _curves, workload, trials, result, style
            )
    written = []
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Names in a script that the font lacks show as boxes; there is no better font.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for name, draw in drawings.items():
            figure = draw()
            for kind in ("png", "pdf"):
                path = folder / f"{name}.{kind}"
                write_bytes(path, _encoded(figure, kind))
                written.append(path)
    return written


def _encoded(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    # No date: the same records give the same bytes.
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=300, metadata=metadata)
    return buffer.getvalue()


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _text(value: object) -> str:
    """Returns text in which matplotlib sees no formula, of a length that fits."""
    text = str(value)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
    return text.replace("$", r"\$")


def _look(look: Mapping[str, str]) -> dict[str, Any]:
    return {"color": look["color"], "linestyle": _DASHES[look["dash"]]}


def _axes(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.add_subplot()


def _legend(axes: Any, style: Style, names: Sequence[str]) -> None:
    """Puts the legend below the axes, in the order of the scores."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linewidth=1.4, **_look(style[name])) for name in names]
    axes.figure.legend(
        lines,
        [_text(name) for name in names],
        loc="outside lower center",
        ncols=_legend_columns(names),
        frameon=False,
        handlelength=2.6,
        columnspacing=1.0,
    )


def _legend_columns(names: Sequence[str]) -> int:
    """Returns how many names stand side by side in a column of a paper."""
    widest = max(map(len, names), default=0)
    return min(3 if widest <= 12 else 2 if widest <= 24 else 1, max(len(names), 1))


def _height(names: Sequence[str]) -> float:
    """Returns inches for axes and the legend below."""
    return 2.2 + 0.14 * math.ceil(len(names) / _legend_columns(names))


def _profile(result: Result, style: Style) -> Any:
    axes = _axes(COLUMN, _height(list(style)))
    taus, rho = result.profile()
    for s in reversed(result.ranking):  # the best on top
        look = _look(style[result.submissions[s]])
        axes.step(taus, rho[s], where="post", linewidth=1.4, clip_on=False, **look)
    axes.set_xlim(1, result.rules.r_max)
    axes.set_ylim(0, 1)
    axes.set_xlabel("time, as a multiple of the best")
    axes.set_ylabel("share of workloads")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    _legend(axes, style, list(style))
    return axes.figure


def _curves(
    workload: str, trials: Sequence[Trial], result: Result, style: Style
) -> Any:
    goal, kind = result.rules.goals[workload], result.timing.kind
    scale, label = _abscissa(trials, kind)
    best = page_data.best_of_studies(trials, goal, result.mode, result.timing)
    shown = [t for t in trials if t in best and goal.column in t.columns]
    names = [name for name in style if any(t.submission == name for t in shown)]
    axes = _axes(COLUMN, _height(names))
    for trial in shown:
        look = _look(style[trial.submission])
        times_E = evaluation_times(trial, kind) / scale
        values_E = trial.columns[goal.column]
        axes.plot(times_E, values_E, linewidth=0.8, alpha=0.85, **look)
        hit = first_reached(trial, goal, kind)
        if hit is not None:
            dot = {"color": look["color"], "edgecolor": "white", "linewidth": 0.4}
            axes.scatter(times_E[hit], values_E[hit], s=14, zorder=3, **dot)
    axes.axhline(goal.target, color="#1c2330", linestyle=(0, (4, 2)), linewidth=0.8)
    _scale(axes, figures.log_axis(shown, goal))
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.set_ylabel(_text(goal.metric))
    axes.set_title(f"{_text(workload)}\n{_text(goal)}", loc="left")
    _legend(axes, style, names)
    return axes.figure


def _abscissa(trials: Sequence[Trial], kind: TimeKind) -> tuple[float, str]:
    """Returns what times are divided by, and the label of the axis with its unit."""
    if kind is TimeKind.STEPS:
        return 1.0, kind.label
    longest = max(figures.last(evaluation_times(trial, kind)) for trial in trials)
    seconds, unit = figures.time_unit(longest)
    return seconds, f"{kind.label} ({unit})"


def _scale(axes: Any, axis: Mapping[str, Any]) -> None:
    """Gives the y axis the range and the ticks that the page gives it."""
    if not axis:
        return
    low, high = (10**power for power in axis["range"])
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = [tick for tick in axis.get("tickvals", ()) if low <= tick <= high]
    if ticks:
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks([], minor=True)


def _heat_map(result: Result) -> Any:
    rows, columns = len(result.submissions), len(result.workloads)
    axes = _axes(TEXT, 0.75 + 0.3 * rows)
    for row, s in enumerate(result.ranking):
        for w in range(columns):
            _heat_cell(axes, result, row, s, w)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    names = [_text(words.label(result, s)) for s in result.ranking]
    axes.set_yticks(np.arange(rows) + 0.5, names)
    labels = [_text(name).replace("_", "_\n") for name in result.workloads]
    axes.set_xticks(np.arange(columns) + 0.5, labels)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    notes = [f"{result.timing}, and how many times the best", *words.footnotes(result)]
    axes.set_xlabel("\n".join(notes), loc="left", color="#566071", fontsize=6.5)
    return axes.figure


def _heat_cell(axes: Any, result: Result, row: int, s: int, w: int) -> None:
    from matplotlib.patches import Rectangle

    counts, ratio = result.counts[s, w], float(result.ratios[s, w])
    text, ink, weight = words.format_time(result, s, w), "#1c2330", "normal"
    face, hatch = "#ffffff", None
    if not counts:
        ink, hatch = "#566071", "/////"
    elif ratio == 1:
        face, ink, weight = figures.BEST, "#ffffff", "bold"
    else:
        face = figures.heat_color(ratio, result.rules.r_max)
    if counts:
        text += f"\n{figures.TIMES_SIGN}{ratio:.2f}"
    box = Rectangle((w, row), 1, 1, facecolor=face, edgecolor="white", linewidth=1.2)
    axes.add_patch(box)
    if hatch:
        axes.add_patch(
            Rectangle(
                (w + 0.02, row + 0.05),
                0.96,
                0.9,
                facecolor="none",
                edgecolor="#dfe3ea",
                hatch=hatch,
                linewidth=0,
            )
        )
    place = {"ha": "center", "va": "center", "linespacing": 1.05}
    axes.text(w + 0.5, row + 0.5, text, color=ink, weight=weight, fontsize=6.5, **place)


def write_tables(folder: Path, assessment: Assessment) -> list[Path]:
    """Writes `scores.tex` (for the package booktabs) and `scores.md`.

    Raises:
      UserError: a file cannot be written.
    """
    result, uncertainty = assessment.result, assessment.uncertainty
    latex, markdown = folder / "scores.tex", folder / "scores.md"
    write_text(latex, latex_table(result, uncertainty))
    write_text(markdown, markdown_table(result, uncertainty))
    return [latex, markdown]


def _rows(result: Result, uncertainty: Uncertainty | None) -> list[list[str]]:
    """Returns the cells before the times, best submission first."""
    rows = []
    for s in result.ranking:
        row = [words.label(result, s), f"{result.scores[s]:.4f}"]
        if uncertainty is not None:
            low, high = uncertainty.score_low_S[s], uncertainty.score_high_S[s]
            row.append(words.format_interval(low, high))
        rows.append([*row, f"{int(result.counts[s].sum())}/{len(result.workloads)}"])
    return rows


def _header(uncertainty: Uncertainty | None) -> list[str]:
    interval = []
    if uncertainty is not None:
        interval = [f"{words.percent(uncertainty.confidence)} interval"]
    return ["submission", "score", *interval, "targets"]


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    words.NOT_COUNTED: r"$^{\dagger}$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Returns text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex_table(result: Result, uncertainty: Uncertainty | None = None) -> str:
    """Returns a tabular of scores and times to target; bold is the best time."""

    def stacked(name: str) -> str:
        parts = escape_latex(name).replace(r"\_", r"\_\\")
        return rf"\shortstack[r]{{{parts}}}"

    header = [escape_latex(name) for name in _header(uncertainty)]
    header += [stacked(name) for name in result.workloads]
    lines = [" & ".join(header) + r" \\", r"\midrule"]
    for s, row in zip(result.ranking, _rows(result, uncertainty), strict=True):
        cells = [escape_latex(text) for text in row]
        for w in range(len(result.workloads)):
            text = escape_latex(words.format_time(result, s, w))
            text = text.replace(" ", "").replace("miss", "--")
            cells.append(rf"\textbf{{{text}}}" if result.ratios[s, w] == 1 else text)
        lines.append(" & ".join(cells) + r" \\")
    notes = [f"time to target in {result.timing}", *words.footnotes(result)]
    return "\n".join(
        [
            rf"% AlgoPerf scores, rules {escape_latex(result.rules.name)}. Needs",
            r"% \usepackage{booktabs}; in a narrow column also \small or \resizebox.",
            *(f"% {escape_latex(note)}" for note in notes),
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def escape_markdown(text: str) -> str:
    """Returns text that Markdown shows as it stands, also in a table."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", text)


def markdown_table(result: Result, uncertainty: Uncertainty | None = None) -> str:
    """Returns a table of scores and times to target; bold is the best time."""
    header = [*_header(uncertainty), *result.workloads]
    lines = [[escape_markdown(name) for name in header]]
    lines.append([":---", *["---:"] * (len(header) - 1)])
    for s, row in zip(result.ranking, _rows(result, uncertainty), strict=True):
        cells = [escape_markdown(text) for text in row]
        for w in range(len(result.workloads)):
            text = escape_markdown(words.format_time(result, s, w))
            cells.append(f"**{text}**" if result.ratios[s, w] == 1 else text)
        lines.append(cells)
    notes = [f"Time to target in {result.timing}.", *words.footnotes(result)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return body + "\n\n" + "\n\n".join(notes) + "\n"
