"""Placements made for token shares that are fixed: experts cut so that every rank can carry the mean."""

from __future__ import annotations

import numpy as np

from ..metrics import imbalance, rank_loads
from ..placement import Placement
from ..planning.scale import to_integers
from ..planning.shares import split_windows
from ..planning.windows import to_vectors
from ..planning.wrap import wrap_layer
from ..topology import Topology
from .fresh import place_fresh
from .state import FloatArray, IntArray
from .sublayers import WHOLE

SMALLEST_GAIN = 1e-6  # in imbalance: shares are fitted to about this


def place_for_shares(windows: FloatArray, topology: Topology, max_steps: int, least: float) -> IntArray:
    """The plan for an even split, or in each layer the cut one where that is better under its best shares.

    Parameters
    ----------
    windows : ``[W, L, E]``
    max_steps, least : see `place_fresh`

    Returns
    -------
    ``phy2log [L, R]``
    """
    ranks = topology.num_ranks
    vectors = to_vectors(windows, ranks)
    result = place_fresh(windows, topology, WHOLE, max_steps, least)
    cut = result.copy()
    for layer, loads in enumerate(to_integers(vectors.sum(axis=1))):
        row = wrap_layer(loads, ranks, topology.slots_per_rank)
        if row is not None:
            cut[layer] = row
    now = _under_best_shares(vectors, result, ranks)
    better = _under_best_shares(vectors, cut, ranks) < now - SMALLEST_GAIN
    result[better] = cut[better]
    return result


def _under_best_shares(vectors: FloatArray, phy2log: IntArray, num_ranks: int) -> FloatArray:
    """Imbalance per layer under the best shares, mean over windows: ``[L]``."""
    shares = split_windows(vectors, phy2log, num_ranks)
    placement = Placement(phy2log, num_ranks, vectors.shape[2])
    loads = rank_loads(vectors.transpose(1, 0, 2), placement, shares)
    return np.asarray(imbalance(loads).mean(axis=0))
