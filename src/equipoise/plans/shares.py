"""`split_shares`: token shares fitted to recorded loads, for a placement that is fixed."""

from __future__ import annotations

import numpy.typing as npt

from ..errors import ArgumentError
from ..placement import Placement
from ..planning.shares import FloatArray, split_windows
from ..planning.windows import to_vectors
from ..trace import LoadTrace, check_loads


def split_shares(trace: LoadTrace | npt.ArrayLike, placement: Placement) -> FloatArray:
    """Token shares for a fixed placement: best for one window, best on average for several.

    Shares fitted to little traffic overfit: score them on later windows (``equipoise.rank_loads`` takes them)
    before an engine uses them.

    Parameters
    ----------
    trace : a `LoadTrace`, or counts ``[L, E]`` or ``[W, L, E]``
    placement : of the same layers and experts

    Returns
    -------
    ``shares [L, R]``: the part of its expert's tokens that each slot takes; each expert's sum to 1

    Raises
    ------
    ArgumentError
        if loads are bad or do not fit the placement

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> split_shares([[60.0, 30.0, 10.0]], placement).round(3).tolist()
    [[0.333, 1.0, 0.667, 1.0]]
    """
    counts = trace.counts if isinstance(trace, LoadTrace) else check_loads(trace, "trace", (2, 3))
    counts = counts[None] if counts.ndim == 2 else counts
    expected = (placement.num_layers, placement.num_experts)
    if counts.shape[1:] != expected:
        raise ArgumentError(
            f"trace has [layers, experts] = {list(counts.shape[1:])}, the placement {list(expected)}"
        )
    return split_windows(to_vectors(counts, placement.num_ranks), placement.phy2log, placement.num_ranks)
