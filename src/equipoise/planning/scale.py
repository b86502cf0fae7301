"""Loads as exact integers, so that plans depend neither on their scale nor on the order of summation.

Each layer's loads are mapped to 0 ... 2^30 (its largest load). Every sum of such numbers is exact in 64-bit
integers and in float64, on a CPU and on a GPU; a plan from tokens equals the plan from tokens per second. One
part in 2^30 is far below anything that balance is measured in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel

SCALE = 1 << 30


def sum_windows(loads: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Loads ``[W, L, E]`` summed one window after the other: ``[L, E]``.

    NumPy's own order of summation depends on the strides of the array, and with it the last bit of the result.
    """
    total: npt.NDArray[Any] = loads[0]
    for window in loads[1:]:
        total = np.add(total, window)
    return total


@kernel
def scale_row(loads, integers):
    """Loads ``loads [E]`` to ``integers [E]``, which are written; see `to_integers`."""
    largest = 0.0
    for load in loads:
        largest = max(largest, load)
    unit = largest if largest > 0.0 else 1.0
    for e in range(loads.size):
        integers[e] = np.int64(np.rint(loads[e] / unit * SCALE))


@kernel
def _integer_rows(first, last, loads, integers):
    """Rows ``first`` to ``last`` of ``loads [N, E]`` to ``integers [N, E]``, which are written."""
    for row in range(first, last):
        scale_row(loads[row], integers[row])


def to_integers(loads: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Loads ``[..., E]`` to integers ``[..., E]``; the largest of each row becomes 2^30, a row of zeros stays."""
    rows = np.asarray(loads, dtype=np.float64).reshape(-1, loads.shape[-1])
    integers = np.empty(rows.shape, np.int64)
    for_layers(_integer_rows, len(rows), rows, integers)
    return integers.reshape(loads.shape)
