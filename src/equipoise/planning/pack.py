"""Greedy packing: items to ranks, every rank getting the same number of them."""

from __future__ import annotations

import numpy as np

from .kernel import kernel
from .orders import sort_keys

RANK_BITS = 12
FULL = np.iinfo(np.int64).max
UNREACHED = np.int64(1) << 51  # above any rank load: 2^20 items of at most 2^30


@kernel
def pack_greedy(order, weight, num_ranks, give_up, rank_of, room):
    """Item by item to the least loaded rank that has room; ties go to the lowest rank.

    Stops as soon as a rank reaches ``give_up``, since loads only grow. Returns the largest rank load, or
    ``give_up`` if it stopped.

    ``order [R]``: items. ``weight [R]``: integers, their sum below 2^51. ``num_ranks``: ``P``. ``rank_of [R]`` is
    written. ``room [P]``: scratch.
    """
    size = 1
    while size < num_ranks:
        size *= 2
    # A tournament: load and rank in one integer at the leaves, the smaller of two children above them. A match
    # is a minimum without a branch, and the path from a leaf to the root is short.
    tree = np.empty(2 * size, np.int64)
    for at in range(2 * size):
        tree[at] = FULL
    for r in range(num_ranks):
        tree[size + r] = r
        room[r] = order.size // num_ranks
    for at in range(size - 1, 0, -1):
        tree[at] = min(tree[2 * at], tree[2 * at + 1])
    largest = np.int64(0)
    for item in order:
        best = tree[1]
        r = best & ((1 << RANK_BITS) - 1)
        key = best + (weight[item] << RANK_BITS)
        load = key >> RANK_BITS
        if load > largest:
            largest = load
            if load >= give_up:
                return give_up
        rank_of[item] = r
        room[r] -= 1
        key = key if room[r] else FULL
        at = size + r
        tree[at] = key
        while at > 1:
            key = min(key, tree[at ^ 1])
            at >>= 1
            tree[at] = key
    return largest


@kernel
def pack_chunked(order, weight, num_ranks, rank_of, rank_loads, ranks):
    """Chunk by chunk of ``num_ranks`` items, each chunk's items in order to the ranks from lightest to heaviest.

    Returns the largest rank load.

    ``order [R]``: items. ``weight [R]``: integers, their sum below 2^51. ``rank_of [R]`` and ``rank_loads [P]`` are
    written. ``ranks [P]``: scratch.
    """
    rank_loads[:] = 0
    for start in range(0, order.size, num_ranks):
        for r in range(num_ranks):
            ranks[r] = (rank_loads[r] << RANK_BITS) | r
        sort_keys(ranks)
        for i in range(num_ranks):
            r = ranks[i] & ((1 << RANK_BITS) - 1)
            item = order[start + i]
            rank_of[item] = r
            rank_loads[r] += weight[item]
    return rank_loads.max()


@kernel
def scatter(order, rank_of, item_expert, num_ranks, phy2log, fill):
    """Write each rank's items into its slots, in the order in which they were packed.

    ``order [R]``: items. ``rank_of [R]``, ``item_expert [R]``: rank and expert of each item. ``num_ranks``: ``P``.
    ``phy2log [R]`` is written. ``fill [P]``: scratch.
    """
    slots = order.size // num_ranks
    fill[:] = 0
    for i in range(order.size):
        r = rank_of[order[i]]
        phy2log[r * slots + fill[r]] = item_expert[order[i]]
        fill[r] += 1
