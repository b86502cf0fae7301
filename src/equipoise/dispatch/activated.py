"""Shares of one batch for decode: every hit expert is served at one replica, so that few weights are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..metrics import slot_shares
from ..placement import Placement
from ..planning.activated import activate
from ..planning.tensors import like
from .maps import DeviceMaps, check_shape, check_sweeps, on_device, to_loads

ACTIVATED_SWEEPS = 2  # benchmarks/bench_activated.py has what they leave of the optimum


def split_activated(counts: Any, placement: Placement | DeviceMaps, sweeps: int = ACTIVATED_SWEEPS) -> Any:
    """Token shares of one batch that activate every hit expert at one replica, as METRO does.

    In decode a rank reads the weights of each slot that gets a token, however many tokens that are. An even split
    activates every replica that gets one. Here a hit expert has all its tokens at one slot, on the rank that has the
    fewest activated experts (Yu et al., arXiv 2512.09277), experts from the leaves of the placement's forest to its
    roots, those that have not chosen yet counted on each of their ranks with their part.

    Parameters
    ----------
    counts : ``[L, E]``, tokens of the batch for each expert, of all ranks together: an array, or a torch tensor
    placement : of the same layers and experts. `DeviceMaps` for tensors in a captured graph: then nothing is read
        back, and of counts the shape alone is checked
    sweeps : how often all experts of several ranks choose again, at least 0

    Returns
    -------
    ``shares [L, R]`` for `equipoise.assign`: 1 for the slot that takes all tokens of a hit expert, 0 for its other
    replicas; even where an expert has no tokens. An array, or a tensor in float64 where ``counts`` live

    Raises
    ------
    ArgumentError
        if counts are bad or do not fit the placement, or ``sweeps`` is no whole number from 0 on

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> split_activated([[60, 30, 0]], placement).tolist()
    [[0.0, 1.0, 1.0, 1.0]]
    """
    sweeps = check_sweeps(sweeps)
    found = on_device(counts, placement)
    if found is not None:
        backend, maps = found
        check_shape("counts", counts, "[layers, experts]", tuple(maps.logcnt.shape))
        return backend.split_activated(counts, maps, sweeps)
    assert isinstance(placement, Placement)
    loads = to_loads(counts, placement)
    slots = activate(loads[None] > 0, placement.phy2log, placement.num_ranks, sweeps)[0]
    layers = np.arange(placement.num_layers)[:, None]
    serving = slots[layers, placement.phy2log]  # of the expert in each slot
    own = (serving == np.arange(placement.num_slots)).astype(np.float64)
    return like(counts, np.where(serving < 0, slot_shares(placement), own))
