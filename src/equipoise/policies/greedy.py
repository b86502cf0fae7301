"""``greedy``: the algorithm of DeepSeek EPLB (https://github.com/deepseek-ai/EPLB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..placement import Placement
from ..planning.hierarchical import plan_by_node
from ..planning.kernel import for_layers, kernel
from ..planning.orders import lpt_order
from ..planning.pack import pack_greedy, scatter
from ..planning.replicate import item_weights, replicate_layer
from ..planning.scale import sum_windows
from ..topology import Topology


@kernel
def _greedy_layers(first, last, loads, num_ranks, phy2log):
    num_experts, num_slots = loads.shape[1], phy2log.shape[1]
    logcnt = np.empty(num_experts, np.int64)
    item_expert = np.empty(num_slots, np.int64)
    weight = np.empty(num_slots, np.int64)
    order = np.empty(num_slots, np.int64)
    rank_of = np.empty(num_slots, np.int64)
    room = np.empty(num_ranks, np.int64)
    for layer in range(first, last):
        replicate_layer(loads[layer], num_slots, logcnt, item_expert)
        if num_slots == num_ranks:  # one slot a rank: nothing to balance
            phy2log[layer] = item_expert
            continue
        item_weights(loads[layer], logcnt, item_expert, weight)
        lpt_order(weight, order)
        pack_greedy(order, weight, num_ranks, np.int64(1) << 51, rank_of, room)
        scatter(order, rank_of, item_expert, num_ranks, phy2log[layer], room)


def _flat(loads: npt.NDArray[np.int64], num_ranks: int, num_slots: int) -> npt.NDArray[np.int64]:
    phy2log = np.empty((len(loads), num_slots), np.int64)
    for_layers(_greedy_layers, len(loads), loads, num_ranks, phy2log)
    return phy2log


@dataclass(frozen=True)
class Greedy:
    """DeepSeek EPLB: replicas by the Adams divisor method, heaviest first to the least loaded rank with room.

    With several nodes that divide the groups, groups go to nodes first, greedily too. Windows are summed;
    ``current`` is not looked at. Replicas of one expert may come to share a rank, as in the original.
    """

    name: ClassVar[str] = "greedy"

    def place(
        self,
        loads: npt.NDArray[np.float64],
        topology: Topology,
        *,
        current: Placement | None = None,
        max_moves: int | float | None = None,
        seed: int = 0,
    ) -> npt.NDArray[np.int64]:
        """See `equipoise.Policy`."""
        return plan_by_node(sum_windows(loads), topology, _flat, exact_groups=False)
