"""Placements from nothing: one window or several, by whatever form the layers are searched in."""

from __future__ import annotations

import numpy as np

from ..placement import BoolArray
from ..planning.scale import to_integers
from ..planning.windows import average_steady, to_vectors
from ..topology import Topology
from .budget import choose
from .layers import SMALL_LAYER, Limits, plan_fresh, search_from
from .single import plan_single
from .state import FloatArray, IntArray
from .sublayers import WHOLE, Form, Sublayers

MOST_ROUNDS = 8  # of settling a layer; later ones find nothing: benchmarks/bench_robust.py, in-sample
# With so few slots a rank, a plan that heeds each of several windows of few tokens fits their chance.
# benchmarks/bench_robust.py, held-out.
AVERAGED_SLOTS = 2
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
    if len(windows) == 1 and form == WHOLE:
        # Vectors are made of the layers alone that `_settle` may improve.
        phy2log, imbalances = _one_window(
            to_integers(windows[0]), topology.num_ranks, topology.num_slots, max_steps
        )
        rows = _unsettled(imbalances - 1.0, topology.num_ranks, least)
        # To search a small layer takes no longer than to ask.
        if rows.size and topology.num_slots > SMALL_LAYER:
            rows = rows[_may_gain(windows[0, rows], phy2log[rows], topology.num_ranks, least)]
        if rows.size:
            layers = Sublayers.whole(to_vectors(windows[:, rows], topology.num_ranks), topology)
            phy2log[rows] = _settle(layers, phy2log[rows], np.arange(rows.size), max_steps, least)
        return phy2log
    sublayers = Sublayers.fresh(planned_vectors(windows, topology), topology, form)
    vectors = sublayers.layers.vectors
    alike = (vectors == vectors[:, :1]).all(axis=(1, 2)) & sublayers.free
    phy2log = np.empty((len(vectors), sublayers.num_slots), np.int64)
    one, several = np.flatnonzero(alike), np.flatnonzero(~alike)
    if one.size:
        phy2log[one] = _settled_window(sublayers.rows(one), max_steps, least)
    if several.size:
        phy2log[several] = _all_windows(sublayers.rows(several), max_steps, least)
    return sublayers.leave(phy2log)


def planned_vectors(windows: FloatArray, topology: Topology) -> FloatArray:
    """The vectors ``[L, W, E]`` to plan from: with few slots a rank, mere samples are averaged (`average_steady`)."""
    vectors = to_vectors(windows, topology.num_ranks)
    return average_steady(vectors) if topology.slots_per_rank <= AVERAGED_SLOTS else vectors


def _settled_window(sublayers: Sublayers, max_steps: int, least: float) -> IntArray:
    """Placements ``[B, R]`` for the first window alone."""
    vectors, num_ranks = sublayers.layers.vectors, sublayers.layers.num_ranks
    phy2log, imbalances = _one_window(to_integers(vectors[:, 0]), num_ranks, sublayers.num_slots, max_steps)
    means = vectors[:, 0].sum(axis=1) / num_ranks
    rows = _unsettled((imbalances - 1.0) * means, sublayers.topology.num_ranks, least)
    return _settle(sublayers, phy2log, rows, max_steps, least)


def _all_windows(sublayers: Sublayers, max_steps: int, least: float) -> IntArray:
    """Placements ``[B, R]`` for all windows."""
    num_ranks = sublayers.layers.num_ranks
    steps = min(max_steps, max(LEAST_STEPS, STEPS_A_RANK * num_ranks))
    phy2log = plan_fresh(sublayers.layers, sublayers.demand, sublayers.num_slots, steps)
    if sublayers.num_slots <= SMALL_LAYER:
        # The counts that were kept may be drawn ones, and the second trail of a search from here wants others.
        phy2log = _settle(sublayers, phy2log, np.arange(len(phy2log)), max_steps, least)
    return phy2log


def _one_window(
    integers: IntArray, num_ranks: int, num_slots: int, max_steps: int
) -> tuple[IntArray, FloatArray]:
    """Placements ``[B, R]`` of integer loads ``[B, E]``, and their imbalance ``[B]``."""
    phy2log, largest = plan_single(integers, num_ranks, num_slots, max_steps)
    return phy2log, largest * num_ranks / np.maximum(integers.sum(axis=1), 1)


def _unsettled(above: FloatArray, num_ranks: int, least: float) -> IntArray:
    """Layers where a fetch may gain ``least``: one window, ``above [B]`` the mean on the busiest rank."""
    # The 4-norm of what ranks have above the mean bounds what there is to gain (`soft_largest`).
    return np.flatnonzero(above * num_ranks**0.25 > least)


def _may_gain(loads: FloatArray, phy2log: IntArray, num_ranks: int, least: float) -> BoolArray:
    """Layers ``[B]`` where fetches may gain ``least`` each: one window, ``loads [B, E]``.

    A swap lowers one rank above the mean for each two fetches, and one more replica lowers those that hold the
    expert; so ``k`` fetches lower no more than ``k`` times as many ranks as one expert may have replicas on. Let them
    take the highest ranks down to the mean: what `soft_largest` loses by that must be worth ``k`` fetches.
    """
    experts = phy2log + np.arange(len(loads))[:, None] * loads.shape[1]
    counts = np.bincount(experts.ravel(), minlength=loads.size).reshape(loads.shape)
    on_rank = (loads / counts).ravel()[experts].reshape(len(loads), num_ranks, -1).sum(axis=2)
    means = np.maximum(on_rank.mean(axis=1, keepdims=True), np.finfo(float).tiny)
    fourths = np.sort(np.maximum(on_rank / means - 1.0, 0.0) ** 4, axis=1)
    left = np.cumsum(fourths, axis=1) ** 0.25  # [B, P]: once all but the lowest p + 1 are down
    lowered = np.minimum(np.arange(1, num_ranks + 1) * counts.max(axis=1, keepdims=True), num_ranks)
    after = np.where(lowered < num_ranks, np.take_along_axis(left, num_ranks - 1 - lowered, axis=1), 0.0)
    gains = left[:, -1:] - after
    return np.asarray((gains > least * np.arange(1, num_ranks + 1)).any(axis=1), dtype=np.bool_)


def _settle(
    sublayers: Sublayers, phy2log: IntArray, rows: IntArray, max_steps: int, least: float
) -> IntArray:
    """Moves that would earn their gain if this plan were the current one are made at once.

    Parameters
    ----------
    phy2log : ``[B, R]``, changed in place
    rows : numbers of the layers to settle
    """
    limits = Limits(max_steps, sublayers.topology.num_slots, least)
    for _ in range(MOST_ROUNDS):
        if not rows.size:
            break
        open_rows = sublayers if rows.size == len(phy2log) else sublayers.rows(rows)
        trails = search_from(open_rows.layers, open_rows.demand, phy2log[rows], limits)
        picks = choose(trails.options(by_largest=False), None, least)
        phy2log[rows] = trails.follow(picks)
        rows = rows[np.array(picks) > 0]
    return phy2log
