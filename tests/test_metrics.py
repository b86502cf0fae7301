"""Measures of balance, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise import (
    ArgumentError,
    Placement,
    balance,
    expert_loads,
    imbalance,
    rank_loads,
)

# Two layers, three ranks of two slots, four experts.
ROWS = [[0, 1, 2, 0, 3, 3], [1, 0, 3, 2, 1, 1]]


def placement() -> Placement:
    return Placement(np.array(ROWS), 3, 4, layers=(3, 4), num_model_layers=6)


# Ranks of ROWS[0]: {0, 1}, {2, 0}, {3, 3}; of ROWS[1]: {1, 0}, {3, 2}, {1, 1}.
LOADS = np.array([[8.0, 2.0, 1.0, 4.0], [3.0, 9.0, 0.0, 6.0]])

RANK_LOADS = [[4 + 2, 1 + 4, 2 + 2], [3 + 3, 6 + 0, 3 + 3]]  # sums 15 and 18, means 5 and 6


def test_rank_loads() -> None:
    assert rank_loads(LOADS, placement()).tolist() == RANK_LOADS
    windows = np.stack([LOADS, 2 * LOADS])
    assert rank_loads(windows, placement()).tolist() == [RANK_LOADS, (2 * np.array(RANK_LOADS)).tolist()]
    for wrong in (LOADS[0], LOADS[:1], LOADS[:, :3], windows[None]):
        with pytest.raises(ArgumentError, match=r"\[layers, experts\] = \[2, 4\]"):
            rank_loads(wrong, placement())


def test_rank_loads_under_shares() -> None:
    shares = [[0.75, 1, 1, 0.25, 1, 0], [0.0, 1, 1, 1, 0.5, 0.5]]
    # Layer 0: expert 0 gives rank 0 six of its eight; layer 1: expert 1 is all on rank 2, in two twins.
    assert rank_loads(LOADS, placement(), shares).tolist() == [[6 + 2, 1 + 2, 4], [0 + 3, 6, 9]]
    with pytest.raises(ArgumentError, match=r"shares must be \[layers, slots\] = \[2, 6\]"):
        rank_loads(LOADS, placement(), np.ones((2, 5)))


def test_expert_loads() -> None:
    assert expert_loads(LOADS, placement()).tolist() == [[4, 2, 1, 4, 2, 2], [3, 3, 6, 0, 3, 3]]


def test_imbalance() -> None:
    assert imbalance(RANK_LOADS).tolist() == [6 / 5, 1.0]
    assert imbalance([[0.0, 0.0], [3.0, 1.0]]).tolist() == [1.0, 1.5], "no load is perfectly balanced"
    assert imbalance([5.0]) == 1.0


def test_balance() -> None:
    # Ratios 3/2 and 1.2, means 2 and 10.
    found = balance([[3.0, 1.0, 2.0], [12.0, 9.0, 9.0]])
    assert found.mean_imbalance == pytest.approx((1.5 + 1.2) / 2)
    assert found.worst_layer == pytest.approx(1.5)
    assert found.mean_of_ratios == pytest.approx((2 / 3 + 10 / 12) / 2)
    assert found.ratio_of_sums == pytest.approx((2 + 10) / (3 + 12))
    assert found.as_dict() == {
        "mean_imbalance": found.mean_imbalance,
        "worst_layer": found.worst_layer,
        "mean_of_ratios": found.mean_of_ratios,
        "ratio_of_sums": found.ratio_of_sums,
    }
    assert len({round(value, 6) for value in found.as_dict().values()}) == 4, "they differ"


def test_balance_over_windows() -> None:
    # Window 0 as above; window 1: ratios 2 and 1, means 2 and 1.
    found = balance([[[3.0, 1.0, 2.0], [12.0, 9.0, 9.0]], [[4.0, 0.0, 2.0], [1.0, 1.0, 1.0]]])
    assert found.mean_imbalance == pytest.approx((1.5 + 1.2 + 2 + 1) / 4)
    assert found.worst_layer == pytest.approx((1.5 + 2) / 2), "the mean of each window's worst layer"
    assert found.mean_of_ratios == pytest.approx((2 / 3 + 10 / 12 + 1 / 2 + 1) / 4)
    assert found.ratio_of_sums == pytest.approx((12 / 15 + 3 / 5) / 2)


def test_balance_without_load() -> None:
    assert set(balance(np.zeros((2, 3))).as_dict().values()) == {1.0}
    with pytest.raises(ArgumentError, match="loads must be"):
        balance([1.0, 2.0])
