"""Whether the three maps of a program say the same legal thing; the first fault is the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .process import Refused

IntArray = npt.NDArray[np.int64]


def check_maps(maps: Sequence[IntArray], num_layers: int, num_experts: int, num_slots: int) -> None:
    """Check shapes, ranges, counts against the map, and both directions of the map against each other.

    Parameters
    ----------
    maps : ``phy2log [L, R]``, ``log2phy [L, E, X]`` padded with -1, ``logcnt [L, E]``
    num_layers, num_experts, num_slots : ``L``, ``E`` and ``R``

    Raises
    ------
    Refused
        naming the map, the layer, and what is wrong
    """
    phy2log, log2phy, logcnt = maps
    for name, array, axes in (
        ("phy2log", phy2log, "[layers, slots]"),
        ("log2phy", log2phy, "[layers, experts, replicas]"),
        ("logcnt", logcnt, "[layers, experts]"),
    ):
        if array.ndim != axes.count(",") + 1:
            raise Refused(
                f"{name} must have the axes {axes}, got {array.ndim} dimensions: {list(array.shape)}"
            )
    for name, found, expected in (
        ("phy2log", phy2log.shape, (num_layers, num_slots)),
        ("log2phy", log2phy.shape[:2], (num_layers, num_experts)),
        ("logcnt", logcnt.shape, (num_layers, num_experts)),
    ):
        if found != expected:
            raise Refused(f"{name} must begin with the shape {list(expected)}, got {list(found)}")

    if bad := _first((phy2log < 0) | (phy2log >= num_experts)):
        raise Refused(f"phy2log: layer {bad[0]}, slot {bad[1]} holds expert {phy2log[bad]}, out of range")
    layers = np.arange(num_layers)
    held = np.zeros((num_layers, num_experts), dtype=np.int64)
    np.add.at(held, (layers[:, None], phy2log), 1)
    if bad := _first(held == 0):
        raise Refused(f"phy2log: layer {bad[0]} drops expert {bad[1]}: it has no slot")
    if bad := _first(logcnt != held):
        raise Refused(
            f"logcnt: layer {bad[0]} claims {logcnt[bad]} replicas of expert {bad[1]}, phy2log has {held[bad]}"
        )
    width = log2phy.shape[2]
    if width < held.max():
        raise Refused(f"log2phy has room for {width} replicas, but an expert has {held.max()}")
    expected_entry = np.arange(width) < held[:, :, None]
    entry = log2phy >= 0
    if bad := _first((entry != expected_entry) | (log2phy < -1) | (log2phy >= num_slots)):
        raise Refused(
            f"log2phy: layer {bad[0]}, expert {bad[1]}, replica {bad[2]} is {log2phy[bad]}; "
            f"expected {'a slot' if expected_entry[bad] else '-1 (padding)'}"
        )
    where = np.nonzero(entry)
    slots = log2phy[where]
    wrong = phy2log[where[0], slots] != where[1]
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        layer, expert, slot = (int(where[0][first]), int(where[1][first]), int(slots[first]))
        raise Refused(
            f"log2phy: layer {layer} gives slot {slot} to expert {expert}, phy2log to {phy2log[layer, slot]}"
        )
    named = np.zeros((num_layers, num_slots), dtype=np.int64)
    np.add.at(named, (where[0], slots), 1)
    if bad := _first(named != 1):
        raise Refused(f"log2phy: layer {bad[0]} names slot {bad[1]} {named[bad]} times")


def _first(faults: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """The place of the first fault, empty if there is none."""
    return tuple(int(i) for i in np.argwhere(faults)[0]) if faults.any() else ()
