"""Windows of loads as vectors: every window counts alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel
from .scale import scale_row

# All of these: benchmarks/bench_few_tokens.py.
LEAST_EXPERTS = 32
TELLING_WINDOWS = 5
ALLOWANCE = 2.0  # for changing together, in standard deviations of what chance alone does
MOST_SCATTER = 2.5  # of counts, likewise
EQUAL = 1e-9  # loads that differ by less, as parts of a layer's largest, differ by rounding


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


def steady_layers(loads: npt.NDArray[Any], vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Layers ``[L]`` whose windows differ as samples of one distribution do: they say no more than their sum.

    Two tests, neither of which needs the scale of the loads. Where traffic changes, experts change together
    (`_tell_together`); this takes three windows, and from five on it is enough. With fewer of them, loads must also
    be counts that scatter as counts do (`_only_counted`). Fewer than 32 experts do not tell.

    Parameters
    ----------
    loads : ``[W, L, E]``
    vectors : ``[L, W, E]``, of the same loads
    """
    num_windows, num_layers, num_experts = loads.shape
    if num_windows == 1 or num_experts < LEAST_EXPERTS:
        return np.zeros(num_layers, np.bool_)
    totals = loads.sum(axis=2)
    steady = np.asarray((totals > 0.0).sum(axis=0) > 1)
    if num_windows > 2:
        together = np.empty(num_layers, np.bool_)
        for_layers(_tell_together, num_layers, vectors, totals, together)
        steady &= ~together
    if num_windows < TELLING_WINDOWS:
        steady &= _only_counted(loads, totals)
    return steady


@kernel
def _tell_together(first, last, vectors, totals, together):
    """Layers ``first`` to ``last``: whether experts change together, by more than chance and the allowance for it.

    Let ``u[w, e]`` be how far an expert's share of a window is from its mean, times the root of the window's load
    over that mean. If experts change together, a window has something in common with another one, or is its
    opposite: the eigenvalues of ``u u^T`` differ, as in John's test of sphericity (Biometrika 58, 1971). By how much
    they do so by chance, if experts are independent with variances of their own, follows from the sum over experts
    of ``(sum_w u^2)^2``.

    ``vectors [L, W, E]``: from `to_vectors`. ``totals [W, L]``: loads of windows. ``together [L]`` is written.
    """
    num_windows, num_experts = vectors.shape[1:]
    change, weight = np.empty(num_windows, np.float64), np.empty(num_windows, np.float64)
    for layer in range(first, last):
        shared = np.zeros((num_windows, num_windows), np.float64)
        alone, filled = 0.0, 0
        fullest = totals[:, layer].max()
        for w in range(num_windows):
            filled += totals[w, layer] > 0.0
            weight[w] = totals[w, layer] / fullest if fullest > 0.0 else 0.0
        for e in range(num_experts):
            mean, spread = 0.0, 0.0
            for w in range(num_windows):
                mean += weight[w] * vectors[layer, w, e]
            mean /= max(weight.sum(), 1.0)
            for w in range(num_windows):
                change[w] = (vectors[layer, w, e] - mean) * np.sqrt(weight[w] / mean) if mean > 0.0 else 0.0
                spread += change[w] * change[w]
                for other in range(w + 1):
                    shared[w, other] += change[w] * change[other]
            alone += spread * spread
        squares, trace = 0.0, 0.0
        for w in range(num_windows):
            trace += shared[w, w]
            squares += shared[w, w] * shared[w, w]
            for other in range(w):
                squares += 2.0 * shared[w, other] * shared[w, other]
        free = filled - 1
        if free > 1 and trace > EQUAL * num_windows:
            most = 1.0 + ALLOWANCE * np.sqrt(4.0 / ((free - 1) * (free + 2)))
            together[layer] = free * squares - trace * trace > most * (free - 1) * alone
        else:
            together[layer] = False


def _only_counted(loads: npt.NDArray[Any], totals: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether a layer's loads are counts of tokens that scatter no more than such counts do ``[L]``.

    One token is the smallest difference between two loads of the layer: of counts that is so unless they are few and
    far apart, and of other numbers it is so small that they scatter by far too much. In tokens, the squared
    differences from what each expert has on average, over that, add up to chi-squared (Fisher's index of dispersion).

    Parameters
    ----------
    loads : ``[W, L, E]``
    totals : ``[W, L]``, their sums
    """
    num_layers = loads.shape[1]
    largest = loads.max(axis=(0, 2))
    largest[largest == 0.0] = 1.0
    loads, totals = loads / largest[:, None], totals / largest
    gaps = np.diff(np.sort(loads.transpose(1, 0, 2).reshape(num_layers, -1), axis=1), axis=1)
    token = np.where(gaps > EQUAL, gaps, np.inf).min(axis=1)
    mean = _sum_in_order(loads) / np.maximum(_sum_in_order(totals), EQUAL)[:, None]
    expected = totals[..., None] * mean
    squares = np.divide((loads - expected) ** 2, expected, out=np.zeros_like(expected), where=expected > 0.0)
    scatter = _sum_in_order(squares.transpose(0, 2, 1).reshape(-1, num_layers)) / token
    free = ((totals > 0.0).sum(axis=0) - 1) * ((mean > 0.0).sum(axis=1) - 1)
    return np.asarray(scatter <= free + MOST_SCATTER * np.sqrt(2.0 * np.maximum(free, 0)))


def _sum_in_order(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum over the first axis, one after the other: NumPy's own order depends on strides."""
    return np.asarray(np.add.accumulate(terms)[-1])
