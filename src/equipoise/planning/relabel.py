"""Names for ranks and slots: permute a placement so that as much as possible stays where it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..topology import Topology
from .kernel import for_layers, kernel


def relabel(
    phy2log: npt.NDArray[np.int64], current: npt.NDArray[np.int64], topology: Topology, num_experts: int
) -> npt.NDArray[np.int64]:
    """The same placement with its ranks named so that the fewest (rank, expert) pairs are fetched.

    With one node this is one assignment problem a layer, solved exactly. With more, contents of nodes stay
    together: ranks are assigned for every pair of old and new node, then nodes by what those assignments keep,
    which is exact too. Experts that stay on a rank keep their slot. Only ranks of one speed trade names.

    Parameters
    ----------
    phy2log : ``[L, R]``
    current : ``[L, R]``, -1 where a slot is empty

    Returns
    -------
    ``[L, R]``
    """
    from scipy.optimize import linear_sum_assignment

    num_layers = len(phy2log)
    ranks, nodes, per_node = topology.num_ranks, topology.num_nodes, topology.ranks_per_node
    new, old = (_held(p, ranks, num_experts) for p in (phy2log, current))
    speed = np.array(topology.speeds)
    barred = (speed[:, None] != speed) * np.float32(
        phy2log.shape[1] + 1
    )  # costs more than all that can be kept
    result = np.empty_like(phy2log)
    for layer in range(num_layers):
        kept = old[layer] @ new[layer].T - barred  # [old rank, new rank]
        pairs = kept.reshape(nodes, per_node, nodes, per_node).transpose(0, 2, 1, 3)
        inner = [
            [linear_sum_assignment(pairs[i, j], maximize=True)[1] for j in range(nodes)] for i in range(nodes)
        ]
        worth = [
            [pairs[i, j][np.arange(per_node), inner[i][j]].sum() for j in range(nodes)] for i in range(nodes)
        ]
        _, node_of = linear_sum_assignment(np.array(worth), maximize=True)
        source = np.concatenate([node_of[i] * per_node + inner[i][node_of[i]] for i in range(nodes)])
        result[layer] = phy2log[layer].reshape(ranks, -1)[source].ravel()
    return keep_slots(result, current, ranks)


def _held(phy2log: npt.NDArray[np.int64], num_ranks: int, num_experts: int) -> npt.NDArray[np.float32]:
    table = np.zeros((len(phy2log), num_ranks, num_experts + 1), np.float32)
    rank = np.arange(phy2log.shape[1]) // (phy2log.shape[1] // num_ranks)
    table[np.arange(len(phy2log))[:, None], rank[None, :], phy2log] = 1.0
    return table[:, :, :num_experts]  # empty slots, -1, fell into the last column


@kernel
def _keep_layers(first, last, phy2log, current, slots, result):
    """Layers ``first`` to ``last`` with experts that stay in their slots.

    ``phy2log [L, R]``: the placement. ``current [L, R]``: what slots hold. ``slots``: of a rank. ``result [L, R]`` is
    written.
    """
    taken = np.empty(slots, np.bool_)
    for layer in range(first, last):
        for start in range(0, phy2log.shape[1], slots):
            taken[:] = False
            for s in range(start, start + slots):
                result[layer, s] = -1
                for t in range(start, start + slots):
                    if not taken[t - start] and phy2log[layer, t] == current[layer, s]:
                        result[layer, s] = current[layer, s]
                        taken[t - start] = True
                        break
            t = start
            for s in range(start, start + slots):
                if result[layer, s] >= 0:
                    continue
                while taken[t - start]:
                    t += 1
                result[layer, s] = phy2log[layer, t]
                t += 1


def keep_slots(
    phy2log: npt.NDArray[np.int64], current: npt.NDArray[np.int64], num_ranks: int
) -> npt.NDArray[np.int64]:
    """The same placement with every rank's slots ordered so that experts that stay keep their slot."""
    result = np.empty_like(phy2log)
    slots = phy2log.shape[1] // num_ranks
    for_layers(_keep_layers, len(phy2log), phy2log, current, slots, result)
    return result
