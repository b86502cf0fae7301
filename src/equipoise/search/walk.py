"""Placing one layer by vectors: greedily from nothing, parting twins, and local search on all windows at once.

A slot of expert ``e`` with ``c`` replicas brings the vector ``vectors[:, e] / c`` to its rank, one number per
window; the objective (`planning.objective`) adds up what all ranks cost in all windows.
"""

from __future__ import annotations

import numpy as np

from ..planning.kernel import kernel
from ..planning.objective import cost
from .partners import find_place, sort_slots
from .state import BURDEN, PACE, fair_time, holds, largest_time, may_leave, on_rank, refresh_rank, twin
from .steps import best_exchange, exchange, exchange_gain, record, refresh_holders, swap
from .swaps import best_swap

PATIENCE = 12  # fetches without enough gain after which a search ends; benchmarks/bench_robust.py, replay
FREE_PATIENCE = (
    24  # with free fetches: ranks in a row that gain nothing; benchmarks/bench_robust.py, in-sample
)


@kernel
def place_items(state, item_expert, order):
    """Items in order, each to the rank with room where it raises the objective least; twins only if stuck.

    ``state``: the layer; its replica counts are read, its placement and rank loads written. ``item_expert [R]``: the
    expert of each item, the first ``E`` being one of each. ``order [R]``: items. The first item of an expert that
    is tied to a node goes to a rank of that node.
    """
    vectors, logcnt, phy2log, rank_loads = state.vectors, state.logcnt, state.phy2log, state.rank_loads
    slots, home, burden = state.slots_per_rank, state.home, state.speeds[BURDEN]
    num_windows, num_ranks = rank_loads.shape
    fill = np.zeros(num_ranks, np.int64)
    rise = np.empty(num_ranks, np.float64)
    costs = np.zeros(num_ranks, np.float64)
    rank_loads[:] = 0.0
    for item in order:
        e = item_expert[item]
        rise[:] = 0.0
        for w in range(num_windows):
            x = vectors[w, e] / logcnt[e]
            row = rank_loads[w]
            for r in range(num_ranks):
                rise[r] += cost(row[r] + x)
        best, fallback = -1, -1
        least, least_twin = np.inf, np.inf
        tied = item < logcnt.size and home[e] >= 0
        for r in range(num_ranks):
            change = rise[r] * burden[r] - costs[r]
            if change >= least or fill[r] == slots or (tied and r // state.ranks_per_node != home[e]):
                continue
            if logcnt[e] == 1 or not on_rank(e, phy2log, r * slots, fill[r]):
                best, least = r, change
            elif change < least_twin:
                fallback, least_twin = r, change
        r = best if best >= 0 else fallback
        phy2log[r * slots + fill[r]] = e
        fill[r] += 1
        costs[r] = rise[r] * burden[r]
        for w in range(num_windows):
            rank_loads[w, r] += vectors[w, e] / logcnt[e]


@kernel
def part_twins(state, trail):
    """Part twins, each by the swap that raises the objective least; `refine.separate_layer` tells why it ends.

    Where experts that are tied to nodes leave no such swap, the twin gives way to the heaviest expert that its rank
    lacks: it serves no token that its twin does not. Every step parts a twin, so there are fewer than slots.

    ``state``: the layer. ``trail``: where the steps are written, from the first on. Returns their number.
    """
    slots, phy2log = state.slots_per_rank, state.phy2log
    done = 0
    searching = slots > 1
    while searching:
        searching = False
        for s in range(phy2log.size):
            if state.logcnt[phy2log[s]] < 2 or not twin(state, s):
                continue
            t, avoidable = _partner_of_twin(state, s)
            b = _heaviest_missing(state, s // slots) if t < 0 and avoidable else -1
            if t >= 0:
                extra = swap(state, s, t)
            elif b >= 0:
                extra = exchange(state, s, b)
            else:
                continue
            done = record(state, trail, done, (s, t, b), extra)
            searching = True
    return done


@kernel
def _partner_of_twin(state, s):
    """The slot whose expert trades places with the twin in slot ``s`` at the least rise; -1 if there is none.

    ``state``: the layer. Also returns whether some rank has none of the twin's expert.
    """
    vectors, logcnt, phy2log, rank_loads = state.vectors, state.logcnt, state.phy2log, state.rank_loads
    slots = state.slots_per_rank
    num_windows, num_ranks = rank_loads.shape
    p, a = s // slots, phy2log[s]
    best, best_t, avoidable = np.inf, -1, False
    for q in range(num_ranks):
        if holds(state, q, a):
            continue
        avoidable = True
        same_node = p // state.ranks_per_node == q // state.ranks_per_node
        for t in range(q * slots, (q + 1) * slots):
            b = phy2log[t]
            if holds(state, p, b) and not twin(state, t):
                continue
            # The other twin stays, so `a` is always free to leave.
            if not same_node and not may_leave(state, b, q):
                continue
            rise = 0.0
            for w in range(num_windows):
                x = vectors[w, a] / logcnt[a] - vectors[w, b] / logcnt[b]
                mine, theirs = rank_loads[w, p], rank_loads[w, q]
                here, there = state.speeds[BURDEN, p], state.speeds[BURDEN, q]
                rise += (
                    here * cost(mine - x)
                    + there * cost(theirs + x)
                    - here * cost(mine)
                    - there * cost(theirs)
                )
            if rise < best:
                best, best_t = rise, t
    return best_t, avoidable


@kernel
def _heaviest_missing(state, rank):
    """The expert with the largest load per replica, windows summed, that ``rank`` lacks; -1 if there is none.

    ``state``: the layer. Experts with as many replicas as there are ranks are left out.
    """
    vectors, logcnt = state.vectors, state.logcnt
    best, found = -1.0, -1
    for e in range(logcnt.size):
        if logcnt[e] < state.rank_loads.shape[1] and not holds(state, rank, e):
            load = 0.0
            for w in range(vectors.shape[0]):
                load += vectors[w, e]
            if load / logcnt[e] > best:
                best, found = load / logcnt[e], e
    return found


@kernel
def recount_layer(state, trail, done, wanted, peaks):
    """Exchange replicas until experts have as many as wanted, the largest load per replica first.

    Each takes the slot, of those whose experts have too many, that leaves the smallest objective, even where that
    is more than it was: local search goes on from there. No exchange makes a twin.

    ``state``: the layer. ``trail``: where steps are written; ``done`` of them have been made before. ``wanted [E]``:
    replicas. ``peaks [E]``: loads by which the next expert is chosen. Returns the number of steps then.
    """
    num_ranks = state.rank_loads.shape[1]
    ranks, change = np.empty(num_ranks, np.int64), np.empty((2, num_ranks), np.float64)
    stuck = np.zeros(state.logcnt.size, np.bool_)
    while done < trail.steps.shape[0]:
        b = _scarcest(state.logcnt, wanted, peaks, stuck)
        if b < 0:
            break
        u = _slot_to_give(state, wanted, b, ranks, change)
        if u < 0:
            stuck[b] = True
            continue
        extra = exchange(state, u, b)
        done = record(state, trail, done, (u, -1, b), extra)
    return done


@kernel
def _scarcest(logcnt, wanted, peaks, stuck):
    """The expert with fewer replicas than wanted that has the largest load per replica, -1 for none.

    ``logcnt [E]``: replicas. ``wanted [E]``: how many are wanted. ``peaks [E]``: loads. ``stuck [E]``: experts set
    aside.
    """
    b = -1
    for e in range(logcnt.size):
        if logcnt[e] < wanted[e] and not stuck[e] and (b < 0 or peaks[e] * logcnt[b] > peaks[b] * logcnt[e]):
            b = e
    return b


@kernel
def _slot_to_give(state, wanted, expert, ranks, change):
    """The slot of an expert with more replicas than wanted that ``expert`` takes with the best gain, -1 for none.

    ``state``: the layer. ``wanted [E]``: replicas. ``ranks [P]``, ``change [2, P]``: scratch of `exchange_gain`.
    """
    num_ranks = state.rank_loads.shape[1]
    most, u = -np.inf, -1
    for t in range(state.phy2log.size):
        a, q = state.phy2log[t], t // state.slots_per_rank
        if state.logcnt[a] <= wanted[a] or holds(state, q, expert) or not may_leave(state, a, q):
            continue
        # Every rank holds such an expert, some twice: a rank without it would make those twins avoidable.
        if state.logcnt[a] > num_ranks and not twin(state, t):
            continue
        gain, _ = exchange_gain(state, t, expert, ranks, change)
        if gain > most:
            most, u = gain, t
    return u


@kernel
def search_layer(state, trail, done, price, most, min_gain):
    """Local search from a placement, the costliest rank first, until no swap or exchange gains.

    ``state``: the layer. ``trail``: where steps are written; ``done`` of them have been made before. With ``price``
    0 fetches do not count and steps are not written, with 1 gains are taken per fetch. It ends early after ``most``
    fetches, or when the last dozen of them gained less than ``min_gain`` each, in imbalance; with ``price`` 0 also
    when two dozen ranks in a row gain nothing. Returns the number of steps then.
    """
    fetched, value = trail.fetched, trail.value
    num_windows, num_ranks = state.rank_loads.shape
    tried = np.zeros(num_ranks, np.bool_)
    for r in range(num_ranks):
        refresh_rank(state, r)
    sort_slots(state)
    # What a rank costs for its speed that takes the fair time: with a cheaper one, no other is worth levelling.
    level = 0.0
    for w in range(num_windows):
        level += cost(fair_time(state.rank_loads[w], state.total_speed))
    settled, useless = done, 0
    mark = done
    while done < trail.steps.shape[0] and fetched[done] < most:
        if value[done] < value[mark] - min_gain * (fetched[done] - fetched[mark]):
            mark = done
        elif fetched[done] - fetched[mark] > PATIENCE:
            break
        p = _costliest(state.rank_costs, state.speeds[PACE], tried)
        if p < 0 or state.rank_costs[p] * state.speeds[PACE, p] <= level:
            # Ranks were set aside against others that have changed since: one more round over all.
            if done == settled:
                break
            settled = done
            tried[:] = False
            continue
        swap_score, s, t = best_swap(state, p, price)
        exchange_score, u, b = 0.0, -1, -1
        # With free fetches, exchanges rarely gain; only the busiest rank of some window is worth the look.
        if price or (s < 0 and leads(p, state.rank_loads, state.speeds[PACE])):
            exchange_score, u, b = best_exchange(state, p, price, swap_score)
        if s < 0 and u < 0:
            tried[p] = True
            useless += 1
            if not price and useless == FREE_PATIENCE:
                break
            continue
        useless = 0
        if swap_score >= exchange_score:
            extra = swap(state, s, t)
            for r in (p, t // state.slots_per_rank):
                refresh_rank(state, r)
                find_place(state, r)
                tried[r] = False
            step = (s, t, np.int64(-1))
        else:
            a = state.phy2log[u]
            extra = exchange(state, u, b)
            refresh_holders(state, u // state.slots_per_rank, a, b, tried)
            step = (u, np.int64(-1), b)
        # With free fetches only the placement at the end is asked for.
        done = record(state, trail, done, step, extra) if price else done + 1
    return done


@kernel
def _costliest(rank_costs, pace, tried):
    """The rank that costs most for its speed of those not set aside, -1 for none.

    ``rank_costs [P]``. ``pace [P]``: one over speeds. ``tried [P]``: ranks set aside.
    """
    p, most = -1, 0.0
    for r in range(rank_costs.size):
        if not tried[r] and (p < 0 or rank_costs[r] * pace[r] > most):
            p, most = r, rank_costs[r] * pace[r]
    return p


@kernel
def leads(rank, rank_loads, pace):
    """Whether ``rank`` takes longest in some window of ``rank_loads [W, P]``. ``pace [P]``: one over speeds."""
    for w in range(rank_loads.shape[0]):
        if rank_loads[w, rank] * pace[rank] >= largest_time(rank_loads[w], pace):
            return True
    return False
