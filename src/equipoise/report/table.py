"""A table as data: what the command prints and the page shows; `terminal` and `blocks` draw it.

Words are whole here: where a title or a head is broken into lines is for whoever draws it to say.
"""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE, BEST, TOTAL, HEAD = "reference", "best", "total", "head"
"""Roles of a row: to compare with, the one that holds best, what the others add up to, heading those below."""

GOOD, FAIR, POOR = "good", "fair", "poor"
"""Tones of a cell."""


@dataclass(frozen=True)
class Cell:
    """What stands in one place; ``text`` is None where there is nothing to tell."""

    text: str | None
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A head, in the parts that may stand below each other where room is short."""

    parts: tuple[str, ...] = ("",)
    numeric: bool = True

    @property
    def name(self) -> str:
        """The head in one line; a part that ends in a hyphen needs no space."""
        return "".join(part if part.endswith("-") else f"{part} " for part in self.parts).rstrip()


@dataclass(frozen=True)
class Row:
    """Cells from left to right; one with the role ``HEAD`` has a single cell and spans the table."""

    cells: tuple[Cell, ...]
    role: str = ""


@dataclass(frozen=True)
class Table:
    """Rows in sections under named columns; the first cell of a row says what the others are about."""

    title: str
    columns: tuple[Column, ...]
    sections: tuple[tuple[Row, ...], ...]
    subject: str = ""
    """stands above the title where nothing around the table says what it is about"""
    notes: tuple[str, ...] = ()
    """lines below"""

    def __post_init__(self) -> None:
        for each in self.rows:
            expected = 1 if each.role == HEAD else len(self.columns)
            if len(each.cells) != expected:
                raise ValueError(
                    f"table {self.title!r}: a row has {len(each.cells)} cells, expected {expected}"
                )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all sections."""
        return tuple(each for section in self.sections for each in section)


def columns(first: str, *others: str | tuple[str, ...]) -> tuple[Column, ...]:
    """A column of words, then columns of numbers; several parts of a head are given as a tuple."""
    parts = [(head,) if isinstance(head, str) else head for head in others]
    return (Column((first,), numeric=False), *map(Column, parts))


def row(*cells: Cell | str | None, role: str = "") -> Row:
    """A row of cells, most of which are plain text."""
    return Row(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells), role)


def tone(value: float, fair: float, poor: float) -> str:
    """``POOR`` from ``poor`` on, ``FAIR`` from ``fair`` on, else ``GOOD``."""
    return POOR if value >= poor else FAIR if value >= fair else GOOD
