"""Tables and bars in a terminal, by rich."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from .looks import TERMINAL
from .table import HEAD, Cell, Table, tone

BAR_WIDTH = 27
"""characters of the longest bar, where there is room"""
LEAST_WORDS = 16
"""characters that a column of words keeps, if it needs as many"""
ANY_WIDTH = 10_000
FAIR_LOAD, POOR_LOAD = 1.05, 1.25


def rich_table(table: Table, *, compact: bool = False, **layout: Any) -> Drawing:
    """A table for rich to print.

    Parameters
    ----------
    compact : little air
    layout : what `rich.table.Table` takes, for lines and air other than the usual
    """
    usual: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "title_style": "bold"}
    if compact:
        usual |= {"padding": (0, 1, 0, 0), "pad_edge": False}
    return Drawing(table, usual | layout)


@dataclass(frozen=True)
class Drawing:
    """A table as wide as what it is printed on: columns that do not fit beside each other stand below.

    Words wrap. Numbers stay whole where one column of them fits beside the first, and are folded where not.
    """

    table: Table
    layout: dict[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        last = len(self.table.columns) - 1
        anything = options.update(width=ANY_WIDTH)  # what is measured is kept to the width otherwise

        def fits(shown: list[int]) -> bool:
            return Measurement.get(console, anything, self._drawn(shown)).minimum <= options.max_width

        shown: list[int] = []
        for index in range(1, last + 1):
            if shown and not fits([*shown, index]):
                yield self._drawn(shown, notes=False, tight=not fits(shown))
                shown = []
            shown.append(index)
        yield self._drawn(shown, tight=not fits(shown))
        if self.table.notes:
            yield Text()

    def _least(self, index: int) -> int:
        """Characters that a column needs: all of its numbers, some of its words."""
        column = self.table.columns[index]
        texts = [row.cells[index].text or "-" for row in self.table.rows if row.role != HEAD]
        widest = max(map(cell_len, [*texts, *column.parts]))
        return widest if column.numeric else min(widest, LEAST_WORDS)

    def _drawn(self, shown: list[int], notes: bool = True, tight: bool = False) -> RichTable:
        """The first column and those ``shown``; ``tight`` folds whatever does not fit."""
        table, style = self.table, self.layout["title_style"]
        headed = any(column.name for column in table.columns)
        first = not shown or shown[0] == 1
        title = "\n".join(filter(None, (table.subject, table.title))) if first else ""
        drawn = RichTable(
            title=Text(title, style=style) if title else None,
            caption=Text("\n".join(table.notes), style="table.caption") if notes and table.notes else None,
            caption_justify="left",
            show_header=headed,
            **self.layout,
        )
        for index in (0, *shown):
            column = table.columns[index]
            drawn.add_column(
                Text("\n".join(column.parts)),
                justify="right" if column.numeric else "left",
                style="" if headed or index else "bold",
                no_wrap=column.numeric and bool(index) and not tight,
                min_width=None if tight else self._least(index),
                overflow="fold",
            )
        for section in table.sections:
            for row in section:
                cells = row.cells if row.role == HEAD else [row.cells[index] for index in (0, *shown)]
                if row.role == HEAD or not shown or any(cell.text != "" for cell in cells[1:]):
                    drawn.add_row(*map(_text, cells), style=TERMINAL.get(row.role))
            drawn.add_section()
        return drawn


def _text(cell: Cell) -> Text:
    return Text("-" if cell.text is None else cell.text, style=TERMINAL.get(cell.tone, ""))


def rank_bars(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    titles: tuple[str, str],
    *,
    block: str = "█",
    width: int = 80,
) -> list[Text]:
    """Lines with two bars for every rank, both on one scale, and each load as a multiple of the mean.

    Parameters
    ----------
    before, after : rank loads ``[P]`` of one layer
    titles : what stands above the bars
    block : the character that bars are made of
    width : characters that a line may have
    """
    pairs = [loads / (loads.mean() or 1.0) for loads in (before, after)]
    largest = max(1.0, *(float(loads.max()) for loads in pairs))
    longest = max(1, min(BAR_WIDTH, (width - 6) // 2 - 8))
    column = longest + 8
    lines = [Text("rank  " + titles[0][: column - 1].ljust(column) + titles[1][:column], style="bold")]
    for rank in range(len(before)):
        line = Text(f"{rank:>4}  ")
        for loads in pairs:
            load = float(loads[rank])
            bar = block * max(round(load / largest * longest), 1 if load > 0 else 0)
            line.append(bar, style=TERMINAL[tone(load, FAIR_LOAD, POOR_LOAD)])
            line.append(f" {load:.2f}".ljust(column - len(bar)))
        line.rstrip()
        lines.append(line)
    return lines
