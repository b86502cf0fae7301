"""Tables and bars in a terminal, by rich."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from .looks import TERMINAL
from .table import Cell, Table, tone

BAR_WIDTH = 27
FAIR_LOAD, POOR_LOAD = 1.05, 1.25


def rich_table(table: Table, *, compact: bool = False, **layout: Any) -> RichTable:
    """A table for rich to print.

    Parameters
    ----------
    compact : little air, and every cell on one line, cut where the terminal is too narrow
    layout : what `rich.table.Table` takes, for lines and air other than the usual
    """
    usual: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "title_style": "bold"}
    if compact:
        usual |= {"padding": (0, 1, 0, 0), "pad_edge": False}
    layout = usual | layout
    headed = any(column.name for column in table.columns)
    drawn = RichTable(
        title=Text("\n".join(filter(None, (table.subject, table.title))), style=layout["title_style"]),
        caption=Text("\n".join(table.notes), style="table.caption") if table.notes else None,
        caption_justify="left",
        show_header=headed,
        **layout,
    )
    for index, column in enumerate(table.columns):
        drawn.add_column(
            Text("\n".join(column.parts)),
            justify="right" if column.numeric else "left",
            style="" if headed or index else "bold",
            no_wrap=compact,
        )
    for section in table.sections:
        for row in section:
            drawn.add_row(*map(_text, row.cells), style=TERMINAL.get(row.role))
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
) -> list[Text]:
    """Lines with two bars for every rank, both on one scale, and each load as a multiple of the mean.

    Parameters
    ----------
    before, after : rank loads ``[P]`` of one layer
    titles : what stands above the bars
    block : the character that bars are made of
    """
    pairs = [loads / (loads.mean() or 1.0) for loads in (before, after)]
    largest = max(1.0, *(float(loads.max()) for loads in pairs))
    column = BAR_WIDTH + 8
    lines = [Text("rank  " + titles[0][:column].ljust(column) + titles[1][:column], style="bold")]
    for rank in range(len(before)):
        line = Text(f"{rank:>4}  ")
        for loads in pairs:
            load = float(loads[rank])
            bar = block * max(round(load / largest * BAR_WIDTH), 1 if load > 0 else 0)
            line.append(bar, style=TERMINAL[tone(load, FAIR_LOAD, POOR_LOAD)])
            line.append(f" {load:.2f}".ljust(column - len(bar)))
        line.rstrip()
        lines.append(line)
    return lines
