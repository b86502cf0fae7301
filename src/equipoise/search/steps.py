"""Steps of the search: a swap of two slots, and an exchange of a spare replica for another expert's.

Inner loops run over slots or ranks and never reduce over them, so the compiler can use SIMD without reordering
a sum: results are the same on every processor.
"""

from __future__ import annotations

import numpy as np

from ..planning.kernel import kernel
from ..planning.objective import SMALLEST_GAIN, SMALLEST_SHARE, cost, slope
from .partners import find_place
from .state import (
    BURDEN,
    count_twins,
    holds,
    may_leave,
    mean_largest,
    refresh_rank,
    soft_largest,
    sum_loads,
    twin,
)
from .swaps import FREE

SHORTLIST = 12  # exchanges computed for a rank; benchmarks/bench_robust.py, in-sample


@kernel
def exchange_gain(state, t, b, ranks, change):
    """What the objective of the ranks concerned gains if slot ``t`` takes expert ``b``, and what it was.

    ``state``: the layer. ``ranks [P]`` and ``change [2, P]``: scratch, for the ranks concerned and the parts of the
    old and the new expert that they gain.
    """
    vectors, logcnt, phy2log, slots = state.vectors, state.logcnt, state.phy2log, state.slots_per_rank
    a = phy2log[t]
    less, more = 1.0 / logcnt[a], 1.0 / (logcnt[a] - 1)
    part, smaller = 1.0 / logcnt[b], 1.0 / (logcnt[b] + 1)
    known = 0
    for s in range(phy2log.size):
        e = phy2log[s]
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
            change[1, k] += smaller
        elif e == a:
            change[0, k] += more - less
        else:
            change[1, k] += smaller - part
    gain, total = 0.0, 0.0
    for w in range(vectors.shape[0]):
        for k in range(known):
            load, times = state.rank_loads[w, ranks[k]], state.speeds[BURDEN, ranks[k]]
            after = cost(load + change[0, k] * vectors[w, a] + change[1, k] * vectors[w, b])
            total += times * cost(load)
            gain += times * (cost(load) - after)
    return gain, total


@kernel
def most_gain(state, t, b, along):
    """What an exchange gains at most, by the slope on all ranks but that of slot ``t``: there by the cost itself.

    ``state``: the layer. ``b``: the expert that comes, which that rank has none of. ``along``: what it gains by the
    slope on all ranks.
    """
    vectors, logcnt, slots = state.vectors, state.logcnt, state.slots_per_rank
    a, q = state.phy2log[t], t // slots
    held = 0
    for s in range(q * slots, (q + 1) * slots):
        held += state.phy2log[s] == a
    less, more = held / logcnt[a] - (held - 1) / (logcnt[a] - 1), 1.0 / (logcnt[b] + 1)
    bent = 0.0
    for w in range(vectors.shape[0]):
        load, drop = state.rank_loads[w, q], vectors[w, a] * less - vectors[w, b] * more
        bent += cost(load - drop) - cost(load) + slope(load) * drop
    return along - bent * state.speeds[BURDEN, q]


