"""Balance against moves: which steps of which layers to take.

What a prefix of a layer's steps is worth has three parts, compared one after the other: groups that it brings back to
their nodes, twins that it parts, and only then the imbalance that it leaves. So no gain in balance, of however many
layers, outweighs a twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..planning.kernel import kernel
from .state import FloatArray, IntArray

DIGITS = 12  # of an imbalance that are compared: what differs behind them is rounding, and earns no fetch


class Options(NamedTuple):
    """What each prefix of a layer's steps costs and is worth, the empty one first."""

    fetches: IntArray
    """``[K]``"""
    regrouped: IntArray
    """``[K]``: whether it brings the layer's groups back to their nodes, 1 or 0"""
    parted: IntArray
    """``[K]``: twins parted"""
    imbalance: FloatArray
    """``[K]``: of the rank loads, their mean being 1; infinite where a prefix is no option"""


def worthwhile(options: Options) -> list[int]:
    """The prefixes that no other one beats in both worth and fetches, by rising fetches."""
    imbalance = options.imbalance.round(DIGITS)
    worth = np.lexsort((imbalance, -options.parted, -options.regrouped))  # the best first
    equal = np.ones(len(worth), np.bool_)
    for part in (imbalance, options.parted, options.regrouped):
        equal[1:] &= part[worth[1:]] == part[worth[:-1]]
    place = np.empty(len(worth), np.int64)
    place[worth] = np.cumsum(~equal)  # equals share a place
    order = np.lexsort((place, options.fetches))  # stable: of equals the shorter prefix
    order = order[np.isfinite(imbalance[order])]
    best_before = np.minimum.accumulate(np.r_[len(worth) + 1, place[order]])[:-1]
    return [int(k) for k in order[place[order] < best_before]]


def choose(layers: Sequence[Options], budget: int | None, min_gain: float) -> list[int]:
    """How many steps each layer takes: those that are worth most, ``min_gain`` being charged for each fetch.

    All that bring groups back or part twins come first. Beyond them no fetch is made that takes less than
    ``min_gain`` off the imbalance, budget or not: a budget is a ceiling.
    """
    priced = [
        options._replace(imbalance=options.imbalance + min_gain * options.fetches) for options in layers
    ]
    if budget is not None:
        return spend(priced, budget)
    return [int(best_option(options)) for options in priced]


@kernel
def best_option(options):
    """The prefix that is worth most, of equals that with the fewest fetches: the last of `worthwhile`.

    ``options``: `Options`.
    """
    fetches, regrouped, parted = options.fetches, options.regrouped, options.parted
    best, least = 0, np.inf
    for k in range(fetches.size):
        imbalance = np.rint(options.imbalance[k] * 10.0**DIGITS) / 10.0**DIGITS
        if imbalance == np.inf:
            continue
        if least < np.inf and not _better(
            regrouped[k], regrouped[best], parted[k], parted[best], imbalance, least
        ):
            equal = regrouped[k] == regrouped[best] and parted[k] == parted[best] and imbalance == least
            if not equal or fetches[k] >= fetches[best]:
                continue
        best, least = k, imbalance
    return best


def spend(layers: Sequence[Options], budget: int) -> list[int]:
    """The prefix of each layer that together cost at most ``budget`` fetches and are worth most.

    A knapsack problem with one choice a layer, solved exactly by dynamic programming, so that a larger budget is
    never worse; with the hull alone, what is left over would be lost wherever the next step is a large one.
    """
    choices = [worthwhile(options) for options in layers]
    most = sum(int(options.fetches[kept[-1]]) for options, kept in zip(layers, choices, strict=True))
    if most <= budget:
        return [kept[-1] for kept in choices]
    ends = np.cumsum([len(kept) for kept in choices])
    every = Options(
        *(
            np.concatenate([options[field][kept] for options, kept in zip(layers, choices, strict=True)])
            for field in range(len(Options._fields))
        )
    )
    pick = np.empty(len(layers), np.int64)
    _knapsack(ends, every, budget, pick)
    return [kept[at] for kept, at in zip(choices, pick, strict=True)]


@kernel
def _better(regrouped, than_regrouped, parted, than_parted, imbalance, than_imbalance):
    """Whether the first of each pair is worth more: ``regrouped`` before ``parted`` before ``imbalance``.

    ``than_regrouped``, ``than_parted``, ``than_imbalance``: what it is compared with.
    """
    if regrouped != than_regrouped:
        return regrouped > than_regrouped
    if parted != than_parted:
        return parted > than_parted
    return imbalance < than_imbalance


@kernel
def _knapsack(ends, every, budget, pick):
    """One option a layer, together at most ``budget`` fetches and worth most.

    ``ends [L]``: where each layer's options end. ``every``: `Options` of all layers in a row. ``budget``: fetches.
    ``pick [L]`` is written: the option of each layer, counted from its first.
    """
    regrouped = np.zeros(budget + 1, np.int64)
    parted = np.zeros(budget + 1, np.int64)
    imbalance = np.zeros(budget + 1, np.float64)
    chosen = np.empty((ends.size, budget + 1), np.int32)
    first = 0
    for layer in range(ends.size):
        regrouped_before, parted_before, before = regrouped.copy(), parted.copy(), imbalance.copy()
        imbalance[:] = np.inf
        regrouped[:] = -1
        for k in range(first, ends[layer]):
            cost = every.fetches[k]
            for spent in range(cost, budget + 1):
                g = regrouped_before[spent - cost] + every.regrouped[k]
                p = parted_before[spent - cost] + every.parted[k]
                total = before[spent - cost] + every.imbalance[k]
                if _better(g, regrouped[spent], p, parted[spent], total, imbalance[spent]):
                    regrouped[spent], parted[spent], imbalance[spent] = g, p, total
                    chosen[layer, spent] = k - first
        first = ends[layer]
    left = budget
    for layer in range(ends.size - 1, -1, -1):
        first = ends[layer - 1] if layer else 0
        pick[layer] = chosen[layer, left]
        left -= every.fetches[first + pick[layer]]
