"""Placing experts by vectors: one load per window, and local search on all windows at once.

A slot of expert ``e`` with ``c`` replicas brings the vector ``v[:, e] / c`` to its rank, one number per window,
scaled so that every window's mean rank load is 1. The objective of a layer is the sum over ranks and windows of
the 8th power of the rank load: smooth, and close to what the busiest rank of each window costs.

Inner loops run over slots or ranks and never reduce over them, so the compiler can use SIMD without reordering
a sum: results are the same on every processor.
"""

from __future__ import annotations

import numpy as np

from .kernel import kernel
from .steps import best_exchange, best_swap, may_leave, on_rank, power8, swap_slots, twin

PATIENCE = 12


@kernel
def place_vectors(v, cnt, item_expert, order, slots, home, ranks_per_node, expert_of, loads):
    """Items in order, each to the rank with room where it raises the objective least; twins only if stuck.

    The first item of an expert that is tied to a node goes to a rank of that node (`may_leave`). Writes the
    expert of each slot and the rank loads ``[W, P]``.
    """
    num_windows, num_ranks = loads.shape
    fill = np.zeros(num_ranks, np.int64)
    rise = np.empty(num_ranks, np.float64)
    cost = np.zeros(num_ranks, np.float64)
    loads[:] = 0.0
    for item in order:
        e = item_expert[item]
        rise[:] = 0.0
        for w in range(num_windows):
            x = v[w, e] / cnt[e]
            row = loads[w]
            for r in range(num_ranks):
                rise[r] += power8(row[r] + x)
        best, fallback = -1, -1
        for r in range(num_ranks):
            if fill[r] == slots or (item < cnt.size and home[e] >= 0 and r // ranks_per_node != home[e]):
                continue
            if cnt[e] > 1 and on_rank(e, expert_of, r * slots, fill[r]):
                if fallback < 0 or rise[r] - cost[r] < rise[fallback] - cost[fallback]:
                    fallback = r
            elif best < 0 or rise[r] - cost[r] < rise[best] - cost[best]:
                best = r
        r = best if best >= 0 else fallback
        expert_of[r * slots + fill[r]] = e
        fill[r] += 1
        cost[r] = rise[r]
        for w in range(num_windows):
            loads[w, r] += v[w, e] / cnt[e]


@kernel
def sum_loads(v, cnt, expert_of, slots, loads):
    """Rank loads ``[W, P]`` of a placement, from nothing."""
    loads[:] = 0.0
    for s in range(expert_of.size):
        e = expert_of[s]
        for w in range(loads.shape[0]):
            loads[w, s // slots] += v[w, e] / cnt[e]


@kernel
def spread_rank(v, cnt, expert_of, loads, rank, slots, slot_load, slot_rank_load):
    """Refresh the per-slot copies of a rank's vectors, which the swap scan reads in a row."""
    for w in range(loads.shape[0]):
        for s in range(rank * slots, (rank + 1) * slots):
            e = expert_of[s]
            slot_load[w, s] = v[w, e] / cnt[e]
            slot_rank_load[w, s] = loads[w, rank]


@kernel
def rank_cost(loads, rank):
    """A rank's part of the objective."""
    cost = 0.0
    for w in range(loads.shape[0]):
        cost += power8(loads[w, rank])
    return cost


@kernel
def separate_vectors(
    v, cnt, slots, home, ranks_per_node, fetches, expert_of, loads, steps, fetched, value, done
):
    """Part twins, each by the swap that raises the objective least; `refine.separate_layer` tells why it ends.

    Steps are written from number ``done`` on, as in `search_layer`; returns the number of steps then.
    """
    num_windows, num_ranks = loads.shape
    searching = slots > 1
    while searching:
        searching = False
        for s in range(expert_of.size):
            p = s // slots
            a = expert_of[s]
            if cnt[a] < 2 or not twin(s, expert_of, slots) or done == steps.shape[0]:
                continue
            best, best_t = np.inf, -1
            for q in range(num_ranks):
                if on_rank(a, expert_of, q * slots, slots):
                    continue
                for t in range(q * slots, (q + 1) * slots):
                    b = expert_of[t]
                    if on_rank(b, expert_of, p * slots, slots) and not twin(t, expert_of, slots):
                        continue
                    if not may_leave(b, q, expert_of, slots, home, ranks_per_node) or not may_leave(
                        a, p, expert_of, slots, home, ranks_per_node
                    ):
                        continue
                    rise = 0.0
                    for w in range(num_windows):
                        x = v[w, a] / cnt[a] - v[w, b] / cnt[b]
                        mine, theirs = loads[w, p], loads[w, q]
                        rise += power8(mine - x) + power8(theirs + x) - power8(mine) - power8(theirs)
                    if rise < best:
                        best, best_t = rise, t
            if best_t < 0:
                continue
            b = expert_of[best_t]
            extra = swap_slots(s, best_t, expert_of, slots, fetches)
            for w in range(num_windows):
                x = v[w, a] / cnt[a] - v[w, b] / cnt[b]
                loads[w, p] -= x
                loads[w, best_t // slots] += x
            steps[done, 0], steps[done, 1], steps[done, 2] = s, best_t, -1
            done += 1
            fetched[done] = fetched[done - 1] + extra
            value[done] = mean_largest(loads)
            searching = True
    return done


@kernel
def search_layer(
    v,
    cnt,
    slots,
    home,
    ranks_per_node,
    fetches,
    price,
    most,
    min_gain,
    expert_of,
    loads,
    steps,
    fetched,
    value,
    done,
):
    """Local search from a placement, the costliest rank first, until no swap or exchange gains.

    It ends early after ``most`` fetches, or when the last dozen of them gained less than ``min_gain`` each.
    ``done`` steps have been made before. Step ``k`` is written to ``steps [k]`` as (slot, other slot, -1) for a
    swap or (slot, -1, expert) for an exchange; ``fetched [k + 1]`` and ``value [k + 1]`` tell the fetches so far
    and the mean over windows of the largest rank load after it. Returns the number of steps then.
    """
    num_windows, num_ranks = loads.shape
    num_slots = expert_of.size
    slot_load = np.empty((num_windows, num_slots), np.float64)
    slot_rank_load = np.empty((num_windows, num_slots), np.float64)
    cost = np.empty(num_ranks, np.float64)
    tried = np.zeros(num_ranks, np.bool_)
    scan = np.empty(num_slots, np.float64)
    work = np.empty((4, max(num_slots, num_ranks)), np.float64)
    for r in range(num_ranks):
        spread_rank(v, cnt, expert_of, loads, r, slots, slot_load, slot_rank_load)
        cost[r] = rank_cost(loads, r)
    # What a rank costs that carries the mean in every window: with a cheaper one, no other is worth levelling.
    level = 0.0
    for w in range(num_windows):
        level += power8(loads[w].sum() / num_ranks)
    settled = -1
    mark = done
    while done < steps.shape[0] and fetched[done] < most:
        if value[done] < value[mark] - min_gain * (fetched[done] - fetched[mark]):
            mark = done
        elif fetched[done] - fetched[mark] > PATIENCE:
            break
        p = -1
        for r in range(num_ranks):
            if not tried[r] and (p < 0 or cost[r] > cost[p]):
                p = r
        if p < 0 or cost[p] <= level:
            # Ranks were set aside against others that have changed since: one more round over all.
            if done == settled:
                break
            settled = done
            tried[:] = False
            continue
        swap_score, _, s, t = best_swap(
            p,
            slots,
            expert_of,
            loads,
            cost,
            slot_load,
            slot_rank_load,
            home,
            ranks_per_node,
            fetches,
            price,
            scan,
        )
        exchange_score, u, b = 0.0, -1, -1
        # With free fetches, exchanges rarely gain; only the busiest rank of some window is worth the look.
        if price or (s < 0 and leads(p, loads)):
            exchange_score, _, u, b = best_exchange(
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
                swap_score,
                work,
            )
        if s < 0 and u < 0:
            tried[p] = True
            continue
        if swap_score >= exchange_score:
            q = t // slots
            extra = swap_slots(s, t, expert_of, slots, fetches)
            for w in range(num_windows):
                x = slot_load[w, s] - slot_load[w, t]
                loads[w, p] -= x
                loads[w, q] += x
            for r in (p, q):
                spread_rank(v, cnt, expert_of, loads, r, slots, slot_load, slot_rank_load)
                cost[r] = rank_cost(loads, r)
                tried[r] = False
            steps[done, 0], steps[done, 1], steps[done, 2] = s, t, -1
        else:
            a = expert_of[u]
            q = u // slots
            extra = np.int64(fetches[q, b])
            expert_of[u] = b
            if not on_rank(a, expert_of, q * slots, slots):
                extra -= fetches[q, a]
            cnt[a] -= 1
            cnt[b] += 1
            sum_loads(v, cnt, expert_of, slots, loads)
            for r in range(num_ranks):
                if (
                    r == q
                    or on_rank(a, expert_of, r * slots, slots)
                    or on_rank(b, expert_of, r * slots, slots)
                ):
                    spread_rank(v, cnt, expert_of, loads, r, slots, slot_load, slot_rank_load)
                    cost[r] = rank_cost(loads, r)
                    tried[r] = False
            steps[done, 0], steps[done, 1], steps[done, 2] = u, -1, b
        done += 1
        fetched[done] = fetched[done - 1] + extra
        value[done] = mean_largest(loads)
    return done


@kernel
def leads(rank, loads):
    """Whether a rank is the busiest of some window."""
    for w in range(loads.shape[0]):
        if loads[w, rank] >= loads[w].max():
            return True
    return False


@kernel
def mean_largest(loads):
    """The mean over windows of the largest rank load: the layer's in-sample imbalance."""
    total = 0.0
    for w in range(loads.shape[0]):
        total += loads[w].max()
    return total / loads.shape[0]
