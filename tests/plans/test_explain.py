"""What `Plan.explain` says, and the frontier of balance against moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import (
    ArgumentError,
    LoadTrace,
    Robust,
    Topology,
    contiguous_placement,
    frontier,
    imbalance,
    plan,
    rank_loads,
    split_batch,
    synthetic_trace,
)
from problems import KINDS, loads_of

# What holds a layer back

EVEN = np.full(8, 10.0)


def explained(layers: list[np.ndarray], topology: Topology, policy: str = "robust") -> str:
    """Of loads whose layers are numbered 3, 4, ... in the model."""
    trace = LoadTrace(np.array(layers), layers=tuple(range(3, 3 + len(layers))))
    return plan(trace, topology, policy).explain()


def test_an_even_load_is_balanced() -> None:
    text = explained([EVEN, EVEN], Topology(4, 2))
    assert "Layer 3 is the worst: imbalance 1.0000, lower bound 1.0000." in text
    assert "perfect balance; there is nothing left to gain in-sample" in text
    assert "One more slot a rank would not help this layer." in text


def test_a_replica_that_fills_a_rank() -> None:
    """Expert 5 has 930 of 1,000 tokens and, with no spare slot, one replica; 4 ranks have a mean of 250."""
    hot = EVEN.copy()
    hot[5] = 930.0
    text = explained([EVEN, hot, EVEN], Topology(4, 2))
    # Beside it on its rank is one of the others with 10 tokens: 940 / 250.
    assert "Layer 4 is the worst: imbalance 3.7600, lower bound 3.7600." in text
    assert "expert 5 carries 93.0% of the layer's tokens" in text
    assert "More replicas are the only way down." in text
    assert "expert 5 (3.720 of a mean rank load, 1 replica)" in text
    assert "One more slot a rank (4 more replicas) would bring this layer to" in text


def test_a_node_that_has_more_than_its_part() -> None:
    """Two groups on two nodes: the first has 3 of 4 tokens whichever node it is on."""
    skew = np.r_[np.full(4, 30.0), np.full(4, 10.0)]
    text = explained([EVEN, skew], Topology(4, 4, 2, 2))
    assert "Layer 4 is the worst: imbalance 1.5000, lower bound 1.5000." in text
    assert "groups stay on nodes, and the busiest node has more than its part" in text
    assert "One more slot a rank would not help this layer." in text


def test_what_is_left_above_the_bound() -> None:
    """6 with 1 and 5 with 4 is the best pairing: 9 to 7."""
    text = explained([np.array([6.0, 5, 4, 1])], Topology(2, 2))
    assert "Layer 3 is the worst: imbalance 1.1250, lower bound 1.0000." in text
    assert "It is 12.50% above the bound: what is left is how the replicas fit together" in text


def test_nothing_to_balance() -> None:
    assert "No layer has any load" in explained([np.zeros(8)], Topology(4, 2))


def test_a_layer_without_load_beside_others() -> None:
    text = explained([np.zeros(8), EVEN], Topology(4, 2))
    assert "Layer 4 is the worst: imbalance 1.0000" in text
    assert "perfect balance" in text


# Plans for batches


def swept(windows: np.ndarray, topology: Topology, layer: int) -> float:
    """Plainly: plan the layer alone, split each window by its load, and take the mean of the imbalances."""
    placement = plan(windows[:, [layer]], topology, Robust(split="batch")).placement
    shares = [split_batch(window[[layer]], placement) for window in windows]
    found = [
        imbalance(rank_loads(window[[layer]], placement, part))
        for window, part in zip(windows, shares, strict=True)
    ]
    return float(np.mean(found))


def test_a_plan_for_batches_is_explained_by_batches() -> None:
    """Where another layer is the worst of those that are split evenly."""
    for seed in range(8):
        trace = synthetic_trace(num_layers=3, num_experts=32, num_windows=4, seed=seed, tokens_per_window=60)
        made = plan(trace, Topology(12, 3), Robust(split="batch"))
        windows = trace.counts.astype(float)
        each = [swept(windows, Topology(12, 3), layer) for layer in range(3)]
        worst = int(np.argmax(each))
        if worst != made.report.imbalance_after.argmax():
            break
    assert worst != made.report.imbalance_after.argmax()
    more = swept(windows, Topology(12, 4), worst)
    text = made.explain()
    assert f"Layer {worst} is the worst of a plan for batches that are split by their load." in text
    assert f"split by their own load they have {each[worst]:.4f} after 3 sweeps" in text
    assert f"One more slot a rank (12 more replicas) would bring this layer to {more:.4f}." in text
    assert "busiest rank" not in text


def test_one_more_slot_that_does_not_help_batches() -> None:
    trace = LoadTrace(np.full((4, 1, 8), 10))
    text = plan(trace, Topology(4, 3), Robust(split="batch")).explain()
    assert "One more slot a rank would not help this layer." in text
    assert (
        "No layer has any load" in plan(np.zeros((4, 1, 8)), Topology(4, 3), Robust(split="batch")).explain()
    )


# The frontier


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from(KINDS), st.integers(0, 1 << 20), st.data())
def test_more_moves_never_cost_balance(
    ranks: int, windows: int, kind: str, seed: int, data: st.DataObject
) -> None:
    topology = Topology(2 * ranks, 3)
    experts = data.draw(st.integers(1, topology.num_slots))
    loads = loads_of(kind, (windows, 3, experts), seed)
    now = contiguous_placement(3, experts, topology.num_ranks, topology.num_slots)
    line = frontier(loads, topology, now)
    check_frontier(line, loads, now)


def check_frontier(line: object, loads: np.ndarray, now: object) -> None:
    assert line.moves[0] == 0
    assert (np.diff(line.moves) > 0).all()
    assert (np.diff(line.imbalance) <= 1e-9).all()
    for placement, moves, share, score in zip(
        line.placements, line.moves, line.moved_share, line.imbalance, strict=True
    ):
        assert placement.moves_from(now).sum() == moves
        assert share == moves / now.phy2log.size
        assert score == pytest.approx(imbalance(rank_loads(loads, placement)).mean())


@pytest.mark.parametrize("topology", [Topology(8, 5), Topology(8, 5, 2, 4)])
@pytest.mark.parametrize("windows", [1, 6])
def test_the_frontier_of_a_load(topology: Topology, windows: int) -> None:
    trace = synthetic_trace(num_layers=6, num_experts=32, num_windows=windows, seed=2)
    now = contiguous_placement(6, 32, 8, 40)
    line = frontier(trace, topology, now, points=12)
    check_frontier(line, trace.counts, now)
    assert 3 <= len(line.moves) <= 12
    assert line.imbalance[-1] < line.imbalance[0] - 0.3


def test_scored_on_later_windows() -> None:
    trace = synthetic_trace(num_layers=3, num_experts=32, num_windows=8, seed=2)
    now = contiguous_placement(3, 32, 8, 40)
    line = frontier(trace[:6], Topology(8, 5), now, score_on=trace[6:])
    assert line.moves.tolist() == frontier(trace[:6], Topology(8, 5), now).moves.tolist()
    for placement, score in zip(line.placements, line.imbalance, strict=True):
        assert score == pytest.approx(imbalance(rank_loads(trace[6:].counts, placement)).mean())


def test_a_current_placement_that_does_not_fit() -> None:
    with pytest.raises(ArgumentError, match="current does not fit"):
        frontier([[1.0, 2.0]], Topology(2, 1), contiguous_placement(2, 2, 2))
