"""Partners for a swap, found by bounds on what it gains.

Let a swap of slots of two equally fast ranks take ``d`` from the one's load ``a`` and add it to the other's load
``b``. At ``d = (a - b) / 2`` both are level. Since the second derivative of the objective is convex, any other
``d`` costs more than that, by at least half the second derivative there times the square of the difference; and the
difference is that of the slots' offsets, each the load of the slot less half the load of its rank. So slots whose
offsets are close make good swaps, and far ones need no look.
"""

from __future__ import annotations

import numpy as np

from ..planning.kernel import kernel
from ..planning.objective import bend, cost
from ..planning.orders import sort_keys
from .state import BURDEN, LANES, SPEED

ROUNDING = 1e-12  # of the costs concerned, added to bounds: more than what their sums are rounded by
SLOT_BITS = 20
SLOTS = (1 << SLOT_BITS) - 1
STEP = 2.0**-24  # of offsets as integers
LARGEST = 2.0**40  # of these integers; offsets beyond are as large


@kernel
def key_of(offset):
    """An ``offset`` as an integer that leaves room for a slot."""
    return np.int64(min(max(np.floor(offset / STEP), -LARGEST), LARGEST)) << SLOT_BITS


@kernel
def _measure(state, slot):
    """Load of a slot less half the load of its rank, in each window and in all.

    ``state``: the layer. ``slot``: which.
    """
    rank, row, total = slot // state.slots_per_rank, state.partners.offsets[slot], 0.0
    for w in range(state.rank_loads.shape[0]):
        offset = state.slot_loads[w, slot] - 0.5 * state.rank_loads[w, rank]
        row[w // LANES, w % LANES] = offset
        total += offset
    state.partners.offset[slot] = total


@kernel
def sort_slots(state):
    """Sort all slots by their offsets. ``state``: the layer."""
    offset, by_offset = state.partners.offset, state.partners.by_offset
    for s in range(offset.size):
        _measure(state, s)
        by_offset[s] = key_of(offset[s]) | s
    sort_keys(by_offset)


@kernel
def find_place(state, rank):
    """Bring the slots of ``rank``, whose loads have changed, to their places in the order. ``state``: the layer."""
    offset, by_offset = state.partners.offset, state.partners.by_offset
    for s in range(rank * state.slots_per_rank, (rank + 1) * state.slots_per_rank):
        at = first_from(by_offset, key_of(offset[s]) | s)
        _measure(state, s)
        key = key_of(offset[s]) | s
        to = first_from(by_offset, key)
        if to > at:
            to -= 1
            for k in range(at, to):
                by_offset[k] = by_offset[k + 1]
        for k in range(at, to, -1):
            by_offset[k] = by_offset[k - 1]
        by_offset[to] = key


@kernel
def first_from(keys, key):
    """How many of ``keys [R]``, which are in order, are below ``key``."""
    low, high = 0, keys.size
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def nth_largest(values, n):
    """The ``n``-th largest of ``values [N]``, which are left in another order (Hoare's FIND, CACM 4, 1961)."""
    low, high, place = 0, values.size - 1, values.size - n
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]


@kernel
def _leave_out(level, most):
    """Leave out all but the ``most`` ranks with the largest ``level [P]``, and of equals the first."""
    least = nth_largest(level.copy(), most)
    found = 0
    for q in range(level.size):
        if level[q] >= least and found < most:
            found += 1
        else:
            level[q] = -np.inf


@kernel
def bound_ranks(state, p, most):
    """What swaps of rank ``p`` with each rank gain at most; returns the largest, and the least `Partners.least`.

    ``state``: the layer; its partners' ``level``, ``fall`` and ``least`` are written. ``most``: ranks to look at, the
    most promising ones.
    """
    rank_loads, costs = state.rank_loads, state.rank_costs
    speed, burden = state.speeds[SPEED], state.speeds[BURDEN]
    level, fall, least = state.partners.level, state.partners.fall, state.partners.least
    num_windows, num_ranks = rank_loads.shape
    level[:] = 0.0
    for w in range(num_windows):
        row, mine = rank_loads[w], rank_loads[w, p]
        for q in range(num_ranks):
            level[q] += cost((row[q] + mine) / (speed[q] + speed[p]))
    for q in range(num_ranks):
        level[q] = costs[q] - (speed[q] + speed[p]) * level[q]
    level[p] = -np.inf
    if num_ranks > most:
        _leave_out(level, most)
    _bound_offsets(rank_loads, p, burden, fall, least)
    largest, slowest = 0.0, np.inf
    for q in range(num_ranks):
        level[q] += costs[p] + ROUNDING * (costs[p] + costs[q])
        if level[q] < 0.0:  # left out, or nothing to gain
            level[q] = -np.inf
        else:
            largest = level[q] if level[q] > largest else largest
            slowest = least[q] if least[q] < slowest else slowest
    return largest, slowest


@kernel
def _bound_offsets(rank_loads, p, burden, fall, least):
    """What offsets that differ cost swaps of rank ``p`` with each rank.

    ``rank_loads [W, P]``. ``burden [P]``: of ranks. ``fall [P, W', LANES]`` and ``least [P]`` are written.
    """
    num_windows, num_ranks = rank_loads.shape
    least[:] = np.inf
    for w in range(num_windows):
        row, mine = rank_loads[w], rank_loads[w, p]
        for q in range(num_ranks):
            half = 0.5 * (mine + row[q])
            # Ranks of two speeds are not level at the same load: the bound of the rank alone holds.
            factor = burden[p] if burden[p] == burden[q] else 0.0
            found = 0.5 * factor * bend(half, half, 1.0)
            fall[q, w // LANES, w % LANES] = found
            least[q] = found if found < least[q] else least[q]
    for q in range(num_ranks):
        least[q] /= num_windows


@kernel
def collect(partners, s, reach, enough):
    """The slots that may gain ``enough`` in a swap with slot ``s``; returns how many there are.

    ``partners``: of the layer, ranks bounded for that of ``s``; the slots are written to ``found``.
    ``reach``: offsets that differ by more are too far.
    """
    offset, by_offset, rank, found = partners.offset, partners.by_offset, partners.rank, partners.found
    level, least, mine = partners.level, partners.least, partners.offset[s]
    last = key_of(mine + reach) | SLOTS
    count, at = 0, first_from(by_offset, key_of(mine - reach))
    while at < by_offset.size and by_offset[at] <= last:
        t = by_offset[at] & SLOTS
        q, apart = rank[t], mine - offset[t]
        found[count] = t
        count += 1 if level[q] - least[q] * apart * apart >= enough else 0
        at += 1
    return count


@kernel
def bound_swap(one, other, fall):
    """What a swap gains less than one that leaves both ranks level, at least.

    Four sums, since the compiler can keep them in one register.

    ``one [W', LANES]``, ``other [W', LANES]``: offsets of the slots. ``fall [W', LANES]``: see `Partners`.
    """
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for k in range(one.shape[0]):
        x, y = one[k, 0] - other[k, 0], one[k, 1] - other[k, 1]
        z, u = one[k, 2] - other[k, 2], one[k, 3] - other[k, 3]
        a += fall[k, 0] * x * x
        b += fall[k, 1] * y * y
        c += fall[k, 2] * z * z
        d += fall[k, 3] * u * u
    return (a + b) + (c + d)
