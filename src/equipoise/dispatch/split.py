"""Token shares of one batch: the dispatcher sees the loads that a plan can only expect."""

from __future__ import annotations

from typing import Any

from ..placement import Placement
from ..planning.sweeps import sweep_batch
from ..planning.tensors import like
from .maps import DeviceMaps, check_shape, check_sweeps, on_device, to_loads

SWEEPS = 3  # benchmarks/bench_split.py has what they leave of the optimum


def split_batch(counts: Any, placement: Placement | DeviceMaps, sweeps: int = SWEEPS) -> Any:
    """Token shares of one batch by water-filling, from an even split on.

    Experts that several ranks share hang in a forest over the ranks, which the placement alone decides. A sweep goes
    over it from the leaves to the roots and back, and fills the ranks of each expert up to one level
    (`planning/sweeps.py`). No rank is busier in the end than the busiest one of an even split. ``sweeps`` of 20,000
    is the optimum within 1e-6, and ends as soon as that is proved.

    Parameters
    ----------
    counts : ``[L, E]``, tokens of the batch for each expert, of all ranks together: an array, or a torch tensor
    placement : of the same layers and experts. `DeviceMaps` for tensors in a captured graph: then nothing is read
        back, and of counts the shape alone is checked
    sweeps : at least 0, which is an even split

    Returns
    -------
    ``shares [L, R]``: the part of its expert's tokens that each slot takes; each expert's sum to 1, evenly where it
    has no tokens. An array, or a tensor in float64 where ``counts`` live

    Raises
    ------
    ArgumentError
        if counts are bad or do not fit the placement, or ``sweeps`` is no whole number from 0 on

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> split_batch([[60, 30, 10]], placement).round(3).tolist()
    [[0.333, 1.0, 0.667, 1.0]]
    """
    sweeps = check_sweeps(sweeps)
    found = on_device(counts, placement)
    if found is not None:
        backend, maps = found
        check_shape("counts", counts, "[layers, experts]", tuple(maps.logcnt.shape))
        return backend.split_batch(counts, maps, sweeps)
    assert isinstance(placement, Placement)
    loads = to_loads(counts, placement)
    return like(counts, sweep_batch(loads, placement.phy2log, placement.num_ranks, sweeps))
