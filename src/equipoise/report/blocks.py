"""Pieces of a page: tables, figures, lists of words and meanings."""

from __future__ import annotations

from collections.abc import Mapping

from .markup import Markup, element
from .table import HEAD, Column, Row, Table
from .units import minus


def meanings(pairs: Mapping[str, object]) -> Markup:
    """A list of words and what they mean."""
    return element(
        "dl",
        [(element("dt", name), element("dd", text)) for name, text in pairs.items()],
        class_="meaning",
    )


def fact(name: str, value: str, note: str) -> Markup:
    """A number that stands out, with its name above and a remark below."""
    return element(
        "div", element("dt", name), element("dd", value, class_="value"), element("dd", note, class_="note")
    )


def figure(
    name: str, title: str, caption: object, plot: Markup, table: Table | None = None, heading: str = "h3"
) -> Markup:
    """A chart with its title, its caption and the same as a table."""
    return element(
        "figure",
        element("figcaption", element(heading, title, id=f"{name}-head"), element("p", caption)),
        plot,
        None if table is None else folded_table(table),
        id=f"figure-{name}",
        tabindex="0",
        aria_labelledby=f"{name}-head",
    )


def open_table(table: Table, name: str) -> Markup:
    """A table under its title."""
    scroll = {"class_": "scroll", "tabindex": "0", "role": "group", "aria_labelledby": f"{name}-head"}
    return element(
        "div",
        element("h3", table.title, id=f"{name}-head"),
        element("div", _table(table), **scroll),
        _notes(table),
    )


def folded_table(table: Table) -> Markup:
    """A table behind its title, which opens it; it scrolls where it is too large."""
    scroll = {"class_": "scroll tall", "tabindex": "0", "role": "group", "aria_label": "Table"}
    return element(
        "details", element("summary", table.title), element("div", _table(table), **scroll), _notes(table)
    )


def _table(table: Table) -> Markup:
    heads = [element("th", column.name, scope="col") for column in table.columns]
    return element(
        "table",
        element("thead", element("tr", heads)) if any(column.name for column in table.columns) else None,
        [element("tbody", [_row(row, table.columns) for row in section]) for section in table.sections],
    )


def _row(row: Row, columns: tuple[Column, ...]) -> Markup:
    first, *rest = row.cells
    if row.role == HEAD:
        return element(
            "tr", element("th", first.text, scope="rowgroup", colspan=len(columns)), class_=row.role
        )
    cells = [
        element("td", _typeset(cell.text, column), class_=cell.tone or None)
        for cell, column in zip(rest, columns[1:], strict=True)
    ]
    return element(
        "tr", element("th", _typeset(first.text, columns[0]), scope="row"), cells, class_=row.role or None
    )


def _typeset(text: str | None, column: Column) -> str:
    """Numbers get their true minus sign; names stay as they are."""
    if text is None:
        return "–"
    return minus(text) if column.numeric else text


def _notes(table: Table) -> list[Markup]:
    return [element("p", note, class_="soft") for note in table.notes]
