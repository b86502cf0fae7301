"""Candidate orders: permutations of the items of a layer to feed to the packer.

Kinds, in the order of their candidate numbers:

- LPT: heaviest first;
- interleaved: heaviest, lightest, second heaviest, second lightest, ...;
- random: a uniform permutation;
- noisy LPT: heaviest first after multiplying every weight by a number uniform in [1 - noise, 1 + noise).
"""

from __future__ import annotations

import numpy as np

from .kernel import kernel
from .random import DRAW_BITS, draw, mix

# A noisy weight is below 2^30 * 2; scaled by this it fills the bits of a draw.
NOISE_SCALE = 1 << (DRAW_BITS - 31)
LARGEST_KEY = (1 << DRAW_BITS) - 1
ITEM_BITS = 20


@kernel
def lpt_order(weight, order):
    """Heaviest first; ties by item number."""
    for i in range(weight.size):
        order[i] = ((LARGEST_KEY - weight[i]) << ITEM_BITS) | i
    _sorted_items(order)


@kernel
def interleaved_order(lpt, order):
    """Alternately from both ends of the LPT order, the heaviest first."""
    for i in range(lpt.size):
        order[i] = lpt[lpt.size - 1 - i // 2] if i % 2 else lpt[i // 2]


@kernel
def random_order(state, order):
    """Items sorted by their draws."""
    for i in range(order.size):
        order[i] = (draw(state, i) << ITEM_BITS) | i
    _sorted_items(order)


@kernel
def noisy_order(state, weight, noise, order):
    """Heaviest first after multiplicative noise; ties by item number."""
    unit = 1.0 / (1 << DRAW_BITS)
    for i in range(order.size):
        factor = (1.0 - noise) + (2.0 * noise) * (draw(state, i) * unit)
        key = np.int64(weight[i] * factor * NOISE_SCALE)
        order[i] = ((LARGEST_KEY - key) << ITEM_BITS) | i
    _sorted_items(order)


@kernel
def _sorted_items(order):
    order.sort()
    for i in range(order.size):
        order[i] &= (1 << ITEM_BITS) - 1


@kernel
def candidate_order(kind, state, weight, lpt, noise, order):
    """One candidate: ``kind`` 0 is LPT, 1 interleaved, 2 random, 3 noisy LPT."""
    if kind == 0:
        order[:] = lpt
    elif kind == 1:
        interleaved_order(lpt, order)
    elif kind == 2:
        random_order(state, order)
    else:
        noisy_order(state, weight, noise, order)


@kernel
def candidate_state(seed, layer, candidate):
    """The generator's state for a candidate of a layer; items are folded in by `draw`."""
    return mix(mix(mix(np.uint64(0), seed), layer), candidate)
