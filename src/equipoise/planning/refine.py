"""Refinement: swaps between ranks that part twins and lower the largest rank load.

State of a layer, shared by all functions here: ``members [P, S]``, the items of each rank, heaviest first (ties by
item number), and ``rank_loads [P]``. Memory grows with ``R``.
"""

from __future__ import annotations

import numpy as np

from .kernel import kernel


@kernel
def collect(lpt, rank_of, weight, members, rank_loads, fill):
    """Members and loads of a packing; ``lpt [R]``: items, heaviest first.

    ``rank_of [R]``: rank of each item. ``weight [R]``: load of each item. ``members [P, S]`` and ``rank_loads [P]``
    are written. ``fill [P]``: scratch.
    """
    fill[:] = 0
    rank_loads[:] = 0
    for item in lpt:
        r = rank_of[item]
        members[r, fill[r]] = item
        fill[r] += 1
        rank_loads[r] += weight[item]


@kernel
def held(expert, row, except_at, item_expert):
    """Whether a rank's row of items, one position left out, holds an expert.

    ``expert``: which. ``row [S]``: items. ``except_at``: the position left out, -1 for none. ``item_expert [R]``:
    expert of each item.
    """
    for at in range(row.size):
        if at != except_at and item_expert[row[at]] == expert:
            return True
    return False


@kernel
def _replace(row, at, item, weight):
    """Put ``item`` in place of the one at ``at``, keeping the row sorted.

    ``row [S]``: items, heaviest first. ``weight [R]``: load of each item.
    """
    w = weight[item]
    while at > 0 and (weight[row[at - 1]] < w or (weight[row[at - 1]] == w and row[at - 1] > item)):
        row[at] = row[at - 1]
        at -= 1
    while at < row.size - 1 and (
        weight[row[at + 1]] > w or (weight[row[at + 1]] == w and row[at + 1] < item)
    ):
        row[at] = row[at + 1]
        at += 1
    row[at] = item


@kernel
def swap(members, rank_loads, weight, p, i, q, j):
    """Exchange slot ``i`` of rank ``p`` with slot ``j`` of rank ``q``.

    ``members [P, S]``, ``rank_loads [P]``: the state. ``weight [R]``: load of each item.
    """
    mine, theirs = members[p, i], members[q, j]
    rank_loads[p] += weight[theirs] - weight[mine]
    rank_loads[q] += weight[mine] - weight[theirs]
    _replace(members[p], i, theirs, weight)
    _replace(members[q], j, mine, weight)


@kernel
def separate_layer(weight, item_expert, members, rank_loads):
    """Part replicas of one expert that share a rank, while some rank has none of that expert.

    Each swap takes such a replica (lowest rank and slot first) to the rank, and in exchange for the item, that
    leave the smaller of the pair's largest loads. A swap that adds no new twin, or ends another pair, always
    exists: a rank without the expert has more different experts than the twins' rank has others. So every swap
    lowers the number of twins, and none that could be avoided is left. Ties go to the lowest rank, then to the
    heaviest item taken in exchange.

    One pass is enough: new twins come up on the rank at hand alone, and the number of ranks that hold an expert
    never falls, so a twin that could not be parted stays so.

    ``weight [R]``, ``item_expert [R]``: load and expert of each item. ``members [P, S]``, ``rank_loads [P]``: the
    state.
    """
    num_ranks, slots = members.shape
    if slots == 1:
        return
    for p in range(num_ranks):
        i = 0
        while i < slots:
            expert = item_expert[members[p, i]]
            if held(expert, members[p], i, item_expert):
                q, j = _partner(weight, item_expert, members, rank_loads, p, i)
                if q >= 0:
                    swap(members, rank_loads, weight, p, i, q, j)
                    i = -1  # the row is sorted anew
            i += 1


@kernel
def _partner(weight, item_expert, members, rank_loads, p, i):
    """The rank and slot that the twin in slot ``i`` of rank ``p`` is best swapped with, -1 if no rank can take it.

    ``weight [R]``, ``item_expert [R]``: load and expert of each item. ``members [P, S]``, ``rank_loads [P]``: the
    state.
    """
    num_ranks, slots = members.shape
    mine = members[p, i]
    expert = item_expert[mine]
    best = np.iinfo(np.int64).max
    best_q, best_j = -1, -1
    for q in range(num_ranks):
        if q == p or held(expert, members[q], -1, item_expert):
            continue
        for j in range(slots):
            theirs = members[q, j]
            change = weight[mine] - weight[theirs]
            value = max(rank_loads[p] - change, rank_loads[q] + change)
            if value < best:
                other = item_expert[theirs]
                if held(other, members[p], i, item_expert) and not held(other, members[q], j, item_expert):
                    continue
                best, best_q, best_j = value, q, j
    return best_q, best_j


