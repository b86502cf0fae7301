"""Steps of the search by vectors: a swap of two slots, and an exchange of a spare replica for another expert's.

Inner loops run over slots or ranks and never reduce over them, so the compiler can use SIMD without reordering
a sum: results are the same on every processor.
"""

from __future__ import annotations

import numpy as np

from .kernel import kernel

SHORTLIST = 12
SMALLEST_GAIN = 1e-9
SMALLEST_SHARE = 1e-11  # of the costs concerned: 8th powers of large loads round to more than the gain above
FREE = 4.0  # a step without a fetch is worth this many times one with a fetch


@kernel
def power8(x):
    """The 8th power."""
    y = x * x
    y = y * y
    return y * y


@kernel
def on_rank(expert, expert_of, first, slots):
    """Whether one of a rank's slots, ``first`` to ``first + slots``, holds an expert."""
    for s in range(first, first + slots):
        if expert_of[s] == expert:
            return True
    return False


@kernel
def twin(slot, expert_of, slots):
    """Whether another slot of the same rank holds the slot's expert."""
    first = slot // slots * slots
    for s in range(first, first + slots):
        if s != slot and expert_of[s] == expert_of[slot]:
            return True
    return False


@kernel
def may_leave(expert, rank, expert_of, slots, home, ranks_per_node):
    """Whether an expert tied to a node may leave a rank: not if this is its last replica on its own node.

    ``home [E]`` is the node of each expert, -1 where it is free to live anywhere.
    """
    node = home[expert]
    if node < 0 or rank // ranks_per_node != node:
        return True
    found = 0
    for s in range(node * ranks_per_node * slots, (node + 1) * ranks_per_node * slots):
        if expert_of[s] == expert:
            found += 1
    return found > 1


@kernel
def swap_slots(s, t, expert_of, slots, fetches):
    """Swap the experts of two slots of different ranks; returns the fetches that this adds."""
    p, q = s // slots, t // slots
    a, b = expert_of[s], expert_of[t]
    extra = np.int64(0)
    if not on_rank(b, expert_of, p * slots, slots):
        extra += fetches[p, b]
    if not on_rank(a, expert_of, q * slots, slots):
        extra += fetches[q, a]
    expert_of[s], expert_of[t] = b, a
    if not on_rank(a, expert_of, p * slots, slots):
        extra -= fetches[p, a]
    if not on_rank(b, expert_of, q * slots, slots):
        extra -= fetches[q, b]
    return extra


@kernel
def best_swap(
    p, slots, expert_of, loads, cost, slot_load, slot_rank_load, home, ranks_per_node, fetches, price, value
):
    """The swap of a slot of rank ``p`` with a slot of another rank that gains most.

    ``fetches`` tells for (rank, expert) whether holding it takes a fetch; with ``price`` 0 they do not count,
    else the gain is taken per fetch. Returns (score, gain, slot of p, other slot), slots -1 if nothing gains.
    """
    num_windows, num_slots = slot_load.shape
    best_score, best_gain, best_s, best_t = 0.0, SMALLEST_GAIN, -1, -1
    for s in range(p * slots, (p + 1) * slots):
        a = expert_of[s]
        value[:] = 0.0
        for w in range(num_windows):
            x = slot_load[w, s]
            mine = loads[w, p] - x
            theirs_load, theirs_rank = slot_load[w], slot_rank_load[w]
            for t in range(num_slots):
                value[t] += power8(mine + theirs_load[t]) + power8(theirs_rank[t] + x - theirs_load[t])
        for q in range(num_slots // slots):
            if q == p:
                continue
            floor = (cost[p] + cost[q]) * (1.0 - SMALLEST_SHARE) - SMALLEST_GAIN
            for t in range(q * slots, (q + 1) * slots):
                if value[t] >= floor:
                    continue
                b = expert_of[t]
                gain = cost[p] + cost[q] - value[t]
                score = gain
                if price:
                    extra = fetches[p, b] - fetches[p, a] + fetches[q, a] - fetches[q, b]
                    score = gain / extra if extra > 0 else gain * FREE
                if score <= best_score:
                    continue
                if (
                    a == b
                    or (on_rank(a, expert_of, q * slots, slots) and not twin(s, expert_of, slots))
                    or (on_rank(b, expert_of, p * slots, slots) and not twin(t, expert_of, slots))
                ):
                    continue
                if p // ranks_per_node != q // ranks_per_node and not (
                    may_leave(a, p, expert_of, slots, home, ranks_per_node)
                    and may_leave(b, q, expert_of, slots, home, ranks_per_node)
                ):
                    continue
                best_score, best_gain, best_s, best_t = score, gain, s, t
    return best_score, best_gain, best_s, best_t


