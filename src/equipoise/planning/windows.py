"""Windows of loads as vectors: every window counts alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .kernel import copy_into, for_layers, kernel
from .scale import to_integers

# All of these: benchmarks/bench_robust.py, held-out, and samples of a few thousand tokens.
MOST_DISPERSION = 1.5  # scatter of the variances, in that of samples
LEAST_EXPERTS = 32
LEAST_WINDOWS = 3


def merge_windows(loads: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """At most ``most`` windows: consecutive ones are summed, the newest groups being the full ones.

    Parameters
    ----------
    loads : ``[W, L, E]``, oldest first
    """
    if len(loads) <= most:
        return loads
    size = -(-len(loads) // most)
    first = len(loads) % size
    starts = np.r_[0, np.arange(first, len(loads), size)] if first else np.arange(0, len(loads), size)
    return np.add.reduceat(loads, starts, axis=0)


def to_vectors(loads: npt.NDArray[Any], num_ranks: int) -> npt.NDArray[np.float64]:
    """Loads ``[W, L, E]`` to vectors ``[L, W, E]``, scaled so that a window's mean rank load is 1.

    They go through the integers of `to_integers`, so they do not depend on the scale of the loads. A window
    without load in a layer is a row of zeros.
    """
    integers = to_integers(loads).astype(np.float64)
    sums = integers.sum(axis=2, keepdims=True)
    vectors = np.divide(integers * num_ranks, sums, out=np.zeros_like(integers), where=sums > 0)
    return np.ascontiguousarray(vectors.transpose(1, 0, 2))


def average_steady(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Vectors ``[L, W, E]`` with the mean of a layer's windows in place of each, where they are but samples.

    Windows of few tokens differ by chance even if nothing changes. The variance of a count of tokens grows like its
    mean, that of a load that really changes like its mean squared. So the variance over the mean must not grow from
    the lighter to the heavier half of the experts (with more than the power 1/4 of the mean), and over all experts,
    weighted by load, it must scatter at most one and a half times as much as in samples, where it is chi-squared with
    ``W - 1`` degrees of freedom. That needs no number of tokens, so it does not depend on the scale of the loads.
    Fewer than 32 experts or 3 windows do not tell.
    """
    averaged: npt.NDArray[np.float64] = vectors.copy()
    if vectors.shape[1] >= LEAST_WINDOWS and vectors.shape[2] >= LEAST_EXPERTS:
        for_layers(_average_steady, len(vectors), vectors, averaged)
    return averaged


@kernel
def _average_steady(first, last, vectors, averaged):
    """Layers ``first`` to ``last`` of ``vectors [L, W, E]``; ``averaged [L, W, E]`` is changed."""
    num_windows, num_experts = vectors.shape[1:]
    mean, variance = np.empty(num_experts, np.float64), np.empty(num_experts, np.float64)
    for layer in range(first, last):
        mean[:] = 0.0
        variance[:] = 0.0
        for w in range(num_windows):
            mean += vectors[layer, w] / num_windows
        for w in range(num_windows):
            variance += (vectors[layer, w] - mean) ** 2 / num_windows
        if _only_samples(mean, variance, num_windows):
            for w in range(num_windows):
                copy_into(averaged[layer, w], mean)


@kernel
def _only_samples(mean, variance, num_windows):
    """Whether the windows of a layer look like samples of one distribution; see `average_steady`.

    ``mean [E]``, ``variance [E]``: of each expert's load over ``num_windows`` windows.
    """
    order = np.argsort(-mean, kind="mergesort")
    half = mean.size // 2
    load, spread = np.zeros(2, np.float64), np.zeros(2, np.float64)
    first, second = 0.0, 0.0
    for at in range(mean.size):
        m, x = mean[order[at]], variance[order[at]]
        if at < 2 * half:
            load[at // half] += m
            spread[at // half] += x
        if m > 0.0:
            first += x
            second += x * x / m
    # (spread[0] / load[0]) / (spread[1] / load[1]) <= (load[0] / load[1]) ** (1 / 4), without the roots.
    heavy, light = spread[0] * load[1], spread[1] * load[0]
    grows = heavy * heavy * heavy * heavy * load[1] > light * light * light * light * load[0]
    total = load[0] + load[1]
    by_chance = 2.0 / (num_windows - 1)
    return not grows and second * total <= first * first * (1.0 + MOST_DISPERSION * by_chance)
