"""Small pieces of HTML: cells, tables, legends. Every text given is escaped here."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

Style = Mapping[str, Mapping[str, str]]  # submission -> colour and dash, best first


def escape(value: object) -> str:
    """Returns text that is only text, in an element or an attribute."""
    return html.escape(str(value), quote=True)


def breakable(value: object) -> str:
    """Escapes a text whose lines may break after an underscore."""
    return escape(value).replace("_", "_<wbr>")


def count(number: int, noun: str) -> str:
    """Returns '1 trial' or '3 trials'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def section(anchor: str, title: str, *parts: str) -> str:
    """Returns a section with a heading that the list of contents leads to."""
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{escape(title)}</h2>{"".join(parts)}</section>'
    )


def paragraph(text: str, css: str = "") -> str:
    """Returns a paragraph of plain text."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def cell(value: object, css: str = "", key: float | None = None) -> str:
    """Returns a table cell; `key` is what it sorts by, infinite for a miss (last)."""
    return f'<td class="{css}"{sort_key(key)}>{escape(value)}</td>'


def sort_key(key: float | None) -> str:
    """Returns the attribute that a column of numbers is sorted by; '' for text."""
    if key is None:
        return ""
    return f' data-value="{float(key)!r}"' if math.isfinite(key) else ' data-value=""'


def heading(
    value: object, css: str = "", below: object = "", sorted_by: str = ""
) -> str:
    """Returns a column's heading, a button that sorts.

    Args:
      value: the name.
      css: classes.
      below: a second, quieter line.
      sorted_by: 'ascending' or 'descending' where the table comes sorted so.
    """
    quiet = f'<span class="goal">{breakable(below)}</span>' if below else ""
    order = f' aria-sort="{sorted_by}"' if sorted_by else ""
    return (
        f'<th scope="col" class="{css}"{order}><button type="button">'
        f"{breakable(value)}</button>{quiet}</th>"
    )


def row_heading(value: object, look: Mapping[str, str] | None = None) -> str:
    """Returns the first cell of a row, with the line style of a submission."""
    mark = swatch(look) if look else ""
    return (
        f'<th scope="row"><span class="name">{mark}<span>{breakable(value)}</span>'
        "</span></th>"
    )


def table(
    label: str, header: Sequence[str], rows: Iterable[Sequence[str]], css: str = ""
) -> str:
    """Returns a table of ready cells that scrolls inside its own box.

    The box takes the focus, so that arrow keys scroll it.
    """
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" '
        f'aria-label="table of {escape(label)}">'
        f'<table class="{css}"><thead><tr>{"".join(header)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def download(
    name: str, label: str = "Download CSV", number: int | None = None, file: str = ""
) -> str:
    """Returns the button that saves a table as `<file or name>.csv`."""
    which = "" if number is None else f' data-number="{number}"'
    called = f' data-file="{escape(file)}"' if file else ""
    return (
        f'<button type="button" class="plain csv" data-csv="{name}"{which}{called}>'
        f"{escape(label)}</button>"
    )


def switch(label: str, name: str, choices: Mapping[str, str], chosen: str) -> str:
    """Returns radio buttons; `choices` is {value: text}."""
    inputs = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"'
        f"{' checked' if value == chosen else ''}> {escape(text)}</label>"
        for value, text in choices.items()
    )
    return f"<fieldset><legend>{escape(label)}</legend>{inputs}</fieldset>"


def swatch(look: Mapping[str, str]) -> str:
    """Returns a short piece of a submission's line."""
    kind = {"solid": "solid", "dot": "dotted"}.get(look["dash"], "dashed")
    return (
        f'<i class="swatch" style="border-color:{look["color"]};'
        f'border-top-style:{kind}"></i>'
    )


def legend(style: Style) -> str:
    """Returns buttons that show and hide submissions in all figures."""
    keys = "".join(
        f'<button type="button" aria-pressed="true" data-rank="{rank}">'
        f"{swatch(look)}{escape(name)}</button>"
        for rank, (name, look) in enumerate(style.items())
    )
    both = "".join(
        f'<button type="button" data-all="{word}">{word} all</button>'
        for word in ("show", "hide")
    )
    if len(style) < 3:
        both = ""
    return (
        f'<div class="legend" role="group" aria-label="submissions">{keys}{both}</div>'
    )


def figure(anchor: str, label: str, height: int | None = None) -> str:
    """Returns the place of a figure; `label` is what a screen reader says."""
    style = f' style="height:{height}px"' if height else ""
    return (
        f'<div class="figure" id="{anchor}" role="img" '
        f'aria-label="{escape(label)}"{style}></div>'
    )
