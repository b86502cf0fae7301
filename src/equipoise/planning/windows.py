"""Windows of loads as vectors: every window counts alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .scale import to_integers


def merge_windows(loads: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """At most ``most`` windows: consecutive ones are summed, the newest groups being the full ones.

    Parameters
    ----------
    loads : ``[W, L, E]``, oldest first
    """
    if len(loads) <= most:
        return loads
    size = -(-len(loads) // most)
    first = len(loads) % size
    starts = np.r_[0, np.arange(first, len(loads), size)] if first else np.arange(0, len(loads), size)
    return np.add.reduceat(loads, starts, axis=0)


def to_vectors(loads: npt.NDArray[Any], num_ranks: int) -> npt.NDArray[np.float64]:
    """Loads ``[W, L, E]`` to vectors ``[L, W, E]``, scaled so that a window's mean rank load is 1.

    They go through the integers of `to_integers`, so they do not depend on the scale of the loads. A window
    without load in a layer is a row of zeros.
    """
    integers = to_integers(loads).astype(np.float64)
    sums = integers.sum(axis=2, keepdims=True)
    vectors = np.divide(integers * num_ranks, sums, out=np.zeros_like(integers), where=sums > 0)
    return np.ascontiguousarray(vectors.transpose(1, 0, 2))
