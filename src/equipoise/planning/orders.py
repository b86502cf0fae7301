"""Candidate orders: permutations of the items of a layer to feed to the packer.

Kinds, in the order of their numbers:

- LPT: heaviest first;
- interleaved: heaviest, lightest, second heaviest, second lightest, ...;
- random: a uniform permutation;
- noisy LPT: heaviest first after multiplying every weight by a number uniform in [1 - noise, 1 + noise).
"""

from __future__ import annotations

import numpy as np

from .kernel import copy_into, kernel
from .random import DRAW_BITS, draw, mix

# A noisy weight is below 2^30 * 2; scaled by this it fills the bits of a draw.
NOISE_SCALE = 1 << (DRAW_BITS - 31)
LARGEST_KEY = (1 << DRAW_BITS) - 1
ITEM_BITS = 20
MAX_CROWD = 24  # keys in a bucket above which a comparison sort is faster; benchmarks/bench_planning.py
RUN = 8  # keys that a merge sort finds in order
FEW_KEYS = 32  # keys up to which buckets do not pay
LPT, INTERLEAVED, RANDOM, NOISY = range(4)
"""The kinds of candidate orders."""


@kernel
def lpt_order(weight, order):
    """Heaviest first; ties by item number.

    ``weight [R]``: integers below 2^39. ``order [R]`` is written.
    """
    for i in range(weight.size):
        order[i] = ((LARGEST_KEY - weight[i]) << ITEM_BITS) | i
    _sorted_items(order)


@kernel
def interleaved_order(lpt, order):
    """Alternately from both ends of the LPT order, the heaviest first.

    ``lpt [R]``: items, heaviest first. ``order [R]`` is written.
    """
    for i in range(lpt.size):
        order[i] = lpt[lpt.size - 1 - i // 2] if i % 2 else lpt[i // 2]


@kernel
def random_order(state, order):
    """Items sorted by their draws.

    ``state``: of the generator. ``order [R]`` is written.
    """
    for i in range(order.size):
        order[i] = (draw(state, i) << ITEM_BITS) | i
    _sorted_items(order)


@kernel
def noisy_order(state, weight, noise, order):
    """Heaviest first after multiplicative noise; ties by item number.

    ``state``: of the generator. ``weight [R]``: integers up to 2^30. ``noise``: weights are multiplied by a number
    uniform in [1 - noise, 1 + noise). ``order [R]`` is written.
    """
    unit = 1.0 / (1 << DRAW_BITS)
    for i in range(order.size):
        factor = (1.0 - noise) + (2.0 * noise) * (draw(state, i) * unit)
        key = np.int64(weight[i] * factor * NOISE_SCALE)
        order[i] = ((LARGEST_KEY - key) << ITEM_BITS) | i
    _sorted_items(order)


@kernel
def _sorted_items(order):
    """Keys with an item number in their low bits: sorted, and the item numbers alone.

    ``order [R]``: keys, then items.
    """
    sort_keys(order)
    for i in range(order.size):
        order[i] &= (1 << ITEM_BITS) - 1


@kernel
def _insertion_sort(keys, first, last):
    """Sort keys ``first`` to ``last`` of ``keys [R]``, integers: fast where they are few or nearly sorted."""
    for i in range(first + 1, last):
        key = keys[i]
        at = i
        while at > first and keys[at - 1] > key:
            keys[at] = keys[at - 1]
            at -= 1
        keys[at] = key


@kernel
def _merge_sort(keys, other):
    """Sort in place, however keys are spread. ``keys [R]``: integers. ``other [R]``: scratch.

    Numba's own sort takes as long to compile as a large kernel.
    """
    width = RUN
    for start in range(0, keys.size, width):
        _insertion_sort(keys, start, min(start + width, keys.size))
    while width < keys.size:
        copy_into(other, keys)
        for start in range(0, keys.size, 2 * width):
            middle, end = min(start + width, keys.size), min(start + 2 * width, keys.size)
            i, j = start, middle
            for at in range(start, end):
                if i < middle and (j == end or other[i] < other[j]):
                    keys[at] = other[i]
                    i += 1
                else:
                    keys[at] = other[j]
                    j += 1
        width *= 2


@kernel
def sort_keys(keys):
    """Sort in place, spreading keys over buckets first: four times as fast as a comparison sort here.

    Where many keys share a bucket, as with a few weights far above all others, a comparison sort is the better one.

    ``keys [R]``: integers, all different.
    """
    if keys.size <= FEW_KEYS:
        _insertion_sort(keys, 0, keys.size)
        return
    low, high = keys[0], keys[0]
    for key in keys:
        low = min(low, key)
        high = max(high, key)
    count = np.zeros(2 * keys.size + 1, np.int64)
    shift = 0
    while (high - low) >> shift >= 2 * keys.size:
        shift += 1
    for key in keys:
        count[((key - low) >> shift) + 1] += 1
    crowd = 0
    for bucket in range(1, count.size):
        crowd = max(crowd, count[bucket])
        count[bucket] += count[bucket - 1]
    spread = np.empty(keys.size, np.int64)
    if crowd > MAX_CROWD:
        _merge_sort(keys, spread)
        return
    for key in keys:
        bucket = (key - low) >> shift
        spread[count[bucket]] = key
        count[bucket] += 1
    copy_into(keys, spread)
    _insertion_sort(keys, 0, keys.size)


@kernel
def candidate_order(kind, state, weight, lpt, noise, order):
    """One candidate of a ``kind``: `LPT`, `INTERLEAVED`, `RANDOM` or `NOISY`.

    ``state``: of the generator. ``weight [R]``: integers up to 2^30. ``lpt [R]``: items, heaviest first. ``noise``:
    see `noisy_order`. ``order [R]`` is written.
    """
    if kind == LPT:
        copy_into(order, lpt)
    elif kind == INTERLEAVED:
        interleaved_order(lpt, order)
    elif kind == RANDOM:
        random_order(state, order)
    else:
        noisy_order(state, weight, noise, order)


@kernel
def candidate_state(seed, layer, candidate):
    """The generator's state for a candidate of a layer; items are folded in by `draw`.

    ``seed``, ``layer``, ``candidate``: integers.
    """
    return mix(mix(mix(np.uint64(0), seed), layer), candidate)
