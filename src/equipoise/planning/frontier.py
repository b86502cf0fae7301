"""Balance against moves: which steps of which layers to take."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Options = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Fetches and value of each prefix of a layer's steps, the empty one first."""


def hull(options: Options) -> list[int]:
    """The prefixes on the lower convex hull of value against fetches, from the empty one on.

    Prefixes that cost no fetch belong to the first of them that is best.
    """
    fetches, values = options
    kept: list[int] = []
    for k in np.lexsort((np.arange(len(fetches)), values, fetches)):
        if kept and (values[k] >= values[kept[-1]]):
            continue
        while kept:
            i = kept[-1]
            if fetches[k] == fetches[i] or (
                len(kept) > 1 and _slope(options, kept[-2], i) >= _slope(options, i, int(k))
            ):
                kept.pop()
            else:
                break
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

    With a budget, those that gain most per fetch until it is spent; without one, all that gain at least
    ``min_gain`` per fetch. Steps that need no fetch are always taken.
    """
    taken = [hull(options)[0] for options in layers]
    left = budget
    stuck: set[int] = set()
    for layer, prefix, fetches, gain in best_steps(layers):
        if left is None:
            if gain < min_gain * fetches:
                break
        elif layer in stuck:
            continue
        elif fetches > left:
            stuck.add(layer)
            continue
        else:
            left -= fetches
        taken[layer] = prefix
    return taken
