"""Planning layers from one window: LPT, swaps, and with few slots a rank a search over replica counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.orders import lpt_order
from ..planning.pack import UNREACHED, pack_greedy
from ..planning.pipeline import new_packing, write_slots
from ..planning.random import draw, mix
from ..planning.refine import collect, level_layer, rank_of_members, separate_layer
from ..planning.replicate import cap_replicas, item_weights, replicate_layer
from .state import IntArray

# All of these: benchmarks/bench_robust.py, in-sample and the example of eight experts.
KICKED_SLOTS = 3  # slots a rank up to which replica counts are searched
LEAST_SWAPS = 32  # and one and a half for each rank: later ones gain less than a part in ten thousand
MOST_KICKS = 2000
KICK_WORK = 40_000  # kicks times slots, so that large layers do not take longer than small ones
KICK_SWAPS = 16  # a packing that needs more swaps than this is not the one sought
WORSE_AT_FIRST = 0.15


class Effort(NamedTuple):
    """How long a layer is worked on."""

    max_swaps: int
    """swaps that level the first packing"""
    kicks: int
    """replicas handed from expert to expert"""


@kernel
def _pack_counts(packing, expert_loads, max_swaps):
    """Pack, part twins and level for given counts; returns the largest rank load.

    ``packing``: the layer, its counts and items given. ``expert_loads [E]``: integers. ``max_swaps``: of levelling.
    """
    weight, item_expert, lpt = packing.weight, packing.item_expert, packing.lpt
    rank_loads, room, members = packing.rank_loads, packing.room, packing.members
    item_weights(expert_loads, packing.logcnt, item_expert, weight)
    lpt_order(weight, lpt)
    pack_greedy(lpt, weight, rank_loads.size, UNREACHED, packing.rank_of, room)
    collect(lpt, packing.rank_of, weight, members, rank_loads, room)
    separate_layer(weight, item_expert, members, rank_loads)
    level_layer(weight, item_expert, max_swaps, members, rank_loads)
    return rank_loads.max()


@kernel
def _keep(packing, phy2log):
    """Write the packing at hand as experts of slots ``phy2log [R]``. ``packing``: the layer."""
    rank_of_members(packing.members, packing.rank_of)
    write_slots(packing, phy2log)


@kernel
def _experts_of_busiest(packing, experts):
    """The experts of the busiest rank, written to ``experts [S]``. ``packing``: the layer."""
    top = packing.rank_loads.argmax()
    for s in range(experts.size):
        experts[s] = packing.item_expert[packing.members[top, s]]


@kernel
def _single_layers(first, last, expert_loads, num_ranks, effort, phy2log, largest):
    """Layers ``first`` to ``last`` of ``expert_loads [B, E]`` (integers).

    ``num_ranks``: ``P``. ``effort``: `Effort`. ``phy2log [B, R]`` and the largest rank loads ``largest [B]`` are
    written.
    """
    num_experts, num_slots = expert_loads.shape[1], phy2log.shape[1]
    packing = new_packing(num_experts, num_slots, num_ranks)
    logcnt, item_expert = packing.logcnt, packing.item_expert
    busiest = np.empty(num_slots // num_ranks, np.int64)
    kept_items = np.empty(num_slots, np.int64)
    for layer in range(first, last):
        x = expert_loads[layer]
        replicate_layer(x, num_slots, logcnt, item_expert)
        cap_replicas(x, num_ranks, logcnt, item_expert)
        best = now = _pack_counts(packing, x, effort.max_swaps)
        _keep(packing, phy2log[layer])
        # No packing has a smaller largest load than the mean, or than the Adams counts' largest replica.
        floor = max(x.sum() // num_ranks, packing.weight.max())
        _experts_of_busiest(packing, busiest)
        for kick in range(effort.kicks):
            if best <= floor + floor // 10_000:
                break
            # A spare replica goes to another expert, every other time one of the busiest rank.
            state = mix(mix(np.uint64(0), layer), kick)
            spare = num_experts + draw(state, 0) % (num_slots - num_experts)
            a = item_expert[spare]
            b = busiest[draw(state, 1) % busiest.size] if kick % 2 else draw(state, 1) % num_experts
            if a == b or logcnt[b] >= num_ranks:
                continue
            copy_into(kept_items, item_expert)
            item_expert[spare] = b
            logcnt[a] -= 1
            logcnt[b] += 1
            found = _pack_counts(packing, x, KICK_SWAPS)
            # Threshold accepting (Dueck and Scheuer 1990): somewhat worse is fine at first, less and less so.
            if found > now and found > best * (1.0 + WORSE_AT_FIRST * (effort.kicks - kick) / effort.kicks):
                copy_into(item_expert, kept_items)
                logcnt[a] += 1
                logcnt[b] -= 1
                continue
            now = found
            _experts_of_busiest(packing, busiest)
            if found < best:
                best = found
                _keep(packing, phy2log[layer])
        largest[layer] = best


def plan_single(
    expert_loads: IntArray, num_ranks: int, num_slots: int, max_swaps: int
) -> tuple[IntArray, IntArray]:
    """One window: LPT, then swaps of the busiest rank with any other one until none helps.

    With 1 to 3 slots a rank there is little to swap, and the counts that minimise the largest replica are not
    the best to pack: spare replicas are then handed from expert to expert at random (drawn from a fixed seed),
    and the best packing seen is kept.

    Parameters
    ----------
    expert_loads : ``[B, E]`` as `to_integers` makes them

    Returns
    -------
    ``phy2log [B, R]``, and the largest rank load ``[B]`` in the integers of ``expert_loads``
    """
    phy2log = np.empty((len(expert_loads), num_slots), np.int64)
    largest = np.empty(len(expert_loads), np.int64)
    few = num_slots <= KICKED_SLOTS * num_ranks and expert_loads.shape[1] < num_slots
    kicks = min(MOST_KICKS, KICK_WORK // num_slots) if few else 0
    effort = Effort(min(max_swaps, max(LEAST_SWAPS, 3 * num_ranks // 2)), kicks)
    for_layers(_single_layers, len(expert_loads), expert_loads, num_ranks, effort, phy2log, largest)
    return phy2log, largest
