"""Planning layers from one window: LPT, swaps, and with few slots a rank a search over replica counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel
from .orders import lpt_order
from .pack import pack_greedy, scatter
from .random import draw, mix
from .refine import collect, level_layer, rank_of_members, separate_layer
from .replicate import cap_replicas, item_weights, replicate_layer

IntArray = npt.NDArray[np.int64]

FEW_SLOTS = 3
LEAST_SWAPS = 32  # and one and a half for each rank: later ones gain less than a part in ten thousand
MOST_KICKS = 2000
KICK_WORK = 40_000  # kicks times slots, so that large layers do not take longer than small ones
KICK_SWAPS = 16  # a packing that needs more swaps than this is not the one sought
WORSE_AT_FIRST = 0.15


@kernel
def _pack(loads, logcnt, item_expert, num_ranks, max_swaps, weight, lpt, rank_of, rank_loads, room, members):
    """Pack, part twins and refine for given counts; returns the largest rank load."""
    item_weights(loads, logcnt, item_expert, weight)
    lpt_order(weight, lpt)
    pack_greedy(lpt, weight, num_ranks, np.int64(1) << 51, rank_of, room)
    collect(lpt, rank_of, weight, members, rank_loads, room)
    separate_layer(weight, item_expert, members, rank_loads)
    level_layer(weight, item_expert, max_swaps, members, rank_loads)
    return rank_loads.max()


@kernel
def _single_layers(first, last, loads, num_ranks, max_swaps, kicks, phy2log, largest):
    num_experts, num_slots = loads.shape[1], phy2log.shape[1]
    slots = num_slots // num_ranks
    logcnt = np.empty(num_experts, np.int64)
    item_expert = np.empty(num_slots, np.int64)
    weight = np.empty(num_slots, np.int64)
    lpt = np.empty(num_slots, np.int64)
    rank_of = np.empty(num_slots, np.int64)
    rank_loads = np.empty(num_ranks, np.int64)
    room = np.empty(num_ranks, np.int64)
    members = np.empty((num_ranks, slots), np.int64)
    busiest = np.empty(slots, np.int64)
    kept_items = np.empty(num_slots, np.int64)
    for layer in range(first, last):
        x = loads[layer]
        replicate_layer(x, num_slots, logcnt, item_expert)
        cap_replicas(x, num_ranks, logcnt, item_expert)
        best = _pack(
            x, logcnt, item_expert, num_ranks, max_swaps, weight, lpt, rank_of, rank_loads, room, members
        )
        rank_of_members(members, rank_of)
        scatter(lpt, rank_of, item_expert, num_ranks, phy2log[layer], room)
        now = best
        # No packing has a smaller largest load than the mean, or than the Adams counts' largest replica.
        floor = max(x.sum() // num_ranks, weight.max())
        top = rank_loads.argmax()
        for s in range(slots):
            busiest[s] = item_expert[members[top, s]]
        for kick in range(kicks):
            if best <= floor + floor // 10_000:
                break
            # A spare replica goes to another expert, every other time one of the busiest rank.
            state = mix(mix(np.uint64(0), layer), kick)
            spare = num_experts + draw(state, 0) % (num_slots - num_experts)
            a = item_expert[spare]
            b = busiest[draw(state, 1) % slots] if kick % 2 else draw(state, 1) % num_experts
            if a == b or logcnt[b] >= num_ranks:
                continue
            kept_items[:] = item_expert
            item_expert[spare] = b
            logcnt[a] -= 1
            logcnt[b] += 1
            found = _pack(
                x, logcnt, item_expert, num_ranks, KICK_SWAPS, weight, lpt, rank_of, rank_loads, room, members
            )
            # Threshold accepting (Dueck and Scheuer 1990): somewhat worse is fine at first, less and less so.
            if found > now and found > best * (1.0 + WORSE_AT_FIRST * (kicks - kick) / kicks):
                item_expert[:] = kept_items
                logcnt[a] += 1
                logcnt[b] -= 1
                continue
            now = found
            top = rank_loads.argmax()
            for s in range(slots):
                busiest[s] = item_expert[members[top, s]]
            if found < best:
                best = found
                rank_of_members(members, rank_of)
                scatter(lpt, rank_of, item_expert, num_ranks, phy2log[layer], room)
        largest[layer] = best


def plan_single(loads: IntArray, num_ranks: int, num_slots: int, max_swaps: int) -> tuple[IntArray, IntArray]:
    """One window: LPT, then swaps of the busiest rank with any other one until none helps.

    With 1 to 3 slots a rank there is little to swap, and the counts that minimise the largest replica are not
    the best to pack: spare replicas are then handed from expert to expert at random (drawn from a fixed seed),
    and the best packing seen is kept.

    Parameters
    ----------
    loads : ``[L, E]`` as `to_integers` makes them

    Returns
    -------
    ``phy2log [L, R]``, and the largest rank load ``[L]`` in the integers of ``loads``
    """
    phy2log = np.empty((len(loads), num_slots), np.int64)
    largest = np.empty(len(loads), np.int64)
    few = num_slots <= FEW_SLOTS * num_ranks and loads.shape[1] < num_slots
    swaps = min(max_swaps, max(LEAST_SWAPS, 3 * num_ranks // 2))
    kicks = min(MOST_KICKS, KICK_WORK // num_slots) if few else 0
    for_layers(_single_layers, len(loads), loads, num_ranks, swaps, kicks, phy2log, largest)
    return phy2log, largest
