"""Token shares of one batch: the dispatcher sees the loads that a plan can only expect."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..placement import Placement
from ..planning.shares import FloatArray
from ..planning.sweeps import sweep_batch
from ..trace import check_loads

SWEEPS = 3  # benchmarks/bench_split.py has what they leave of the optimum


def split_batch(counts: npt.ArrayLike, placement: Placement, sweeps: int = SWEEPS) -> FloatArray:
    """Token shares of one batch by water-filling, from an even split on.

    Experts that several ranks share hang in a forest over the ranks, which the placement alone decides. A sweep goes
    over it from the leaves to the roots and back, and fills the ranks of each expert up to one level
    (`planning/sweeps.py`). No rank is busier in the end than the busiest one of an even split. ``sweeps`` of 20,000
    is the optimum within 1e-6, and ends as soon as that is proved.

    Parameters
    ----------
    counts : ``[L, E]``, tokens of the batch for each expert, of all ranks together
    placement : of the same layers and experts
    sweeps : at least 0, which is an even split

    Returns
    -------
    ``shares [L, R]``: the part of its expert's tokens that each slot takes; each expert's sum to 1, evenly where it
    has no tokens

    Raises
    ------
    ArgumentError
        if counts are bad or do not fit the placement, or ``sweeps`` is negative

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> split_batch([[60, 30, 10]], placement).round(3).tolist()
    [[0.333, 1.0, 0.667, 1.0]]
    """
    loads = np.asarray(check_loads(counts, "counts", (2,)), np.float64)
    expected = (placement.num_layers, placement.num_experts)
    if loads.shape != expected:
        raise ArgumentError(
            f"counts has [layers, experts] = {list(loads.shape)}, the placement {list(expected)}"
        )
    if sweeps < 0:
        raise ArgumentError(f"sweeps must not be negative, got {sweeps}")
    return sweep_batch(loads, placement.phy2log, placement.num_ranks, sweeps)
