"""``chunked``: Chunked Sorted Greedy with perturbed candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..placement import Placement
from ..planning.hierarchical import plan_by_node
from ..planning.kernel import for_layers, kernel
from ..planning.orders import candidate_state, lpt_order, noisy_order
from ..planning.pack import pack_chunked, scatter
from ..planning.refine import collect, rank_of_members, separate_layer
from ..planning.replicate import item_weights, replicate_layer
from ..planning.scale import sum_windows
from ..topology import Topology


@kernel
def _chunked_layers(first, last, loads, num_ranks, candidates, noise, seed, phy2log):
    num_experts, num_slots = loads.shape[1], phy2log.shape[1]
    logcnt = np.empty(num_experts, np.int64)
    item_expert = np.empty(num_slots, np.int64)
    weight = np.empty(num_slots, np.int64)
    lpt = np.empty(num_slots, np.int64)
    order = np.empty(num_slots, np.int64)
    rank_of = np.empty(num_slots, np.int64)
    best_rank_of = np.empty(num_slots, np.int64)
    rank_loads = np.empty(num_ranks, np.int64)
    ranks = np.empty(num_ranks, np.int64)
    members = np.empty((num_ranks, num_slots // num_ranks), np.int64)
    for layer in range(first, last):
        replicate_layer(loads[layer], num_slots, logcnt, item_expert)
        item_weights(loads[layer], logcnt, item_expert, weight)
        lpt_order(weight, lpt)
        best = np.int64(1) << 51
        for candidate in range(candidates):
            if candidate == 0:
                order[:] = lpt
            else:
                noisy_order(candidate_state(seed, layer, candidate), weight, noise, order)
            largest = pack_chunked(order, weight, num_ranks, rank_of, rank_loads, ranks)
            if largest < best:
                best = largest
                best_rank_of[:] = rank_of
        collect(lpt, best_rank_of, weight, members, rank_loads, ranks)
        separate_layer(weight, item_expert, members, rank_loads)
        rank_of_members(members, best_rank_of)
        scatter(lpt, best_rank_of, item_expert, num_ranks, phy2log[layer], ranks)


@dataclass(frozen=True)
class Chunked:
    """Chunked Sorted Greedy: sorted items in chunks of ``P``, each chunk to the ranks from lightest to heaviest.

    The first candidate is sorted by weight, the others by weight times noise; the one with the smallest largest
    rank load is kept. Avoidable twins are parted. Windows are summed; ``current`` is not looked at.

    Parameters
    ----------
    candidates : orders tried for each layer
    noise : weights are multiplied by a number uniform in [1 - noise, 1 + noise) before sorting
    """

    candidates: int = 8
    noise: float = 0.2
    name: ClassVar[str] = "chunked"

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ArgumentError(f"candidates must be at least 1, got {self.candidates}")
        if not 0 <= self.noise < 1:
            raise ArgumentError(f"noise must be in [0, 1), got {self.noise}")

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

        def flat(sub_loads: npt.NDArray[np.int64], num_ranks: int, num_slots: int) -> npt.NDArray[np.int64]:
            phy2log = np.empty((len(sub_loads), num_slots), np.int64)
            settings = (num_ranks, self.candidates, self.noise, seed)
            for_layers(_chunked_layers, len(sub_loads), sub_loads, *settings, phy2log)
            return phy2log

        return plan_by_node(sum_windows(loads), topology, flat, exact_groups=True)
