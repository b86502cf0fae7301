"""The best swap of a rank's slots with slots of other ranks."""

from __future__ import annotations

import numpy as np

from ..planning.kernel import kernel
from ..planning.objective import SMALLEST_GAIN, SMALLEST_SHARE, cost
from .partners import bound_ranks, bound_swap, collect
from .state import BURDEN, may_swap

# Of more windows than these, bounds leave so many swaps to compute that only the most promising ranks are looked at
# where fetches are free. benchmarks/bench_robust.py, in-sample and speed.
FEW_WINDOWS = 8
MOST_PARTNERS = 64
FREE = 4.0  # a step without a fetch is worth this many times one with a fetch; benchmarks/bench_robust.py, replay


@kernel
def _swap_gain(state, s, t):
    """What the objective gains if slots ``s`` and ``t`` trade experts, nothing if that is rounding.

    ``state``: the layer.
    """
    p, q = s // state.slots_per_rank, t // state.slots_per_rank
    own, total = state.speeds[BURDEN, p], 0.0
    ratio = state.speeds[BURDEN, q] / own
    for w in range(state.rank_loads.shape[0]):
        x, y = state.slot_loads[w, s], state.slot_loads[w, t]
        total += cost(state.rank_loads[w, p] - x + y) + ratio * cost(state.rank_loads[w, q] + x - y)
    before = state.rank_costs[p] + state.rank_costs[q]
    if own * total >= before * (1.0 - SMALLEST_SHARE) - SMALLEST_GAIN:
        return 0.0
    return before - own * total


@kernel
def _worth(extra):
    """What a gain is multiplied by for ``extra`` fetches."""
    return 1.0 / extra if extra > 0 else FREE


@kernel
def best_swap(state, p, price):
    """The swap of a slot of rank ``p`` with a slot of another rank that gains most.

    Slots are tried by their offsets, and what cannot beat the best swap so far by its bound is not computed
    (`search.partners`).

    ``state``: the layer. With ``price`` 0 fetches do not count, with 1 the gain is taken per fetch. Returns (score,
    slot of ``p``, other slot), slots -1 if nothing gains; of equals the first.
    """
    phy2log, fetches = state.phy2log, state.fetches
    slots, found, rank = state.slots_per_rank, state.partners.found, state.partners.rank
    level, fall, offsets = state.partners.level, state.partners.fall, state.partners.offsets
    num_windows, num_ranks = state.rank_loads.shape
    all_ranks = price or num_windows <= FEW_WINDOWS
    largest, slowest = bound_ranks(state, p, num_ranks if all_ranks else MOST_PARTNERS)
    most = FREE if price else 1.0
    best_score, best_s, best_t = 0.0, -1, -1
    for s in range(p * slots, (p + 1) * slots):
        enough = best_score / most
        if largest < enough:
            break
        a = phy2log[s]
        reach = np.sqrt((largest - enough) / slowest) if slowest > 0 else np.inf
        for k in range(collect(state.partners, s, reach, enough)):
            t = found[k]
            q = rank[t]
            bound = level[q] - bound_swap(offsets[s], offsets[t], fall[q])
            worth = 1.0
            if price:
                b = phy2log[t]
                worth = _worth(fetches[p, b] - fetches[p, a] + fetches[q, a] - fetches[q, b])
                if level[q] * worth < best_score:
                    continue
            if bound * worth < best_score:
                continue
            score = _swap_gain(state, s, t) * worth
            better = score > best_score or (score == best_score and s == best_s and t < best_t)
            if better and may_swap(state, s, t):
                best_score, best_s, best_t = score, s, t
    return best_score, best_s, best_t
