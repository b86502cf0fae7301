"""Balance against moves: which steps of which layers to take."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..planning.kernel import kernel

Options = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Fetches and value of each prefix of a layer's steps, the empty one first."""


def hull(options: Options) -> list[int]:
    """The prefixes on the lower convex hull of value against fetches, the best that costs no fetch first."""
    kept: list[int] = []
    for k in worthwhile(options):
        while len(kept) > 1 and _slope(options, kept[-2], kept[-1]) >= _slope(options, kept[-1], k):
            kept.pop()
        kept.append(k)
    return kept


def worthwhile(options: Options) -> list[int]:
    """The prefixes that no other one beats in both value and fetches, by rising fetches."""
    fetches, values = options
    kept: list[int] = []
    for k in np.lexsort((np.arange(len(fetches)), values, fetches)):
        if not kept or values[k] < values[kept[-1]]:
            kept.append(int(k))
    return kept


def _slope(options: Options, i: int, j: int) -> float:
    fetches, values = options
    return float((values[j] - values[i]) / (fetches[j] - fetches[i]))


def best_steps(layers: Sequence[Options]) -> Iterator[tuple[int, int, int, float]]:
    """The steps of all layers, those that gain most per fetch first.

    Yields (layer, prefix, fetches that it adds, value that it takes off); a layer's steps come in their order.
    """
    hulls = [hull(options) for options in layers]
    queue = [
        (_slope(o, h[0], h[1]), layer, 1)
        for layer, (o, h) in enumerate(zip(layers, hulls, strict=True))
        if len(h) > 1
    ]
    heapq.heapify(queue)
    while queue:
        _, layer, at = heapq.heappop(queue)
        options, kept = layers[layer], hulls[layer]
        i, j = kept[at - 1], kept[at]
        yield layer, j, int(options[0][j] - options[0][i]), float(options[1][i] - options[1][j])
        if at + 1 < len(kept):
            heapq.heappush(queue, (_slope(options, j, kept[at + 1]), layer, at + 1))


def choose(layers: Sequence[Options], budget: int | None, min_gain: float) -> list[int]:
    """How many steps each layer takes.

    With a budget, those with the smallest sum of values that it can pay for; without one, all that gain at least
    ``min_gain`` per fetch. Steps that need no fetch are always taken.
    """
    if budget is not None:
        return spend(layers, budget)
    taken = [hull(options)[0] for options in layers]
    for layer, prefix, fetches, gain in best_steps(layers):
        if gain < min_gain * fetches:
            break
        taken[layer] = prefix
    return taken


def spend(layers: Sequence[Options], budget: int) -> list[int]:
    """The prefix of each layer that together cost at most ``budget`` fetches and have the smallest sum of values.

    A knapsack problem with one choice a layer, solved exactly by dynamic programming, so that a larger budget is
    never worse; with the hull alone, what is left over would be lost wherever the next step is a large one.
    """
    choices = [worthwhile(options) for options in layers]
    most = sum(int(options[0][kept[-1]]) for options, kept in zip(layers, choices, strict=True))
    if most <= budget:
        return [kept[-1] for kept in choices]
    ends = np.cumsum([len(kept) for kept in choices])
    fetches = np.concatenate([o[0][kept] for o, kept in zip(layers, choices, strict=True)])
    values = np.concatenate([o[1][kept] for o, kept in zip(layers, choices, strict=True)])
    pick = np.empty(len(layers), np.int64)
    _knapsack(ends, fetches, values, budget, pick)
    return [kept[at] for kept, at in zip(choices, pick, strict=True)]


@kernel
def _knapsack(ends, fetches, values, budget, pick):
    """One option a layer, together at most ``budget`` fetches and of the smallest sum of values.

    ``ends [L]``: where each layer's options end. ``fetches [K]``, ``values [K]``: options of all layers in a row.
    ``pick [L]`` is written: the option of each layer, counted from its first.
    """
    best = np.zeros(budget + 1, np.float64)
    chosen = np.empty((ends.size, budget + 1), np.int32)
    first = 0
    for layer in range(ends.size):
        before = best.copy()
        best[:] = np.inf
        for k in range(first, ends[layer]):
            cost, value = fetches[k], values[k]
            for spent in range(cost, budget + 1):
                total = before[spent - cost] + value
                if total < best[spent]:
                    best[spent] = total
                    chosen[layer, spent] = k - first
        first = ends[layer]
    left = budget
    for layer in range(ends.size - 1, -1, -1):
        first = ends[layer - 1] if layer else 0
        pick[layer] = chosen[layer, left]
        left -= fetches[first + pick[layer]]
