"""Topologies, and what is none."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from equipoise import (
    ArgumentError,
    EquipoiseError,
    Topology,
)


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
        (lambda: Topology.from_slots(10, 4), ["10 slots", "4 ranks", "use 12"]),
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
