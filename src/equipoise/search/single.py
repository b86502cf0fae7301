"""Planning layers from one window: LPT, swaps, and with few slots a rank a search over replica counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..placement import BoolArray
from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.orders import lpt_order
from ..planning.pack import UNREACHED, pack_greedy
from ..planning.pipeline import Packing, new_packing, write_slots
from ..planning.random import draw, mix
from ..planning.refine import collect, level_layer, rank_of_members, separate_layer
from ..planning.replicate import cap_replicas, item_weights, replicate_layer
from ..planning.scale import SCALE, scale_row
from .state import FloatArray, IntArray, Layers

# All of these: benchmarks/bench_robust.py, in-sample, held-out and the example of eight experts.
FEW_SLOTS = 3  # slots a rank up to which replica counts are searched
LEAST_SWAPS = 32  # and one and a half for each rank: later ones gain less than a part in ten thousand
# What an item weighs more than its load, over its expert's replicas, where counts are searched: a rank that holds all
# of a hot expert feels all of its noise, one that holds half of two experts a quarter of each.
PREMIUM = 0.05
CAPS = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.08])  # largest replica loads to try, in mean rank loads
# Kicks times slots squared: large layers have more to choose from by caps, and with kicks they fit noise.
KICK_WORK = 4096
TRIAL_SWAPS = 16  # a packing that needs more swaps than this is not the one sought
WORSE_AT_FIRST = 0.15
CLOSE = 1e-4  # to the bound: the search ends


class Effort(NamedTuple):
    """How long a layer is worked on."""

    max_swaps: int
    """swaps that level the packing that is kept"""
    trial_swaps: int
    """swaps that level one that is tried"""
    caps: FloatArray
    """``[C]``: the largest replica loads to try, in mean rank loads"""
    kicks: int
    """replicas handed from expert to expert"""
    premium: float
    """see `PREMIUM`"""


class Hunt(NamedTuple):
    """One layer while replica counts are tried for it."""

    expert_loads: IntArray
    """``[E]``: integers"""
    packing: Packing
    """of the counts at hand"""
    busiest: IntArray
    """``[S]``: experts of the busiest rank of the packing that was accepted last"""
    best_items: IntArray
    """``[R]``: the expert of each item of the best packing"""
    best_busiest: IntArray
    """``[S]``: experts of its busiest rank"""


@kernel
def _pack_counts(hunt, max_swaps, premium):
    """Pack, part twins and level for given counts; returns the largest rank load.

    ``hunt``: the layer, its counts and items given. ``max_swaps``: of levelling. ``premium``: see `PREMIUM`.
    """
    packing = hunt.packing
    weight, item_expert, lpt, logcnt = packing.weight, packing.item_expert, packing.lpt, packing.logcnt
    rank_loads, room, members = packing.rank_loads, packing.room, packing.members
    item_weights(hunt.expert_loads, logcnt, item_expert, weight)
    if premium:
        for i in range(weight.size):
            weight[i] = np.int64(np.rint(weight[i] * (1.0 + premium / logcnt[item_expert[i]])))
    lpt_order(weight, lpt)
    pack_greedy(lpt, weight, rank_loads.size, UNREACHED, packing.rank_of, room)
    collect(lpt, packing.rank_of, weight, members, rank_loads, room)
    separate_layer(weight, item_expert, members, rank_loads)
    level_layer(weight, item_expert, max_swaps, members, rank_loads)
    return rank_loads.max()


@kernel
def _accept(hunt):
    """Go on from the packing at hand. ``hunt``: the layer."""
    packing = hunt.packing
    top = packing.rank_loads.argmax()
    for s in range(hunt.busiest.size):
        hunt.busiest[s] = packing.item_expert[packing.members[top, s]]


@kernel
def _keep(hunt, phy2log):
    """Keep the accepted packing as the best one, written as experts of slots ``phy2log [R]``. ``hunt``: the layer."""
    copy_into(hunt.best_items, hunt.packing.item_expert)
    copy_into(hunt.best_busiest, hunt.busiest)
    rank_of_members(hunt.packing.members, hunt.packing.rank_of)
    write_slots(hunt.packing, phy2log)


@kernel
def _go_back(hunt):
    """Bring back the counts of the best packing. ``hunt``: the layer."""
    copy_into(hunt.packing.item_expert, hunt.best_items)
    copy_into(hunt.busiest, hunt.best_busiest)
    hunt.packing.logcnt[:] = 0
    for e in hunt.best_items:
        hunt.packing.logcnt[e] += 1


@kernel
def _cap_loads(hunt, cap):
    """The least replicas that keep those of an expert at or below ``cap``; lighter experts get the slots left.

    ``hunt``: the layer; some counts keep all replicas at or below the cap, so there are enough slots.
    """
    expert_loads, logcnt, item_expert = hunt.expert_loads, hunt.packing.logcnt, hunt.packing.item_expert
    cool = np.empty(expert_loads.size, np.int64)
    end = item_expert.size
    for e in range(cool.size):
        cool[e] = expert_loads[e] if expert_loads[e] <= cap else 0
        end -= max(expert_loads[e] - 1, 0) // cap
    replicate_layer(cool, end, logcnt, item_expert[:end])
    for e in range(cool.size):
        extra = max(expert_loads[e] - 1, 0) // cap
        logcnt[e] += extra
        for item in range(end, end + extra):
            item_expert[item] = e
        end += extra


@kernel
def _among(experts, expert):
    """Whether ``expert`` is one of ``experts [S]``."""
    for e in experts:
        if e == expert:
            return True
    return False


@kernel
def _draw_kick(hunt, kick):
    """A spare item and the expert that is to have it; one of the two experts is on the busiest rank.

    ``hunt``: the layer. ``kick``: its number, from which alone is drawn.
    """
    item_expert, busiest = hunt.packing.item_expert, hunt.busiest
    num_experts, num_slots = hunt.expert_loads.size, item_expert.size
    state = mix(np.uint64(0), kick)
    spare = num_experts + draw(state, 0) % (num_slots - num_experts)
    if kick % 2:
        return spare, busiest[draw(state, 1) % busiest.size]
    for _ in range(num_slots - num_experts):
        if _among(busiest, item_expert[spare]):
            break
        spare = spare + 1 if spare + 1 < num_slots else num_experts
    return spare, draw(state, 1) % num_experts


@kernel
def _hand_over(packing, spare, expert):
    """Give the item ``spare`` to another ``expert``; returns the one that had it. ``packing``: the layer."""
    old = packing.item_expert[spare]
    packing.item_expert[spare] = expert
    packing.logcnt[old] -= 1
    packing.logcnt[expert] += 1
    return old


@kernel
def _try_caps(hunt, effort, replica, enough, best, phy2log):
    """Counts by caps on the loads of replicas; returns the smallest largest rank load.

    ``hunt``: the layer. ``effort``: `Effort`. ``replica``: caps at or below it are left out. ``enough``: a load that
    ends the search. ``best``: the one to beat. ``phy2log [R]`` is written when it is beaten.
    """
    num_ranks = hunt.packing.rank_loads.size
    mean = hunt.expert_loads.sum() / num_ranks
    for share in effort.caps:
        cap = np.int64(share * mean)
        if cap <= replica or best <= enough:
            continue
        _cap_loads(hunt, cap)
        cap_replicas(hunt.expert_loads, num_ranks, hunt.packing.logcnt, hunt.packing.item_expert)
        found = _pack_counts(hunt, effort.trial_swaps, effort.premium)
        if found < best:
            best = found
            _accept(hunt)
            _keep(hunt, phy2log)
    return best


@kernel
def _try_kicks(hunt, effort, enough, best, phy2log):
    """Spare replicas handed from expert to expert from the best counts on.

    ``hunt``: the layer. ``effort``: `Effort`. ``enough``: a load that ends the search. ``best``: the largest rank
    load to beat. ``phy2log [R]`` is written when it is beaten.
    """
    packing, now = hunt.packing, best
    _go_back(hunt)
    for kick in range(effort.kicks):
        if best <= enough:
            break
        spare, b = _draw_kick(hunt, kick)
        if packing.item_expert[spare] == b or packing.logcnt[b] >= packing.rank_loads.size:
            continue
        a = _hand_over(packing, spare, b)
        found = _pack_counts(hunt, effort.trial_swaps, effort.premium)
        # Threshold accepting (Dueck and Scheuer 1990): somewhat worse is fine at first, less and less so.
        worse = WORSE_AT_FIRST * (effort.kicks - kick) / effort.kicks
        if found > now and found > best * (1.0 + worse):
            _hand_over(packing, spare, a)
            continue
        now = found
        _accept(hunt)
        if found < best:
            best = found
            _keep(hunt, phy2log)


@kernel
def _may_gain(layers, layer, packing, phy2log, least):
    """Whether fetches from ``phy2log [R]`` may gain ``least`` each, by `soft_largest` of the first window.

    A swap lowers one rank above the mean for each two fetches, and one more replica lowers those that hold the
    expert; so ``k`` fetches lower no more than ``k`` times as many ranks as one expert may have replicas on. Let them
    take the highest ranks down to the mean: what `soft_largest` loses by that must be worth ``k`` fetches.

    ``layers``: `Layers`, ranks equally fast. ``layer``: which of them. ``packing``: scratch of its size.
    """
    x, num_ranks = layers.vectors[layer, 0], layers.num_ranks
    slots, logcnt = phy2log.size // num_ranks, packing.logcnt
    times = np.zeros(num_ranks, np.float64)
    logcnt[:] = 0
    for e in phy2log:
        logcnt[e] += 1
    for s in range(phy2log.size):
        times[s // slots] += x[phy2log[s]] / logcnt[phy2log[s]] / layers.speed[layer, 0]
    mean = times.mean()
    above = max(times.max() - mean, np.finfo(np.float64).tiny)
    for r in range(num_ranks):
        times[r] = max(times[r] - mean, 0.0)
        packing.rank_loads[r] = np.int64(times[r] / above * SCALE)
    lpt_order(packing.rank_loads, packing.room)
    # Sums of fourth powers once all but the lowest ranks are down, by their number.
    left = np.zeros(num_ranks + 1, np.float64)
    for k in range(num_ranks):
        fourth = times[packing.room[num_ranks - 1 - k]]
        left[k + 1] = left[k] + fourth * fourth * fourth * fourth
    for k in range(1, num_ranks + 1):
        after = left[max(num_ranks - k * logcnt.max(), 0)]
        if np.sqrt(np.sqrt(left[num_ranks])) - np.sqrt(np.sqrt(after)) > least * k:
            return True
    return False


@kernel
def _single_layers(first, last, layers, effort, least, phy2log, unsettled):
    """Layers ``first`` to ``last`` of ``layers``, from their first windows.

    ``layers``: `Layers`. ``effort``: `Effort`. ``least``: see `plan_single`. ``phy2log [B, R]`` and ``unsettled [B]``
    are written.
    """
    num_experts, num_slots, num_ranks = layers.vectors.shape[2], phy2log.shape[1], layers.num_ranks
    slots = num_slots // num_ranks
    packing = new_packing(num_experts, num_slots, num_ranks)
    logcnt, weight = packing.logcnt, packing.weight
    busiest, best_busiest = np.empty(slots, np.int64), np.empty(slots, np.int64)
    best_items = np.empty(num_slots, np.int64)
    x = np.empty(num_experts, np.int64)
    hunt = Hunt(x, packing, busiest, best_items, best_busiest)
    for layer in range(first, last):
        scale_row(layers.vectors[layer, 0], x)
        replicate_layer(x, num_slots, logcnt, packing.item_expert)
        cap_replicas(x, num_ranks, logcnt, packing.item_expert)
        best = _pack_counts(hunt, effort.trial_swaps, effort.premium)
        _accept(hunt)
        _keep(hunt, phy2log[layer])
        if effort.caps.size:
            replica = weight.max()
            # No packing is below the mean; few are below these counts' largest replica and its lightest company.
            enough = max(x.sum() / num_ranks, replica + (slots - 1) * weight.min()) * (1.0 + CLOSE)
            best = _try_caps(hunt, effort, replica, enough, best, phy2log[layer])
            _try_kicks(hunt, effort, enough, best, phy2log[layer])
        if effort.trial_swaps < effort.max_swaps:
            _go_back(hunt)
            _pack_counts(hunt, effort.max_swaps, effort.premium)
            _keep(hunt, phy2log[layer])
        unsettled[layer] = _may_gain(layers, layer, packing, phy2log[layer], least)


def plan_single(layers: Layers, num_slots: int, max_swaps: int, least: float) -> tuple[IntArray, BoolArray]:
    """One window: LPT, then swaps of the busiest rank with any other one until none helps.

    With 2 or 3 slots a rank there is little to swap, and the counts that minimise the largest replica are not the
    best to pack: others are tried, and what packs best is kept. Several caps are put on the load of a replica;
    experts above a cap get the least replicas that keep it, and the others the slots that are left. In small layers
    spare replicas are then handed from expert to expert at random (drawn from a fixed seed). Items weigh a premium
    there that falls with their expert's replicas, so that what fits the window is not bought with noise.

    Parameters
    ----------
    layers : experts free, the ranks of a layer equally fast; windows but the first are left out
    least : what a fetch must take off a layer's imbalance to be worth making

    Returns
    -------
    ``phy2log [B, R]``, and in which layers fetches may gain ``least`` ``[B]``
    """
    (num_layers, _, num_experts), num_ranks = layers.vectors.shape, layers.num_ranks
    phy2log = np.empty((num_layers, num_slots), np.int64)
    unsettled = np.empty(num_layers, np.bool_)
    few = num_ranks < num_slots <= FEW_SLOTS * num_ranks and num_experts < num_slots
    swaps = min(max_swaps, max(LEAST_SWAPS, 3 * num_ranks // 2))
    if few:
        effort = Effort(swaps, min(swaps, TRIAL_SWAPS), CAPS, KICK_WORK // num_slots**2, PREMIUM)
    else:
        effort = Effort(swaps, swaps, CAPS[:0], 0, 0.0)
    for_layers(_single_layers, num_layers, layers, effort, least, phy2log, unsettled)
    return phy2log, unsettled
