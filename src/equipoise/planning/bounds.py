"""Lower bounds: what no placement with an even split can beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..topology import Topology
from .groups import pairing_matrix, pairings
from .replicate import replicate

FloatArray = npt.NDArray[np.float64]


def bound_arguments(loads: FloatArray, topology: Topology) -> dict[str, FloatArray]:
    """Why no placement of the topology can be better: lower bounds of the imbalance, by name.

    - ``mean``: the busiest rank has at least the mean. Always 1.
    - ``replica``: some rank holds the largest replica, which the counts of `replicate` make as small as can be,
      and next to it ``S - 1`` more slots, each at least as heavy as the lightest expert would be with all spare
      replicas (the cardinality of ranks).
    - ``node`` (hierarchical topologies): some node has the largest node load, minimised over all pairings of
      groups with nodes where there are at most 6,000 of them, and its busiest rank at least that node's mean.

    Parameters
    ----------
    loads : ``[L, E]``

    Returns
    -------
    arrays ``[L]``, each at least 0; the mean rank load is 1
    """
    mean = loads.sum(axis=1) / topology.num_ranks
    spare = topology.num_slots - loads.shape[1]
    largest = (loads / replicate(loads, topology.num_slots)).max(axis=1)
    beside = (topology.slots_per_rank - 1) * loads.min(axis=1) / (spare + 1)
    found = {"mean": mean, "replica": largest + beside}
    if topology.hierarchical and pairings(topology.num_groups, topology.num_nodes) is not None:
        matrix = pairing_matrix(topology.num_groups, topology.num_nodes)
        groups = loads.reshape(len(loads), topology.num_groups, -1).sum(axis=2)
        nodes = (groups @ matrix).reshape(len(loads), -1, topology.num_nodes)
        found["node"] = nodes.max(axis=2).min(axis=1) / topology.ranks_per_node
    return {
        name: np.divide(value, mean, out=np.ones_like(value), where=mean > 0) for name, value in found.items()
    }


def lower_bound(loads: FloatArray, topology: Topology) -> FloatArray:
    """The smallest imbalance ``max_p g / mean_p g`` that any placement with an even split could have.

    The largest of `bound_arguments`.

    Parameters
    ----------
    loads : ``[L, E]``

    Returns
    -------
    ``[L]``, at least 1
    """
    return np.asarray(np.maximum.reduce(list(bound_arguments(loads, topology).values())))
