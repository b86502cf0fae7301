"""Tables as data, and both of their renderers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import EVIL, Reader
from rich.console import Console

import equipoise
from equipoise.report import blocks
from equipoise.report.html import replay_page
from equipoise.report.standing import standing
from equipoise.report.table import BEST, GOOD, HEAD, POOR, REFERENCE, TOTAL, Cell, Column, Table, columns, row
from equipoise.report.tables import balance_table, moves_table, replay_tables
from equipoise.report.terminal import rich_table

WORDS = st.text('ab[/]<>&"- 019.', min_size=1, max_size=8).map(str.strip).filter(bool)


def in_terminal(table, width=400, **layout):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(table, **layout))
    return console.export_text()


def on_page(table):
    return Reader(blocks.open_table(table, "x")).text


@st.composite
def tables(draw):
    numeric = draw(st.lists(st.booleans(), min_size=1, max_size=5))
    heads = st.lists(WORDS, min_size=1, max_size=2).map(tuple)
    cells = st.builds(Cell, st.none() | WORDS, st.sampled_from(["", GOOD, POOR]))
    rows = st.builds(
        lambda cells, role: row(*cells, role=role),
        st.lists(cells, min_size=len(numeric), max_size=len(numeric)),
        st.sampled_from(["", BEST, REFERENCE, TOTAL]),
    )
    headings = WORDS.map(lambda text: row(text, role=HEAD))
    sections = st.lists(st.lists(rows | headings, max_size=4).map(tuple), max_size=3).map(tuple)
    return Table(
        draw(WORDS),
        tuple(Column(draw(heads), each) for each in numeric),
        draw(sections),
        subject=draw(st.just("") | WORDS),
        notes=tuple(draw(st.lists(WORDS, max_size=2))),
    )


@given(tables())
@settings(max_examples=150)
def test_both_renderers_show_every_cell_as_it_is(table):
    """No text is taken for markup, and none is lost."""
    seen = re.sub(r"\s", "", in_terminal(table, box=None))  # a title is folded to the width of its table
    page = " ".join(on_page(table))
    heads = [part for column in table.columns for part in column.parts]
    cells = [cell.text for one in table.rows for cell in one.cells if cell.text is not None]
    for text in [table.title, table.subject, *heads, *cells, *table.notes]:
        assert re.sub(r"\s", "", text) in seen
    page = page.replace("−", "-")
    for text in [table.title, *(column.name for column in table.columns), *cells, *table.notes]:
        assert text in page
    missing = sum(cell.text is None for one in table.rows for cell in one.cells)
    assert page.count("–") == missing


@given(tables(), st.integers(24, 120), st.booleans())
@settings(max_examples=150)
def test_no_width_loses_a_character(table, width, compact):
    """Columns go below each other, text is folded: whatever the width, all of it is there and none is wider."""
    lines = in_terminal(table, width=width, compact=compact).splitlines()
    assert max(map(len, lines), default=0) <= width
    text = "".join(lines)
    for cell in (cell for one in table.rows for cell in one.cells if cell.text is not None):
        for character in cell.text.replace(" ", ""):
            assert text.count(character) >= cell.text.count(character)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=12), st.integers(40, 120))
def test_numbers_stay_whole_where_one_fits(values, width):
    numbers = [f"{value:.4f}" for value in values]
    table = Table("t", columns("words", *(f"n{i}" for i in range(len(values)))), ((row("a row", *numbers),),))
    found = in_terminal(table, width=width, compact=True).split()
    assert [word for word in found if word in numbers] == numbers


def test_roles_and_tones_reach_both_renderers():
    table = Table(
        "t",
        columns("", "a"),
        ((row("r", Cell("1", POOR), role=REFERENCE), row("b", "2", role=BEST)), (row("t", "3", role=TOTAL),)),
    )
    page = blocks.open_table(table, "x")
    assert page.count("<tbody>") == 2
    assert '<tr class="reference"><th scope="row">r</th><td class="poor">1</td></tr>' in page
    assert '<tr class="best">' in page
    assert '<tr class="total">' in page
    console = Console(width=60, force_terminal=True, color_system="standard", file=open("/dev/null", "w"))  # noqa: SIM115
    with console.capture() as shown:
        console.print(rich_table(table))
    lines = shown.get().splitlines()
    assert "\x1b[2;31m" in next(line for line in lines if "1\x1b" in line)
    assert all("\x1b[1m" in line for line in lines if "2\x1b" in line or "3\x1b" in line)


def test_heads_stack_in_the_terminal_and_lie_on_the_page():
    table = Table("t", columns("", ("in-", "sample"), ("mean of", "ratios")), ())
    assert [line.split() for line in in_terminal(table).splitlines()[1:4] if line.strip()] == [
        ["in-", "mean", "of"],
        ["sample", "ratios"],
    ]
    assert [column.name for column in table.columns] == ["", "in-sample", "mean of ratios"]
    assert {"in-sample", "mean of ratios"} <= set(on_page(table))


def test_a_minus_sign_is_for_numbers_and_not_for_names():
    table = Table("t", columns("", "a"), ((row("v -1", "-1 s"),),))
    assert {"v -1", "−1 s"} <= set(on_page(table))
    assert "-1 s" in in_terminal(table)


def test_a_row_of_the_wrong_length_is_no_row():
    for wrong in (row("r"), row("r", "1", "2"), row("r", "1", role=HEAD)):
        with pytest.raises(ValueError, match="table 't': a row has"):
            Table("t", columns("", "a"), ((wrong,),))


def test_nothing_else_makes_tables():
    package = Path(equipoise.__file__).parent
    sources = {
        path.relative_to(package).as_posix(): path.read_text("utf-8") for path in package.rglob("*.py")
    }
    assert [name for name, text in sources.items() if "rich.table" in text] == ["report/terminal.py"]
    assert [name for name, text in sources.items() if '"table"' in text] == ["report/blocks.py"]


def test_a_policy_of_any_name_keeps_it_in_tables(result):
    """Brackets were once taken for the markup of the terminal."""
    name = "a[red]b[/] -1 <i>" + EVIL[:20]
    series = tuple(replace(one, policy=name) if one.policy == "one" else one for one in result.series)
    found = replace(result, series=series, settings=replace(result.settings, policies=(name, "two")))
    text = "".join(in_terminal(table, compact=True) for table in replay_tables(found))
    assert text.count(name) == 4 * 6
    assert name in " ".join(Reader(replay_page(found)).text)


def test_the_best_of_a_table_is_the_best_of_all_else(result):
    for topology in result.settings.topologies:
        best = standing(result, topology).best
        for table in (balance_table(result, topology), moves_table(result, topology)):
            assert [one.cells[0].text for one in table.rows if one.role == BEST] == [best.label]
            references = [one.cells[0].text for one in table.rows if one.role == REFERENCE]
            assert references[-2:] == ["all-past", "oracle"]
