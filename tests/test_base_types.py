"""Topology, placements, traces and measures, against numbers worked by hand."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import (
    ArgumentError,
    EquipoiseError,
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
from equipoise.placement import derived

# Topology


def test_topology() -> None:
    topology = Topology(num_ranks=32, slots_per_rank=9, num_nodes=4, num_groups=8)
    assert (topology.num_slots, topology.ranks_per_node, topology.slots_per_node) == (288, 8, 72)
    assert topology.hierarchical
    assert Topology.from_slots(288, 32, 4, 8) == topology
    assert not Topology(32, 9, 1, 8).hierarchical, "one node"
    assert not Topology(32, 9, 4, 6).hierarchical, "4 nodes do not divide 6 groups"
    assert type(Topology(np.int32(4), np.int64(2)).num_ranks) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology.num_ranks = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Topology(0, 1), ["num_ranks", "positive", "0"]),
        (lambda: Topology(4, -1), ["slots_per_rank", "-1"]),
        (lambda: Topology(4, 2.0), ["slots_per_rank", "2.0"]),  # type: ignore[arg-type]
        (lambda: Topology(True, 2), ["num_ranks", "True"]),
        (lambda: Topology(6, 2, 4), ["num_ranks=6", "num_nodes=4", "num_nodes=1"]),
        (lambda: Topology(1 << 13, 1), ["8192 ranks"]),
        (lambda: Topology(64, 1 << 15), ["2097152 slots"]),
        (lambda: Topology.from_slots(10, 4), ["10 slots", "4 ranks", "12 or 8"]),
        (lambda: Topology.from_slots(3, 4), ["use 4"]),
        (lambda: Topology.from_slots(8, 0), ["num_ranks", "0"]),
        (lambda: Topology(4, 2).check_experts(9), ["9 experts", "8 slots", "slots_per_rank=3"]),
        (lambda: Topology(4, 2, 1, 4).check_experts(6), ["6 experts", "num_groups=4", "num_groups=1"]),
    ],
)
def test_topologies_that_are_none(make: Any, words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        make()
    for word in words:
        assert word in str(error.value)
    assert isinstance(error.value, (ValueError, EquipoiseError))


# Placement

# Two layers, three ranks of two slots, four experts.
ROWS = [[0, 1, 2, 0, 3, 3], [1, 0, 3, 2, 1, 1]]


def placement() -> Placement:
    return Placement(np.array(ROWS), 3, 4, layers=(3, 4), num_model_layers=6)


def test_what_follows_from_phy2log() -> None:
    found = placement()
    assert (found.num_layers, found.num_slots, found.slots_per_rank) == (2, 6, 2)
    assert found.logcnt.tolist() == [[2, 1, 1, 2], [1, 3, 1, 1]]
    assert found.log2phy.tolist() == [
        [[0, 3, -1], [1, -1, -1], [2, -1, -1], [4, 5, -1]],
        [[1, -1, -1], [0, 4, 5], [3, -1, -1], [2, -1, -1]],
    ]
    assert found.twins.tolist() == [1, 1]
    assert found.holds.shape == (2, 3, 4)
    assert found.holds[0].tolist() == [
        [True, True, False, False],
        [True, False, True, False],
        [False, False, False, True],
    ]
    assert found.layers == (3, 4)


def test_twins_count_all_replicas_of_a_rank_but_one() -> None:
    assert Placement([[0, 0, 0, 1], [0, 1, 1, 0]], 1, 2).twins.tolist() == [2, 2]
    assert Placement([[0, 0, 0, 1], [0, 1, 1, 0]], 2, 2).twins.tolist() == [1, 0]


@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_maps_are_each_others_inverse(data: st.DataObject, ranks: int, slots: int, layers: int) -> None:
    experts = data.draw(st.integers(1, ranks * slots))
    spare = st.lists(
        st.integers(0, experts - 1), min_size=ranks * slots - experts, max_size=ranks * slots - experts
    )
    rows = [data.draw(st.permutations([*range(experts), *data.draw(spare)])) for _ in range(layers)]
    found = Placement(rows, ranks, experts)
    assert found.log2phy.shape == (layers, experts, found.logcnt.max())
    for layer, row in enumerate(rows):
        for expert in range(experts):
            slots_of = [slot for slot, held in enumerate(row) if held == expert]
            padding = [-1] * (found.log2phy.shape[2] - len(slots_of))
            assert found.log2phy[layer, expert].tolist() == slots_of + padding
            assert found.logcnt[layer, expert] == len(slots_of)
        on_ranks = [set(row[rank * slots : (rank + 1) * slots]) for rank in range(ranks)]
        assert found.twins[layer] == len(row) - sum(map(len, on_ranks))


def test_moves_are_what_a_rank_did_not_hold() -> None:
    before = Placement([[0, 1, 2, 0, 3, 3]], 3, 4)
    assert before.moves_from(before).tolist() == [0]
    # Other slots of the same rank, another number of twins: nothing to fetch.
    assert Placement([[1, 0, 0, 2, 3, 3]], 3, 4).moves_from(before).tolist() == [0]
    # Rank 1 fetches 3, rank 2 fetches 1 and 2; rank 0 gives up its expert 1 for a second 0: no fetch.
    after = Placement([[0, 0, 0, 3, 1, 2]], 3, 4)
    assert after.moves_from(before).tolist() == [3]
    assert before.moves_from(after).tolist() == [3]  # 1 back on rank 0, 2 on rank 1, 3 on rank 2
    # Two replicas of one expert on one rank are fetched once.
    assert Placement([[0, 1, 2, 2, 1, 1]], 3, 3).moves_from(
        Placement([[0, 1, 2, 0, 2, 2]], 3, 3)
    ).tolist() == [1]


def test_moves_need_placements_that_compare() -> None:
    with pytest.raises(PlacementError, match="differ in layers, ranks or experts"):
        placement().moves_from(Placement([[0, 1, 2, 3, 0, 1]], 3, 4))
    with pytest.raises(PlacementError, match=r"\(1, 3, 4\)"):
        Placement([[0, 1, 2, 3]], 2, 4).moves_from(Placement([[0, 1, 2, 3, 0, 1]], 3, 4))


def test_a_placement_cannot_be_changed() -> None:
    rows = np.array(ROWS)
    found = Placement(rows, 3, 4)
    rows[0, 0] = 1
    assert found.phy2log[0, 0] == 0
    for array in (found.phy2log, found.logcnt, found.log2phy, found.holds):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.num_ranks = 2  # type: ignore[misc]
    assert found.logcnt.tolist() == [[2, 1, 1, 2], [1, 3, 1, 1]]


def test_computing_a_map_holds_up_no_other_placement() -> None:
    """With one lock for all placements, a worker forked while another thread holds it waits for ever."""

    class Slow:
        def __init__(self, wait: threading.Event) -> None:
            self.begun, self.wait = threading.Event(), wait

        @derived
        def value(self) -> int:
            self.begun.set()
            self.wait.wait(timeout=20)
            return 7

    never, at_once = threading.Event(), threading.Event()
    at_once.set()
    slow, quick = Slow(never), Slow(at_once)
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    assert slow.begun.wait(timeout=20)
    assert quick.value == 7
    assert thread.is_alive(), "the value came only after the other one"
    never.set()
    thread.join()
    assert vars(slow)["value"] == 7


def test_equal_placements() -> None:
    assert placement() == placement()
    assert placement() != Placement(ROWS, 3, 4), "other layers of the model"
    assert Placement(ROWS, 3, 4) != Placement(ROWS, 2, 4)
    assert Placement(ROWS, 3, 4) != Placement(ROWS[::-1], 3, 4)
    assert Placement(ROWS, 3, 4) != ROWS
    with pytest.raises(TypeError):
        hash(placement())


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([[0, 1, 2]], 2, 3), {}, ["3 slots", "num_ranks=2"]),
        (([[0, 1]], 0, 2), {}, ["num_ranks=0"]),
        (([[0, 4]], 1, 2), {}, ["layer 0", "slot 1", "expert 4", "0 to 1"]),
        (([[0, 1], [0, -1]], 1, 2), {}, ["layer 1", "slot 1", "expert -1"]),
        (([[0, 1, 2], [0, 0, 2]], 1, 3), {}, ["layer 1", "expert 1", "no slot"]),
        (([0, 1], 1, 2), {}, ["[layers, slots]", "[2]"]),
        (([[0.0, 1.0]], 1, 2), {}, ["integer", "float64"]),
        ((np.zeros((0, 4), int), 1, 1), {}, ["[0, 4]"]),
        ((ROWS, 3, 4), {"layers": (1,)}, ["1 layers", "2"]),
        ((ROWS, 3, 4), {"layers": (4, 3)}, ["strictly increasing"]),
        ((ROWS, 3, 4), {"layers": (-1, 3)}, ["not negative"]),
        ((ROWS, 3, 4), {"layers": (1, 9), "num_model_layers": 9}, ["layer 9", "num_model_layers is 9"]),
    ],
)
def test_placements_that_are_none(arguments: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(EquipoiseError) as error:
        Placement(*arguments, **options)
    for word in words:
        assert word in str(error.value)


def test_contiguous_placement() -> None:
    assert contiguous_placement(2, 4, 2).phy2log.tolist() == [[0, 1, 2, 3]] * 2
    assert contiguous_placement(1, 4, 2, 6).phy2log.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert contiguous_placement(1, 2, 1, 5).phy2log.tolist() == [[0, 1, 0, 1, 0]]
    with pytest.raises(PlacementError, match="5 slots"):
        contiguous_placement(1, 4, 2, 5)
    with pytest.raises(PlacementError, match="expert 3 has no slot"):
        contiguous_placement(1, 4, 1, 3)


# LoadTrace

COUNTS = np.arange(5 * 2 * 3).reshape(5, 2, 3)


def trace() -> LoadTrace:
    return LoadTrace(
        COUNTS,
        layers=(3, 4),
        num_model_layers=6,
        steps=[[0, 10], [10, 20], [20, 30], [35, 40], [40, 41]],  # type: ignore[arg-type]
        phases=("prefill", "prefill", "decode", "prefill", "mixed"),
        top_k=2,
        source="somewhere",
    )


def test_a_trace() -> None:
    found = trace()
    assert (len(found), found.num_windows, found.num_layers, found.num_experts) == (5, 5, 2, 3)
    assert found.total().tolist() == [[60, 65, 70], [75, 80, 85]]
    assert found.counts.dtype == np.int64
    assert LoadTrace([[1, 2]]).counts.shape == (1, 1, 2), "one window"
    assert LoadTrace([[1, 2]]).steps.tolist() == [[0, 1]]  # type: ignore[union-attr]
    assert LoadTrace([[1, 2]]).layers == (0,)
    assert LoadTrace(np.array([[1, 2]], np.float32)).counts.dtype == np.float64
    assert LoadTrace(np.array([[1, 2]], np.uint8)).counts.dtype == np.int64
    beyond = LoadTrace(np.array([[1, 1 << 63]], np.uint64))
    assert beyond.counts.tolist() == [[[1.0, 2.0**63]]]


def test_slices_of_a_trace() -> None:
    last = trace()[-2:]
    assert np.array_equal(last.counts, COUNTS[-2:])
    assert last.steps.tolist() == [[35, 40], [40, 41]]  # type: ignore[union-attr]
    assert last.phases == ("prefill", "mixed")
    assert (last.layers, last.num_model_layers, last.top_k, last.source) == ((3, 4), 6, 2, "somewhere")
    assert np.shares_memory(last.counts, trace()[:].counts) is False
    whole = trace()
    assert np.shares_memory(whole[1:].counts, whole.counts)
    assert trace()[::2].phases == ("prefill", "decode", "mixed")
    with pytest.raises(ArgumentError, match="none of the 5 windows"):
        trace()[7:]
    with pytest.raises(TypeError, match="slice"):
        trace()[0]  # type: ignore[index]


def test_regroup() -> None:
    found = trace().regroup(2)
    assert np.array_equal(found.counts, [COUNTS[0] + COUNTS[1], COUNTS[2] + COUNTS[3]])
    assert found.steps.tolist() == [[0, 20], [20, 40]]  # type: ignore[union-attr]
    assert found.phases == ("prefill", "mixed")
    assert found.layers == (3, 4)
    assert np.array_equal(trace().regroup(1).counts, COUNTS)
    assert np.array_equal(trace().regroup(5).counts[0], trace().total())
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0, 0, 0] = 1
    for size in (0, -1, 6):
        with pytest.raises(ArgumentError, match=f"5 windows by {size}"):
            trace().regroup(size)


@given(st.integers(1, 9), st.integers(1, 9))
def test_regrouping_keeps_the_tokens_of_whole_groups(windows: int, size: int) -> None:
    counts = np.random.default_rng(windows).integers(0, 99, (windows, 2, 3))
    if size <= windows:
        found = LoadTrace(counts).regroup(size)
        assert len(found) == windows // size
        assert np.array_equal(found.total(), counts[: windows // size * size].sum(axis=0))


def test_a_trace_cannot_be_changed() -> None:
    counts = COUNTS.copy()
    found = LoadTrace(counts)
    counts[0, 0, 0] = 77
    assert found.counts[0, 0, 0] == 0
    assert counts.flags.writeable
    for array in (found.counts, found[1:].counts, found.steps):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        ([1, 2], {}, ["counts", "[layers, experts]", "[2]"]),
        (np.ones((1, 1, 1, 1)), {}, ["[1, 1, 1, 1]"]),
        (np.ones((0, 2, 3)), {}, ["empty", "[0, 2, 3]"]),
        ([[1, -2]], {}, ["counts[0, 1]", "-2"]),
        ([[np.nan, 1]], {}, ["counts[0, 0]", "nan"]),
        ([[1, np.inf]], {}, ["counts[0, 1]", "inf"]),
        ([[1, 2], [3]], {}, ["ragged"]),
        ([["a"]], {}, ["numbers"]),
        (COUNTS, {"layers": (1, 2, 3)}, ["3 layers", "2"]),
        (COUNTS, {"layers": (2, 2)}, ["strictly increasing"]),
        (COUNTS, {"num_model_layers": 1}, ["num_model_layers is 1"]),
        (COUNTS, {"steps": [[0, 1]]}, ["steps", "[5, 2]", "[1, 2]"]),
        (COUNTS, {"steps": [[0, 0]] * 5}, ["first < end"]),
        (COUNTS, {"phases": ("decode",)}, ["phases", "1 tags", "5 windows"]),
        (COUNTS, {"top_k": 0}, ["top_k", "0"]),
    ],
)
def test_traces_that_are_none(counts: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        LoadTrace(counts, **options)
    for word in words:
        assert word in str(error.value)


# Measures

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
