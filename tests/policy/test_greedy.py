"""`greedy` is DeepSeek EPLB: its published example, and the plain-Python reference on integer loads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import rebalance_experts
from problems import prefill
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
    phy2log, log2phy, logcnt = rebalance_experts(np.array(WEIGHTS), 16, 4, 2, 8, policy="greedy")
    assert phy2log.tolist() == PHY2LOG
    assert log2phy.shape == (2, 12, 2)
    for layer, expert in np.ndindex(2, 12):
        slots = [slot for slot in range(16) if PHY2LOG[layer][slot] == expert]
        assert logcnt[layer, expert] == len(slots)
        assert log2phy[layer, expert].tolist() == [*slots, -1, -1][:2]


@st.composite
def requests(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int, int]:
    nodes = draw(st.sampled_from([1, 1, 2, 4]))
    ranks = nodes * draw(st.integers(1, 3))
    slots = ranks * draw(st.integers(1, 5))
    groups = draw(st.sampled_from([1, nodes, 2 * nodes, 3]))
    groups = groups if groups <= slots else 1
    experts = groups * draw(st.integers(1, slots // groups))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    # Numbers large enough not to tie: shares that do (3 / 3 and 2 / 2) may not after rounding to parts in 2^30.
    loads = rng.integers(1000, 1 << 28, (2, experts))
    # Zeros, but no node without any load: there DeepSeek gives all replicas to one expert, here they are spread.
    zeros = rng.random(loads.shape) < 0.2
    zeros[:, :: experts // groups] = False
    loads[zeros] = 0
    return loads, slots, groups, nodes, ranks


@given(requests())
@settings(max_examples=300)
def test_like_the_reference(request: tuple[np.ndarray, int, int, int, int]) -> None:
    weight, *arguments = request
    expected = greedy(weight, *arguments)
    found = rebalance_experts(weight, *arguments, policy="greedy")
    for name, a, b in zip(("phy2log", "log2phy", "logcnt"), expected, found, strict=True):
        assert a.tolist() == b.tolist(), name


@pytest.mark.parametrize(("slots", "groups", "nodes", "ranks"), [(288, 1, 1, 32), (288, 8, 4, 32)])
def test_like_the_reference_on_real_loads(
    traces: object, slots: int, groups: int, nodes: int, ranks: int
) -> None:
    loads = prefill(traces)[::6]  # type: ignore[arg-type]
    phy2log, _, logcnt = rebalance_experts(loads, slots, groups, nodes, ranks, policy="greedy")
    expected, _, counts = greedy(loads, slots, groups, nodes, ranks)
    assert phy2log.tolist() == expected.tolist()
    assert logcnt.tolist() == counts.tolist()
