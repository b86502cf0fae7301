"""Lower bounds: what no placement with an even split can beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..topology import Topology
from .groups import node_speeds, pairing_matrix, pairings
from .replicate import replicate

FloatArray = npt.NDArray[np.float64]
ROUNDING = 1e-12


def bound_arguments(
    loads: FloatArray, topology: Topology, grouped: npt.NDArray[np.bool_]
) -> dict[str, FloatArray]:
    """Why no placement of the topology can be better: lower bounds of the imbalance, by name.

    - ``mean``: the busiest rank has at least the mean. Always 1.
    - ``replica``: some rank, at best the fastest, holds the largest replica, which the counts of `replicate` make as
      small as can be, and next to it ``S - 1`` more slots, each at least as heavy as the lightest expert would be
      with all spare replicas (the cardinality of ranks).
    - ``node`` (layers whose groups have to be on nodes): some node has the largest load for its speed, minimised over
      all pairings of groups with nodes where there are at most 6,000 of them, the heaviest set of groups on the
      fastest node; its busiest rank has at least that.

    Parameters
    ----------
    loads : ``[L, E]``
    grouped : ``[L]``, whether a layer's groups have to be on nodes

    Returns
    -------
    arrays ``[L]``, each at least 0; the mean rank load is 1, and so is the mean speed of ranks
    """
    mean = loads.sum(axis=1) / topology.num_ranks
    spare = topology.num_slots - loads.shape[1]
    largest = (loads / replicate(loads, topology.num_slots)).max(axis=1)
    beside = (topology.slots_per_rank - 1) * loads.min(axis=1) / (spare + 1)
    found = {"mean": mean, "replica": (largest + beside) / max(topology.speeds)}
    if grouped.any() and pairings(topology.num_groups, topology.num_nodes) is not None:
        matrix = pairing_matrix(topology.num_groups, topology.num_nodes)
        groups = loads.reshape(len(loads), topology.num_groups, -1).sum(axis=2)
        nodes = (groups @ matrix).reshape(len(loads), -1, topology.num_nodes)
        times = np.sort(nodes, axis=2) / np.sort(node_speeds(topology))
        found["node"] = np.where(grouped, times.max(axis=2).min(axis=1), 0.0)
    return {
        name: np.divide(value, mean, out=np.ones_like(value), where=mean > 0) for name, value in found.items()
    }


def lower_bound(
    loads: FloatArray, topology: Topology, grouped: npt.NDArray[np.bool_] | None = None
) -> FloatArray:
    """The smallest imbalance that any placement with an even split could have, for the speeds of the topology.

    The largest of `bound_arguments`, rounded down by a part in 10^12 so that rounding of sums does not lift it above
    a result.

    Parameters
    ----------
    loads : ``[L, E]``
    grouped : ``[L]``, whether a layer's groups have to be on nodes; as the topology has it unless given

    Returns
    -------
    ``[L]``, at least 1
    """
    if grouped is None:
        grouped = np.full(len(loads), topology.hierarchical)
    largest = np.maximum.reduce(list(bound_arguments(loads, topology, grouped).values()))
    return np.asarray(np.maximum(1.0, largest * (1.0 - ROUNDING)))