@kernel
def best_exchange(state, p, price, to_beat):
    """The exchange of a spare replica for a replica of another expert that gains most and concerns rank ``p``.

    Either an expert of ``p`` gets a replica in place of a spare one elsewhere, or a spare replica on ``p`` gives
    way to another expert. The objective is convex, so its slope bounds what an exchange can gain from above;
    only the dozen with the best slopes are computed, while they can beat the score ``to_beat``.

    ``state``: the layer. With ``price`` 0 fetches do not count, with 1 the gain is taken per fetch. Returns (score,
    slot, expert), both -1 if nothing gains.
    """
    slots, phy2log, logcnt, fetches = state.slots_per_rank, state.phy2log, state.logcnt, state.fetches
    vectors, rank_loads = state.vectors, state.rank_loads
    num_windows, num_ranks = rank_loads.shape
    num_experts, num_slots = logcnt.size, phy2log.size
    # The slope along the load of a slot, of an expert with all its replicas, and of an expert put on a rank.
    burden = state.speeds[BURDEN]
    burdens = np.repeat(burden, slots)
    along_slot, along_expert, on_p, added = state.work[0], state.work[1], state.work[2], state.work[3]
    along_slot[:num_slots] = 0.0
    along_expert[:num_experts] = 0.0
    on_p[:num_experts] = 0.0
    for w in range(num_windows):
        x, y = state.slot_loads[w], state.around[w]
        for s in range(num_slots):
            along_slot[s] += burdens[s] * slope(y[s]) * x[s]
        steep = burden[p] * slope(rank_loads[w, p])
        row = vectors[w]
        for e in range(num_experts):
            on_p[e] += steep * row[e]
    for s in range(num_slots):
        along_slot[s] *= logcnt[phy2log[s]]
        along_expert[phy2log[s]] += along_slot[s]

    score_of = np.zeros(SHORTLIST, np.float64)
    slot_of = np.zeros(SHORTLIST, np.int64)
    expert_for = np.zeros(SHORTLIST, np.int64)
    for k in range(slots + num_experts):
        # The experts of p go anywhere else; any other expert comes to p.
        b = phy2log[p * slots + k] if k < slots else k - slots
        if logcnt[b] >= num_ranks:
            continue
        if k < slots:
            first, last = 0, num_ranks
            added[:num_ranks] = 0.0
            for w in range(num_windows):
                row, x = rank_loads[w], vectors[w, b]
                for q in range(num_ranks):
                    added[q] += burden[q] * slope(row[q]) * x
        else:
            first, last = p, p + 1
            added[p] = on_p[b]
        known = along_expert[b] / (logcnt[b] * (logcnt[b] + 1.0))
        for q in range(first, last):
            add = added[q] / (logcnt[b] + 1.0) - known
            looked = False
            for t in range(q * slots, (q + 1) * slots):
                a = phy2log[t]
                if logcnt[a] < 2:
                    continue
                drop = (along_expert[a] - along_slot[t]) / (logcnt[a] * (logcnt[a] - 1.0))
                drop -= along_slot[t] / logcnt[a]
                if drop + add >= score_of[SHORTLIST - 1]:
                    continue
                if not looked:
                    looked = True
                    if holds(state, q, b):
                        break
                if not may_leave(state, a, q):
                    continue
                # Every rank holds such an expert, some twice: a rank without it would make those twins avoidable.
                if logcnt[a] > num_ranks and not twin(state, t):
                    continue
                at = SHORTLIST - 1
                while at > 0 and score_of[at - 1] > drop + add:
                    score_of[at] = score_of[at - 1]
                    slot_of[at] = slot_of[at - 1]
                    expert_for[at] = expert_for[at - 1]
                    at -= 1
                score_of[at], slot_of[at], expert_for[at] = drop + add, t, b

    ranks, change = np.empty(num_ranks, np.int64), np.empty((2, num_ranks), np.float64)
    best_score, best_t, best_b = 0.0, -1, -1
    for k in range(SHORTLIST):
        t, b = slot_of[k], expert_for[k]
        if -score_of[k] * (FREE if price else 1.0) <= max(best_score, to_beat):
            break
        most = most_gain(state, t, b, -score_of[k])
        if most <= SMALLEST_GAIN or most * (FREE if price else 1.0) <= max(best_score, to_beat):
            continue
        gain, total = exchange_gain(state, t, b, ranks, change)
        if gain <= SMALLEST_SHARE * total + SMALLEST_GAIN:
            continue
        score = gain
        if price and fetches[t // slots, b] <= fetches[t // slots, phy2log[t]]:
            score = gain * FREE
        if score > best_score:
            best_score, best_t, best_b = score, t, b
    return best_score, best_t, best_b


@kernel
def swap(state, s, t):
    """Trade the experts of slots ``s`` and ``t`` of two ranks; returns the fetches that this adds.

    ``state``: the layer. Costs and copies of the two ranks are left for `refresh_rank`.
    """
    vectors, logcnt, phy2log, fetches = state.vectors, state.logcnt, state.phy2log, state.fetches
    p, q = s // state.slots_per_rank, t // state.slots_per_rank
    a, b = phy2log[s], phy2log[t]
    extra = np.int64(0)
    if not holds(state, p, b):
        extra += fetches[p, b]
    if not holds(state, q, a):
        extra += fetches[q, a]
    phy2log[s], phy2log[t] = b, a
    if not holds(state, p, a):
        extra -= fetches[p, a]
    if not holds(state, q, b):
        extra -= fetches[q, b]
    for w in range(vectors.shape[0]):
        x = vectors[w, a] / logcnt[a] - vectors[w, b] / logcnt[b]
        state.rank_loads[w, p] -= x
        state.rank_loads[w, q] += x
    return extra


@kernel
def exchange(state, slot, expert):
    """Give ``slot`` to ``expert`` in place of a spare replica; returns the fetches that this adds.

    ``state``: the layer. Costs and copies of the ranks that hold either expert are left for `refresh_rank`.
    """
    q = slot // state.slots_per_rank
    old = state.phy2log[slot]
    extra = np.int64(state.fetches[q, expert])
    state.phy2log[slot] = expert
    if not holds(state, q, old):
        extra -= state.fetches[q, old]
    state.logcnt[old] -= 1
    state.logcnt[expert] += 1
    sum_loads(state)
    return extra


@kernel
def record(state, trail, done, step, extra):
    """Write step number ``done`` and what it costs and leaves; returns the number of steps then.

    ``state``: the layer after it. ``trail``: the steps. ``step``: (slot, other slot, expert). ``extra``: fetches.
    """
    trail.steps[done, 0], trail.steps[done, 1], trail.steps[done, 2] = step
    trail.fetched[done + 1] = trail.fetched[done] + extra
    trail.value[done + 1] = soft_largest(state)
    trail.largest[done + 1] = mean_largest(state)
    trail.twins[done + 1] = count_twins(state)
    return done + 1


@kernel
def refresh_holders(state, rank, old, new, tried):
    """Refresh ``rank`` and all ranks that hold expert ``old`` or ``new``, and let them be tried again.

    ``state``: the layer. ``tried [P]``: ranks set aside.
    """
    for r in range(tried.size):
        if r == rank or holds(state, r, old) or holds(state, r, new):
            refresh_rank(state, r)
            find_place(state, r)
            tried[r] = False