@kernel
def has_avoidable_twins(item_expert, members, ranks_per_node):
    """Whether a rank holds an expert twice while another rank of its node has none of it.

    ``item_expert [R]``: expert of each item. ``members [P, S]``: items of ranks. ``ranks_per_node``: of a node that
    experts may not leave, else ``P``.
    """
    for p in range(members.shape[0]):
        node = p // ranks_per_node * ranks_per_node
        for i in range(members.shape[1]):
            expert = item_expert[members[p, i]]
            if held(expert, members[p], i, item_expert):
                for q in range(node, node + ranks_per_node):
                    if not held(expert, members[q], -1, item_expert):
                        return True
    return False


@kernel
def refine_layer(weight, item_expert, max_swaps, members, rank_loads):
    """Up to ``max_swaps`` swaps of an item of the most loaded rank with an item of any other rank.

    Each is the swap that leaves the smallest larger load of the two ranks, if that is below the largest load;
    ties go to the lowest other rank, then the heaviest outgoing, then the heaviest incoming item (the first
    slots). No swap makes twins. Returns the number of swaps made.

    ``weight [R]``, ``item_expert [R]``: load and expert of each item. ``members [P, S]``, ``rank_loads [P]``: the
    state.
    """
    num_ranks, slots = members.shape
    for done in range(max_swaps):
        p = 0
        for r in range(1, num_ranks):
            if rank_loads[r] > rank_loads[p]:
                p = r
        best = rank_loads[p]
        best_q, best_i, best_j = -1, -1, -1
        # The lightest rank first: what it offers rules most others out at once.
        lightest = rank_loads.argmin()
        for turn in range(-1, num_ranks):
            if turn == lightest:
                continue
            q = lightest if turn < 0 else turn
            gap = rank_loads[p] - rank_loads[q]
            # Half the gap is the best that a swap can shift.
            if q == p or rank_loads[p] - gap // 2 > best or gap < 2:
                continue
            start = 0
            for i in range(slots):
                mine = members[p, i]
                # Rows are sorted, so the items of q that shift less than half the gap begin ever later.
                while start < slots and 2 * (weight[mine] - weight[members[q, start]]) < gap:
                    start += 1
                for direction in (-1, 1):
                    j = start if direction == 1 else start - 1
                    while 0 <= j < slots:
                        theirs = members[q, j]
                        change = weight[mine] - weight[theirs]
                        value = max(rank_loads[p] - change, rank_loads[q] + change)
                        if value > best or value >= rank_loads[p]:
                            break
                        # Equal values: the first rank wins, then the first outgoing and incoming slot.
                        better = value < best or q < best_q or (q == best_q and i == best_i and j < best_j)
                        if (
                            better
                            and not held(item_expert[mine], members[q], j, item_expert)
                            and not held(item_expert[theirs], members[p], i, item_expert)
                        ):
                            best, best_q, best_i, best_j = value, q, i, j
                        j += direction
        if best_q < 0:
            return done
        swap(members, rank_loads, weight, p, best_i, best_q, best_j)
    return max_swaps


@kernel
def level_layer(weight, item_expert, max_swaps, members, rank_loads):
    """Swaps as in `refine_layer`, each with the lightest rank that has one to offer: many cheap swaps.

    Ends where no swap of the most loaded rank with any other lowers the largest load. Returns the number of swaps.

    ``weight [R]``, ``item_expert [R]``: load and expert of each item. ``max_swaps``: at most so many. ``members [P,
    S]``, ``rank_loads [P]``: the state.
    """
    num_ranks, slots = members.shape
    asked = np.empty(num_ranks, np.bool_)
    for done in range(max_swaps):
        p = rank_loads.argmax()
        asked[:] = False
        asked[p] = True
        best_i, best_j = -1, -1
        q = p
        while best_i < 0:
            q = -1
            for r in range(num_ranks):
                if not asked[r] and (q < 0 or rank_loads[r] < rank_loads[q]):
                    q = r
            if q < 0 or rank_loads[p] - rank_loads[q] < 2:
                return done
            asked[q] = True
            gap = rank_loads[p] - rank_loads[q]
            best = gap  # how far from level a swap may leave the two, doubled differences and all
            start = 0
            for i in range(slots):
                mine = weight[members[p, i]]
                while start < slots and 2 * (mine - weight[members[q, start]]) < gap:
                    start += 1
                for j in (start - 1, start):
                    if j < 0 or j == slots:
                        continue
                    left = abs(gap - 2 * (mine - weight[members[q, j]]))
                    if (
                        left < best
                        and not held(item_expert[members[p, i]], members[q], j, item_expert)
                        and not held(item_expert[members[q, j]], members[p], i, item_expert)
                    ):
                        best, best_i, best_j = left, i, j
        swap(members, rank_loads, weight, p, best_i, q, best_j)
    return max_swaps


@kernel
def rank_of_members(members, rank_of):
    """The rank of each item.

    ``members [P, S]``: items of ranks. ``rank_of [R]`` is written.
    """
    for r in range(members.shape[0]):
        for item in members[r]:
            rank_of[item] = r
