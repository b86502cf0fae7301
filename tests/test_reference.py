"""The plain-Python reference itself gives the published example."""

from __future__ import annotations

from reference import greedy

WEIGHTS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PHY2LOG = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_the_published_example() -> None:
    phy2log, log2phy, logcnt = greedy(WEIGHTS, 16, 4, 2, 8)
    assert phy2log.tolist() == PHY2LOG
    assert logcnt.sum(axis=1).tolist() == [16, 16]
    assert log2phy.shape == (2, 12, 2)