@kernel
def _exchange_gain(t, b, v, cnt, expert_of, loads, slots, change):
    """What the objective of the ranks concerned gains if slot ``t`` takes expert ``b``, and what it was."""
    a = expert_of[t]
    less, more = 1.0 / cnt[a], 1.0 / (cnt[a] - 1)
    before, after = 1.0 / cnt[b], 1.0 / (cnt[b] + 1)
    # change[0, k], change[1, k]: parts of a and of b that the k-th rank concerned gains.
    ranks = np.empty(cnt[a] + cnt[b] + 1, np.int64)
    known = 0
    for s in range(expert_of.size):
        e = expert_of[s]
        if e != a and e != b:
            continue
        r = s // slots
        k = known - 1 if known and ranks[known - 1] == r else known
        if k == known:
            ranks[k] = r
            change[0, k] = change[1, k] = 0.0
            known += 1
        if s == t:
            change[0, k] -= less
            change[1, k] += after
        elif e == a:
            change[0, k] += more - less
        else:
            change[1, k] += after - before
    gain, total = 0.0, 0.0
    for w in range(loads.shape[0]):
        for k in range(known):
            load = loads[w, ranks[k]]
            total += power8(load)
            gain += power8(load) - power8(load + change[0, k] * v[w, a] + change[1, k] * v[w, b])
    return gain, total


@kernel
def best_exchange(
    p,
    slots,
    v,
    cnt,
    expert_of,
    loads,
    slot_load,
    slot_rank_load,
    home,
    ranks_per_node,
    fetches,
    price,
    to_beat,
    work,
):
    """The exchange of a spare replica for a replica of another expert that gains most and concerns rank ``p``.

    Either an expert of ``p`` gets a replica in place of a spare one elsewhere, or a spare replica on ``p`` gives
    way to another expert. The objective is convex, so its slope bounds what an exchange can gain from above;
    only the dozen with the best slopes are computed, while they can beat the score ``to_beat``. Returns (score,
    gain, slot, expert) as `best_swap`.

    Rows of ``work`` (each at least as long as slots, experts and ranks): the slope of the objective along the
    load of a slot, of an expert with all its replicas, and of an expert put on a rank.
    """
    num_windows, num_ranks = loads.shape
    num_experts, num_slots = cnt.size, expert_of.size
    along_slot, along_expert, on_p, added = work[0], work[1], work[2], work[3]
    along_slot[:num_slots] = 0.0
    along_expert[:num_experts] = 0.0
    on_p[:num_experts] = 0.0
    for w in range(num_windows):
        x, y = slot_load[w], slot_rank_load[w]
        for s in range(num_slots):
            cube = y[s] * y[s] * y[s]
            along_slot[s] += 8.0 * cube * cube * y[s] * x[s]
        load = loads[w, p]
        cube = load * load * load
        slope = 8.0 * cube * cube * load
        row = v[w]
        for e in range(num_experts):
            on_p[e] += slope * row[e]
    for s in range(num_slots):
        along_slot[s] *= cnt[expert_of[s]]
        along_expert[expert_of[s]] += along_slot[s]

    score_of = np.zeros(SHORTLIST, np.float64)
    slot_of = np.full(SHORTLIST, -1, np.int64)
    expert_for = np.full(SHORTLIST, -1, np.int64)
    for k in range(slots + num_experts):
        # The experts of p go anywhere else; any other expert comes to p.
        b = expert_of[p * slots + k] if k < slots else k - slots
        if cnt[b] >= num_ranks:
            continue
        if k < slots:
            first, last = 0, num_ranks
            added[:num_ranks] = 0.0
            for w in range(num_windows):
                row, x = loads[w], v[w, b]
                for q in range(num_ranks):
                    cube = row[q] * row[q] * row[q]
                    added[q] += 8.0 * cube * cube * row[q] * x
        else:
            first, last = p, p + 1
            added[p] = on_p[b]
        known = along_expert[b] / (cnt[b] * (cnt[b] + 1.0))
        for q in range(first, last):
            add = added[q] / (cnt[b] + 1.0) - known
            looked = False
            for t in range(q * slots, (q + 1) * slots):
                a = expert_of[t]
                if cnt[a] < 2:
                    continue
                drop = (along_expert[a] - along_slot[t]) / (cnt[a] * (cnt[a] - 1.0)) - along_slot[t] / cnt[a]
                if drop + add >= score_of[SHORTLIST - 1]:
                    continue
                if not looked:
                    looked = True
                    if on_rank(b, expert_of, q * slots, slots):
                        break
                if not may_leave(a, q, expert_of, slots, home, ranks_per_node):
                    continue
                # Every rank holds such an expert, some twice: a rank without it would make those twins avoidable.
                if cnt[a] > num_ranks and not twin(t, expert_of, slots):
                    continue
                at = SHORTLIST - 1
                while at > 0 and score_of[at - 1] > drop + add:
                    score_of[at] = score_of[at - 1]
                    slot_of[at] = slot_of[at - 1]
                    expert_for[at] = expert_for[at - 1]
                    at -= 1
                score_of[at], slot_of[at], expert_for[at] = drop + add, t, b

    change = np.empty((2, num_ranks), np.float64)
    best_score, best_gain, best_t, best_b = 0.0, SMALLEST_GAIN, -1, -1
    for k in range(SHORTLIST):
        t, b = slot_of[k], expert_for[k]
        if t < 0 or -score_of[k] * (FREE if price else 1.0) <= max(best_score, to_beat):
            break
        gain, total = _exchange_gain(t, b, v, cnt, expert_of, loads, slots, change)
        if gain <= SMALLEST_SHARE * total + SMALLEST_GAIN:
            continue
        score = gain
        if price and fetches[t // slots, b] <= fetches[t // slots, expert_of[t]]:
            score = gain * FREE
        if score > best_score:
            best_score, best_gain, best_t, best_b = score, gain, t, b
    return best_score, best_gain, best_t, best_b
