"""Placements from nothing: one window or several, by whatever form the layers are searched in."""

from __future__ import annotations

import numpy as np

from ..planning.scale import sum_windows
from ..planning.windows import steady_layers, to_vectors
from ..topology import Topology
from .layers import SMALL_LAYER, Limits, plan_fresh, settle
from .single import plan_single
from .state import FloatArray, IntArray
from .sublayers import Form, Sublayers

# With so few slots a rank, a plan that heeds each of several windows of few tokens fits their chance.
# benchmarks/bench_few_tokens.py.
SUMMED_SLOTS = 3
# From nothing, later steps fit the windows and not the traffic: on recorded loads they gain nothing held-out
# (benchmarks/bench_robust.py, held-out).
LEAST_STEPS = 64
STEPS_A_RANK = 3


def place_fresh(
    windows: FloatArray, topology: Topology, form: Form, max_steps: int, least: float
) -> IntArray:
    """A placement from nothing.

    Parameters
    ----------
    windows : ``[W, L, E]``
    max_steps : swaps and exchanges for a layer
    least : what a move must take off a layer's imbalance to be made at once

    Returns
    -------
    ``phy2log [L, R]``
    """
    sublayers = Sublayers.fresh(planned_vectors(windows, topology), topology, form)
    alike = sublayers.alike
    if alike.all():
        return sublayers.leave(_one_window(sublayers, max_steps, least))
    phy2log = np.empty((len(alike), sublayers.num_slots), np.int64)
    one, several = np.flatnonzero(alike), np.flatnonzero(~alike)
    if one.size:
        phy2log[one] = _one_window(sublayers.rows(one), max_steps, least)
    phy2log[several] = _all_windows(sublayers.rows(several), max_steps, least)
    return sublayers.leave(phy2log)


def planned_vectors(windows: FloatArray, topology: Topology) -> FloatArray:
    """The vectors ``[L, W, E]`` to plan from: with few slots a rank, mere samples are summed (`steady_layers`)."""
    vectors = to_vectors(windows, topology.num_ranks)
    if topology.slots_per_rank <= SUMMED_SLOTS:
        steady = np.flatnonzero(steady_layers(windows, vectors))
        if steady.size:
            vectors[steady] = to_vectors(sum_windows(windows[:, steady])[None], topology.num_ranks)
    return vectors


def _one_window(sublayers: Sublayers, max_steps: int, least: float) -> IntArray:
    """Placements ``[B, R]`` for windows that are all alike."""
    phy2log, unsettled = plan_single(sublayers.layers, sublayers.num_slots, max_steps, least)
    rows = np.flatnonzero(unsettled)
    if rows.size == len(phy2log):
        _settle(sublayers, phy2log, max_steps, least)
    elif rows.size:
        phy2log[rows] = _settle(sublayers.rows(rows), phy2log[rows], max_steps, least)
    return phy2log


def _all_windows(sublayers: Sublayers, max_steps: int, least: float) -> IntArray:
    """Placements ``[B, R]`` for all windows."""
    num_ranks = sublayers.layers.num_ranks
    steps = min(max_steps, max(LEAST_STEPS, STEPS_A_RANK * num_ranks))
    phy2log = plan_fresh(sublayers.layers, sublayers.demand, sublayers.num_slots, steps)
    if sublayers.num_slots <= SMALL_LAYER:
        # The counts that were kept may be drawn ones, and the second trail of a search from here wants others.
        _settle(sublayers, phy2log, max_steps, least)
    return phy2log


def _settle(sublayers: Sublayers, phy2log: IntArray, max_steps: int, least: float) -> IntArray:
    """Make all moves that would earn their gain if ``phy2log [B, R]``, which is changed, were the current plan."""
    settle(
        sublayers.layers, sublayers.demand, phy2log, Limits(max_steps, sublayers.topology.num_slots, least)
    )
    return phy2log
