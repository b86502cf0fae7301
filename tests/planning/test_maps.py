"""The compiled maps are those of `Placement`."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Placement
from equipoise.planning.maps import inverse_maps


@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=200)
def test_maps(data: st.DataObject, num_layers: int, num_experts: int, num_ranks: int, slots: int) -> None:
    slot = st.integers(0, num_experts - 1)
    size = num_ranks * slots
    phy2log = np.array(
        data.draw(
            st.lists(st.lists(slot, min_size=size, max_size=size), min_size=num_layers, max_size=num_layers)
        )
    )
    maps = inverse_maps(phy2log, num_experts)
    if any(set(row) != set(range(num_experts)) for row in phy2log.tolist()):
        assert maps is None
        return
    assert maps is not None
    placement = Placement(phy2log, num_ranks, num_experts)
    assert np.array_equal(maps[0], placement.log2phy)
    assert np.array_equal(maps[1], placement.logcnt)


def test_experts_out_of_range() -> None:
    for bad in (-1, 3):
        assert inverse_maps(np.array([[0, 1, 2, bad]]), 3) is None
