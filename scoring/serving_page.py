"""A page of quality against cost, in the style of the page of scores.

It stands by itself: no script, nothing is loaded. What is shown comes as text.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from string import Template

from algoperf.records import write_text
from scoring import page_html as h

_FOLDER = Path(__file__).parent
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
main > section svg { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="headline">$headline</p>
$facts
<main>$body</main>
</body>
</html>
""")

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Group:
    """A section: what was compared on one workload.

    Attributes:
      workload: its name.
      headline: one sentence.
      svg: the picture, ready for the page.
      points: header and rows; the first column is a row's heading.
      frontiers: (cost, names of the points on its frontier).
      views: header and rows.
    """

    workload: str
    headline: str
    svg: str
    points: Table
    frontiers: Sequence[tuple[str, str]]
    views: Table


def write_serving_page(
    path: Path, groups: Sequence[Group], facts: Sequence[str], notes: Sequence[str]
) -> None:
    """Writes the page.

    Args:
      path: the file.
      groups: a section each.
      facts: of all: the request, the hardware.
      notes: on what was left out, or is less sure.
    """
    several = len(groups) > 1
    body = "".join(_section(group, several) for group in groups)
    if notes:
        lines = "".join(f"<li>{h.escape(note)}</li>" for note in notes)
        body += h.section("notes", "Notes", f'<ul class="lines">{lines}</ul>')
    text = _PAGE.substitute(
        title="AlgoPerf: quality against cost",
        style=(_FOLDER / "page.css").read_text(encoding="utf-8").rstrip(),
        headline="" if several else h.escape(groups[0].headline),
        facts="".join(h.paragraph(fact, "soft") for fact in facts),
        body=body,
    )
    write_text(path, text)


def _section(group: Group, says_headline: bool) -> str:
    frontiers = "".join(
        f"<li>{h.escape(cost)}: {h.breakable(names)}</li>"
        for cost, names in group.frontiers
    )
    return h.section(
        h.escape(group.workload),
        group.workload,
        h.paragraph(group.headline) if says_headline else "",
        group.svg,
        _table(f"submissions on {group.workload}", group.points, "first"),
        h.paragraph("On the frontier, where no other costs less and is as good:"),
        f'<ul class="lines">{frontiers}</ul>',
        _table(f"budgets and goals on {group.workload}", group.views, ""),
    )


def _table(label: str, table: Table, css: str) -> str:
    header, rows = table
    headings = [f'<th scope="col">{h.breakable(name)}</th>' for name in header]
    cells = ([h.row_heading(row[0]), *(h.cell(x) for x in row[1:])] for row in rows)
    return h.table(label, headings, cells, css)
