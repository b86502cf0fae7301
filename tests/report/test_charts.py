"""Charts of the page, in numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from equipoise.report import axes, charts, heat, looks


def test_heat_map_paths_cover_each_cell_once():
    loads = np.random.default_rng(3).uniform(0, 3.5, (7, 12))
    drawn = heat.heat_map("x", "t", "d", loads, range(7), [rank // 4 for rank in range(loads.shape[1])])
    seen = np.full(loads.shape, 4)
    for d, level in re.findall(r'<path d="([^"]*)" class="heat h(\d+)"', drawn):
        for column, row, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", d):
            cells = seen[int(row), int(column) : int(column) + int(width)]
            assert (cells == 4).all()
            cells[:] = int(level)
    assert (seen == np.digitize(loads, looks.HEAT_BREAKS)).all()


def test_lines_break_where_there_is_no_number_and_long_ones_are_thinned():
    hole = charts._path(np.array([0, 0.5, 1]), np.array([0.5, np.nan, 0.5]))
    assert hole == "M0.0 500.0M1000.0 500.0"
    x, y = charts._thin(np.arange(5000.0), np.full(5000, 1.5))
    assert len(x) == charts.MAX_POINTS
    assert (y == 1.5).all()
    assert (np.diff(x) > 0).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 1.756), (-4.6, 1.9), (0, 261823), (3, 3), (8, 149)])
def test_ticks_are_round_and_inside(low, high):
    found = axes.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert not any(text.startswith("-0") and not float(text) for text in axes.even(found))
