"""The maps that engines ask for, compiled: on a serving path `Placement` would take longer than the plan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .kernel import kernel

IntArray = npt.NDArray[np.int64]


@kernel
def _count(phy2log, logcnt):
    """Count replicas; false if the placement is not legal.

    ``phy2log [L, R]``: experts of slots. ``logcnt [L, E]``: zeros, written.
    """
    for layer in range(phy2log.shape[0]):
        for expert in phy2log[layer]:
            if expert < 0 or expert >= logcnt.shape[1]:
                return False
            logcnt[layer, expert] += 1
        for count in logcnt[layer]:
            if count == 0:
                return False
    return True


@kernel
def _list_slots(phy2log, log2phy):
    """The slots of each expert, ascending, padded with -1.

    ``phy2log [L, R]``: experts of slots. ``log2phy [L, E, X]`` is written.
    """
    num_layers, num_experts, width = log2phy.shape
    filled = np.empty(num_experts, np.int64)
    for layer in range(num_layers):
        filled[:] = 0
        for slot in range(phy2log.shape[1]):
            expert = phy2log[layer, slot]
            log2phy[layer, expert, filled[expert]] = slot
            filled[expert] += 1
        for expert in range(num_experts):
            for at in range(filled[expert], width):
                log2phy[layer, expert, at] = -1


def inverse_maps(phy2log: IntArray, num_experts: int) -> tuple[IntArray, IntArray] | None:
    """Slots of each expert and replica counts, as `Placement` derives them.

    Parameters
    ----------
    phy2log : ``[L, R]``, int64

    Returns
    -------
    ``log2phy [L, E, X]`` and ``logcnt [L, E]``, or ``None`` if the placement is not legal
    """
    logcnt = np.zeros((len(phy2log), num_experts), np.int64)
    if not _count(phy2log, logcnt):
        return None
    log2phy = np.empty((len(phy2log), num_experts, int(logcnt.max())), np.int64)
    _list_slots(phy2log, log2phy)
    return log2phy, logcnt
