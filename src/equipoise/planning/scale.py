"""Loads as exact integers, so that plans depend neither on their scale nor on the order of summation.

Each layer's loads are mapped to 0 ... 2^30 (its largest load). Every sum of such numbers is exact in 64-bit
integers and in float64, on a CPU and on a GPU; a plan from tokens equals the plan from tokens per second. One
part in 2^30 is far below anything that balance is measured in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SCALE = 1 << 30


def sum_windows(loads: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Loads ``[W, L, E]`` summed one window after the other: ``[L, E]``.

    NumPy's own order of summation depends on the strides of the array, and with it the last bit of the result.
    """
    total: npt.NDArray[Any] = loads[0]
    for window in loads[1:]:
        total = np.add(total, window)
    return total


def to_integers(loads: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Loads ``[..., E]`` to integers ``[..., E]``; the largest of each row becomes 2^30, a row of zeros stays."""
    largest = loads.max(axis=-1, keepdims=True)
    scaled = np.divide(loads, np.where(largest > 0, largest, 1), dtype=np.float64)
    scaled *= SCALE
    return np.asarray(np.rint(scaled, out=scaled).astype(np.int64))
