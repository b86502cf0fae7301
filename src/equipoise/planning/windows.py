"""Windows of loads as vectors: every window counts alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel
from .scale import scale_row

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


@kernel
def _vectors_of_layers(first, last, loads, num_ranks, vectors):
    """Layers ``first`` to ``last`` of ``loads [W, L, E]``.

    ``num_ranks``: ``P``. ``vectors [L, W, E]`` is written, see `to_vectors`.
    """
    integers = np.empty(loads.shape[2], np.int64)
    for layer in range(first, last):
        for w in range(loads.shape[0]):
            scale_row(loads[w, layer], integers)
            total = max(integers.sum(), 1)
            for e in range(integers.size):
                vectors[layer, w, e] = integers[e] * num_ranks / total


def to_vectors(loads: npt.NDArray[Any], num_ranks: int) -> npt.NDArray[np.float64]:
    """Loads ``[W, L, E]`` to vectors ``[L, W, E]``, scaled so that a window's mean rank load is 1.

    They go through the integers of `to_integers`, so they do not depend on the scale of the loads. A window
    without load in a layer is a row of zeros.
    """
    num_windows, num_layers, num_experts = loads.shape
    vectors = np.empty((num_layers, num_windows, num_experts), np.float64)
    for_layers(_vectors_of_layers, num_layers, np.asarray(loads, dtype=np.float64), num_ranks, vectors)
    return vectors


def average_steady(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Vectors ``[L, W, E]`` with the mean of a layer's windows in place of each, where they are but samples.

    Windows of few tokens differ by chance even if nothing changes. The variance of a count of tokens grows like its
    mean, that of a load that really changes like its mean squared. So the variance over the mean must not grow from
    the lighter to the heavier half of the experts (with more than the power 1/4 of the mean), and over all experts,
    weighted by load, it must scatter at most one and a half times as much as in samples, where it is chi-squared with
    ``W - 1`` degrees of freedom. That needs no number of tokens, so it does not depend on the scale of the loads.
    Fewer than 32 experts or 3 windows do not tell.
    """
    num_windows, num_experts = vectors.shape[1:]
    averaged: npt.NDArray[np.float64] = vectors.copy()
    if num_windows >= LEAST_WINDOWS and num_experts >= LEAST_EXPERTS:
        windows = vectors.transpose(1, 0, 2)
        mean = _sum_in_order(windows / num_windows)
        variance = _sum_in_order((windows - mean) ** 2 / num_windows)
        rows = _only_samples(mean, variance, num_windows)
        averaged[rows] = mean[rows, None]
    return averaged


def _sum_in_order(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum over the first axis, one after the other: NumPy's own order depends on strides."""
    return np.asarray(np.add.accumulate(terms)[-1])


def _only_samples(
    mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64], num_windows: int
) -> npt.NDArray[np.bool_]:
    """Whether the windows of a layer look like samples of one distribution ``[L]``; see `average_steady`.

    Parameters
    ----------
    mean, variance : ``[L, E]``, of each expert's load over the windows
    """
    order = np.argsort(-mean, axis=1, kind="stable")
    mean, variance = (np.take_along_axis(given, order, axis=1).T for given in (mean, variance))
    half = len(mean) // 2
    heavy_load, light_load = _sum_in_order(mean[:half]), _sum_in_order(mean[half : 2 * half])
    # (spread / load of the heavy) / (the same of the light) <= (their loads' ratio) ** (1 / 4), without the roots.
    heavy = _sum_in_order(variance[:half]) * light_load
    light = _sum_in_order(variance[half : 2 * half]) * heavy_load
    grows = heavy * heavy * heavy * heavy * light_load > light * light * light * light * heavy_load
    relative = np.divide(variance * variance, mean, out=np.zeros_like(mean), where=mean > 0.0)
    first, second = _sum_in_order(variance), _sum_in_order(relative)
    by_chance = 2.0 / (num_windows - 1)
    scatters = second * (heavy_load + light_load) > first * first * (1.0 + MOST_DISPERSION * by_chance)
    return np.asarray(~grows & ~scatters)
