"""The objective: what its three functions promise each other and the search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.planning.objective import bend, cost, slope

LOADS = st.floats(0.01, 64.0)


def test_values_by_hand() -> None:
    assert (cost(2.0), slope(2.0)) == (256.0, 1024.0)
    assert bend(1.0, 2.0, 0.5) == 56 * 0.25 * (64 + 1)
    assert (cost(0.0), slope(0.0), bend(0.0, 0.0, 1.0)) == (0.0, 0.0, 0.0)


@given(LOADS)
def test_the_slope_is_that_of_the_cost(load: float) -> None:
    step = 1e-5 * load
    assert slope(load) == pytest.approx((cost(load + step) - cost(load - step)) / (2 * step), rel=1e-6)


@given(LOADS, LOADS, st.floats(0.01, 2.0))
def test_the_bend_is_that_of_moving_a_part(load: float, other: float, part: float) -> None:
    step = 1e-5 * min(load, other) / part
    ahead = part * (slope(other + step * part) - slope(load - step * part))
    behind = part * (slope(other - step * part) - slope(load + step * part))
    assert bend(load, other, part) == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)


@given(LOADS, LOADS)
def test_it_rises_and_is_convex(load: float, other: float) -> None:
    low, high = sorted((load, other))
    assert cost(low) <= cost(high)
    assert slope(low) <= slope(high)
    assert cost((low + high) / 2) <= (cost(low) + cost(high)) / 2 * (1 + 1e-12)


def test_arrays_and_numbers_agree() -> None:
    loads = np.linspace(0, 5, 50)
    assert cost.py_func(loads).tolist() == [cost(load) for load in loads]
