"""Topology, Placement, LoadTrace and the measures, with numbers worked out by hand."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from equipoise import (
    ArgumentError,
    LoadTrace,
    Placement,
    PlacementError,
    Topology,
    balance,
    contiguous_placement,
    expert_loads,
    imbalance,
    rank_loads,
)

# Topology


def test_topology_counts() -> None:
    topology = Topology(num_ranks=32, slots_per_rank=9, num_nodes=4, num_groups=8)
    assert (topology.num_slots, topology.ranks_per_node, topology.slots_per_node) == (288, 8, 72)
    assert topology == Topology.from_slots(288, 32, 4, 8)
    assert hash(topology) == hash(Topology(32, 9, 4, 8))
    assert Topology(np.int64(4), 2).num_ranks == 4


@pytest.mark.parametrize(
    ("nodes", "groups", "hierarchical"),
    [(1, 8, False), (4, 8, True), (4, 4, True), (4, 6, False), (4, 1, False)],
)
def test_topology_is_hierarchical_if_nodes_divide_groups(nodes: int, groups: int, hierarchical: bool) -> None:
    assert Topology(8, 3, nodes, groups).hierarchical is hierarchical


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0, 1), "num_ranks must be a positive integer, got 0"),
        ((4, -1), "slots_per_rank"),
        ((4, 2.0), "slots_per_rank must be a positive integer, got 2.0"),
        ((True, 1), "num_ranks"),
        ((4, 1, 3), "num_ranks=4 is not divisible by num_nodes=3"),
        ((4, 1, 1, "8"), "num_groups"),
        ((5000, 1), "beyond what the kernels can count"),
        ((4, 1 << 20), "beyond what the kernels can count"),
    ],
)
def test_topology_refuses(numbers: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Topology(*numbers)


def test_topology_of_slots_that_ranks_do_not_divide() -> None:
    with pytest.raises(ArgumentError, match="17 slots are not divisible by 8 ranks; use 24 or 16"):
        Topology.from_slots(17, 8)
    with pytest.raises(ArgumentError, match=r"use 8$"):
        Topology.from_slots(3, 8)


# Placement: two layers, three experts, three ranks of two slots

PLACEMENT = Placement([[0, 1, 2, 0, 1, 0], [2, 2, 1, 0, 0, 1]], num_ranks=3, num_experts=3)


def test_placement_counts_and_inverse() -> None:
    assert PLACEMENT.logcnt.tolist() == [[3, 2, 1], [2, 2, 2]]
    assert PLACEMENT.log2phy.tolist() == [
        [[0, 3, 5], [1, 4, -1], [2, -1, -1]],
        [[3, 4, -1], [2, 5, -1], [0, 1, -1]],
    ]
    assert PLACEMENT.holds[0].tolist() == [[True, True, False], [True, False, True], [True, True, False]]
    assert PLACEMENT.twins.tolist() == [0, 1]
    assert (PLACEMENT.num_layers, PLACEMENT.num_slots, PLACEMENT.slots_per_rank) == (2, 6, 2)


def test_placement_moves_are_experts_that_a_rank_did_not_hold() -> None:
    before = contiguous_placement(2, 3, 3, 6)
    assert before.phy2log.tolist() == [[0, 1, 2, 0, 1, 2]] * 2
    # Layer 0: rank 2 had 1 and 2, now 1 and 0. Layer 1: rank 0 fetches 2, rank 1 had 2 and 0, now 1 and 0; rank 2
    # had 1 and 2, now 0 and 1.
    assert PLACEMENT.moves_from(before).tolist() == [1, 3]
    assert PLACEMENT.moves_from(PLACEMENT).tolist() == [0, 0]
    swapped = Placement(PLACEMENT.phy2log[:, [1, 0, 2, 3, 4, 5]], 3, 3)
    assert swapped.moves_from(PLACEMENT).tolist() == [0, 0], "slots of one rank may trade places"
    with pytest.raises(PlacementError, match="differ in layers, ranks or experts"):
        PLACEMENT.moves_from(contiguous_placement(1, 3, 3, 6))


def test_placement_is_immutable_and_its_own() -> None:
    array = np.array([[0, 1, 2, 0]])
    placement = Placement(array, 2, 3)
    array[0, 0] = 2
    assert placement.phy2log[0, 0] == 0
    for table in (placement.phy2log, placement.log2phy, placement.logcnt, placement.holds):
        with pytest.raises(ValueError, match="read-only"):
            table[:] = 0
    with pytest.raises(FrozenInstanceError):
        placement.num_ranks = 3  # type: ignore[misc]
    assert placement == Placement(placement.phy2log, 2, 3)
    assert placement != Placement(placement.phy2log, 1, 3)
    assert placement != Placement(placement.phy2log, 2, 3, layers=(4,))


@pytest.mark.parametrize(
    ("phy2log", "words"),
    [
        ([0, 1, 2, 0], r"integer array \[layers, slots\]"),
        ([[0.0, 1.0, 2.0, 0.0]], "integer array"),
        (np.zeros((0, 4), np.int64), "integer array"),
        ([[0, 1, 2]], "3 slots are not divisible by num_ranks=2"),
        ([[0, 1, 2, 3]], "layer 0, slot 3 holds expert 3, but experts are 0 to 2"),
        ([[0, 1, 2, 0], [0, -1, 1, 2]], "layer 1, slot 1 holds expert -1"),
        ([[0, 1, 2, 0], [0, 1, 1, 0]], "layer 1: expert 2 has no slot"),
    ],
)
def test_placement_refuses(phy2log: Any, words: str) -> None:
    with pytest.raises(PlacementError, match=words):
        Placement(phy2log, 2, 3)


@pytest.mark.parametrize(
    ("layers", "total", "words"),
    [
        ((3,), None, "names 1 layers, but the array has 2"),
        ((4, 3), None, "increasing"),
        ((3, 9), 9, "layer 9"),
    ],
)
def test_layer_numbers_are_checked(layers: tuple[int, ...], total: int | None, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Placement(PLACEMENT.phy2log, 3, 3, layers=layers, num_model_layers=total)
    with pytest.raises(ArgumentError, match=words):
        LoadTrace(np.ones((2, 3)), layers=layers, num_model_layers=total)


# LoadTrace


def test_trace_of_one_window_and_its_totals() -> None:
    trace = LoadTrace([[1, 2], [3, 4]])
    assert (trace.num_windows, trace.num_layers, trace.num_experts, len(trace)) == (1, 2, 2, 1)
    assert trace.counts.dtype == np.int64
    assert trace.steps.tolist() == [[0, 1]]
    windows = LoadTrace(
        np.arange(12).reshape(3, 2, 2), steps=[[0, 4], [4, 8], [8, 12]], phases=["a", "a", "b"]
    )
    assert windows.total().tolist() == [[12, 15], [18, 21]]
    assert windows[1:].steps.tolist() == [[4, 8], [8, 12]]
    assert windows[-1:].phases == ("b",)


def test_trace_regroup_leaves_out_an_incomplete_group() -> None:
    trace = LoadTrace(np.arange(10).reshape(5, 1, 2), phases=["p", "p", "p", "d", "d"])
    pairs = trace.regroup(2)
    assert pairs.counts.tolist() == [[[0 + 2, 1 + 3]], [[4 + 6, 5 + 7]]]
    assert pairs.steps.tolist() == [[0, 2], [2, 4]]
    assert pairs.phases == ("p", "mixed")
    for size in (0, 6):
        with pytest.raises(ArgumentError, match="cannot regroup 5 windows"):
            trace.regroup(size)


def test_trace_is_immutable_and_its_own() -> None:
    array = np.ones((1, 2, 3))
    trace = LoadTrace(array)
    array[:] = 5
    assert trace.counts.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        trace.counts[:] = 0


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.uint64, np.float16, np.float32])
def test_trace_dtypes(dtype: Any) -> None:
    counts = LoadTrace(np.ones((1, 2, 3), dtype)).counts
    assert counts.dtype == (np.float64 if np.issubdtype(dtype, np.floating) else np.int64)
    assert (counts == 1).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": [[0, 1]]}, r"steps must be \[windows, 2\]"),
        ({"steps": [[0, 1], [2, 2]]}, "first < end"),
        ({"phases": ["a"]}, "phases has 1 tags for 2 windows"),
        ({"top_k": 0}, "top_k must be positive"),
    ],
)
def test_trace_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        LoadTrace(np.ones((2, 1, 3)), **arguments)


def test_trace_is_indexed_with_slices() -> None:
    trace = LoadTrace(np.ones((2, 1, 3)))
    with pytest.raises(TypeError, match="slice"):
        trace[0]  # type: ignore[index]
    with pytest.raises(ArgumentError, match="selects none"):
        trace[5:]


# Measures: expert loads of two layers on PLACEMENT

COUNTS = [[30, 20, 5], [8, 4, 6]]
# Layer 0: replicas carry 10, 10, 5: ranks 10 + 10, 5 + 10, 10 + 10.
# Layer 1: replicas carry 4, 2, 3: ranks 3 + 3, 2 + 4, 4 + 2.
RANK_LOADS = [[20.0, 15.0, 20.0], [6.0, 6.0, 6.0]]


def test_rank_and_slot_loads() -> None:
    assert rank_loads(COUNTS, PLACEMENT).tolist() == RANK_LOADS
    assert rank_loads([COUNTS, COUNTS], PLACEMENT).tolist() == [RANK_LOADS] * 2
    assert expert_loads(COUNTS, PLACEMENT).tolist() == [[10, 10, 5, 10, 10, 10], [3, 3, 2, 4, 4, 2]]


def test_rank_loads_with_shares() -> None:
    shares = [[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 1.0, 0.25, 0.75, 0.0]]
    assert rank_loads(COUNTS, PLACEMENT, shares).tolist() == [[50.0, 5.0, 0.0], [6.0, 4 + 2.0, 6.0]]
    with pytest.raises(ArgumentError, match="shares must be"):
        rank_loads(COUNTS, PLACEMENT, [[1.0]])
    with pytest.raises(ArgumentError, match="counts must end in"):
        rank_loads([[1, 2]], PLACEMENT)


def test_aggregates_by_their_definitions() -> None:
    loads = [[3.0, 1.0], [1.0, 1.0], [0.0, 0.0]]  # max / mean: 3 / 2, 1, and 1 where there is no load
    assert imbalance(loads).tolist() == [1.5, 1.0, 1.0]
    found = balance(loads)
    assert found.mean_imbalance == pytest.approx((1.5 + 1 + 1) / 3)
    assert found.worst_layer == 1.5
    assert found.mean_of_ratios == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found.ratio_of_sums == pytest.approx((2 + 1 + 0) / (3 + 1 + 0))
    assert set(found.as_dict()) == {"mean_imbalance", "worst_layer", "mean_of_ratios", "ratio_of_sums"}


def test_aggregates_over_windows() -> None:
    calm, hot = [[1.0, 1.0], [1.0, 1.0]], [[3.0, 1.0], [2.0, 0.0]]
    found = balance([calm, hot])
    assert found.mean_imbalance == pytest.approx((1 + 1 + 1.5 + 2) / 4)
    assert found.worst_layer == pytest.approx((1 + 2) / 2)
    assert found.mean_of_ratios == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    assert found.ratio_of_sums == pytest.approx((1.0 + (2 + 1) / (3 + 2)) / 2)
    with pytest.raises(ArgumentError, match="loads must be"):
        balance([1.0, 2.0])
