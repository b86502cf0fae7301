"""Lower bounds: what no placement with an even split can beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..topology import Topology
from .hierarchical import pairing_matrix, pairings
from .replicate import replicate


def lower_bound(loads: npt.NDArray[np.float64], topology: Topology) -> npt.NDArray[np.float64]:
    """The smallest imbalance ``max_p g / mean_p g`` that any placement of the topology could have.

    The largest of these arguments, each over the mean rank load:

    - mean: the busiest rank has at least the mean;
    - replica: some rank holds the largest replica, and the counts of `replicate` minimise that;
    - node (hierarchical topologies): some node has the largest node load, minimised over all pairings of groups
      with nodes where there are at most 6,000 of them, and its busiest rank at least that node's mean.

    Parameters
    ----------
    loads : ``[L, E]``

    Returns
    -------
    ``[L]``, at least 1
    """
    mean = loads.sum(axis=1) / topology.num_ranks
    bound = np.maximum(mean, (loads / replicate(loads, topology.num_slots)).max(axis=1))
    if topology.hierarchical and pairings(topology.num_groups, topology.num_nodes) is not None:
        matrix = pairing_matrix(topology.num_groups, topology.num_nodes)
        groups = loads.reshape(len(loads), topology.num_groups, -1).sum(axis=2)
        nodes = (groups @ matrix).reshape(len(loads), -1, topology.num_nodes)
        bound = np.maximum(bound, nodes.max(axis=2).min(axis=1) / topology.ranks_per_node)
    return np.asarray(np.divide(bound, mean, out=np.ones_like(bound), where=mean > 0))
