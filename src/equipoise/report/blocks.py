"""Pieces of a page: figures with their tables, tables of the terminal, lists of words and meanings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from .markup import Markup, element
from .tables import seconds


def signed(value: float) -> str:
    """A time with its sign, plus included."""
    return f"+{seconds(value)}" if value > 0 else minus(seconds(value))


def minus(text: str) -> str:
    """The true minus sign before numbers, as wide as a plus."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def meanings(pairs: Mapping[str, object]) -> Markup:
    """A list of words and what they mean."""
    return element(
        "dl",
        [(element("dt", name), element("dd", text)) for name, text in pairs.items()],
        class_="meaning",
    )


def figure(
    name: str, title: str, caption: object, plot: Markup, table: Markup | None = None, heading: str = "h3"
) -> Markup:
    """A chart with its title, its caption and the same as a table."""
    return element(
        "figure",
        element("figcaption", element(heading, title, id=f"{name}-head"), element("p", caption)),
        plot,
        None if table is None else details("The same as a table", table),
        id=f"figure-{name}",
        tabindex="0",
        aria_labelledby=f"{name}-head",
    )


def details(summary: str, table: Markup) -> Markup:
    """A table behind a line that opens it."""
    return element("details", element("summary", summary), table)


def data_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table that scrolls where it is too large; the first column heads the rows."""
    table = element(
        "table",
        element("thead", element("tr", [element("th", head, scope="col") for head in heads])),
        element("tbody", [_row(row) for row in rows]),
    )
    return element("div", table, class_="scroll tall", tabindex="0", role="group", aria_label="Table")


def _row(cells: Sequence[object], look: str = "") -> Markup:
    first, *rest = cells
    return element(
        "tr",
        element("th", first, scope="row"),
        [element("td", cell) for cell in rest],
        class_=look or None,
    )


def whole_table(table: Table, name: str, best: str) -> Markup:
    """A table of the terminal as one of the page."""
    title = _plain(table.title).split("\n")[-1]
    heads = [_plain(column.header).replace("-\n", "-").replace("\n", " ") for column in table.columns]
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    body = [
        _row(cells, "best" if cells[0] == best else "reference" if row.style == "dim" else "")
        for cells, row in zip(zip(*columns, strict=True), table.rows, strict=True)
    ]
    inside = element(
        "table",
        element("thead", element("tr", [element("th", head, scope="col") for head in heads])),
        element("tbody", body),
    )
    scroll = element(
        "div", inside, class_="scroll", tabindex="0", role="group", aria_labelledby=f"{name}-head"
    )
    return element("div", element("h3", title, id=f"{name}-head"), scroll)


def _plain(cell: object) -> str:
    text = cell.plain if isinstance(cell, Text) else str(cell or "")
    return minus(text) if text != "-" else "–"
