"""A counter-based generator: the number for (seed, layer, candidate, item), whoever asks and in whatever order.

The mixing step is SplitMix64's (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA
2014). Results therefore do not depend on threads, device or batching, and no global state exists.
"""

from __future__ import annotations

import numpy as np

from .kernel import kernel

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
DRAW_BITS = 39  # with 20 bits of item number behind them, draws sort as one 64-bit integer


@kernel
def mix(state, number):
    """Fold a number into a 64-bit state.

    ``state``: 64 bits, unsigned. ``number``: an integer.
    """
    z = state + np.uint64(number + 1) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return z ^ (z >> np.uint64(31))


@kernel
def draw(state, item):
    """The draw of an item: uniform in 0 ... 2^39 - 1.

    ``state``: of the generator. ``item``: an integer.
    """
    return np.int64(mix(state, item) >> np.uint64(64 - DRAW_BITS))
