"""Placements and what follows from them, against numbers worked by hand."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import (
    EquipoiseError,
    Placement,
    PlacementError,
    contiguous_placement,
)
from equipoise.placement import derived

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
