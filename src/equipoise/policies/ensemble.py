"""``ensemble``: the Hybrid Ensemble of candidate orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..placement import Placement
from ..planning.hierarchical import plan_by_node
from ..planning.kernel import for_layers, kernel
from ..planning.orders import candidate_order, candidate_state, lpt_order
from ..planning.pack import pack_greedy, scatter
from ..planning.refine import collect, rank_of_members, refine_layer, separate_layer
from ..planning.replicate import item_weights, replicate_layer
from ..planning.scale import sum_windows
from ..topology import Topology


@kernel
def _ensemble_layers(first, last, loads, num_ranks, kinds, noise, max_swaps, seed, phy2log):
    num_experts, num_slots = loads.shape[1], phy2log.shape[1]
    logcnt = np.empty(num_experts, np.int64)
    item_expert = np.empty(num_slots, np.int64)
    weight = np.empty(num_slots, np.int64)
    lpt = np.empty(num_slots, np.int64)
    order = np.empty(num_slots, np.int64)
    rank_of = np.empty(num_slots, np.int64)
    best_rank_of = np.empty(num_slots, np.int64)
    keys = np.empty(num_ranks, np.int64)
    room = np.empty(num_ranks, np.int64)
    members = np.empty((num_ranks, num_slots // num_ranks), np.int64)
    for layer in range(first, last):
        replicate_layer(loads[layer], num_slots, logcnt, item_expert)
        item_weights(loads[layer], logcnt, item_expert, weight)
        lpt_order(weight, lpt)
        best = np.int64(1) << 51
        for candidate in range(kinds.size):
            state = candidate_state(seed, layer, candidate)
            candidate_order(kinds[candidate], state, weight, lpt, noise, order)
            # A candidate that reaches the best so far cannot win: equals go to the earlier one.
            largest = pack_greedy(order, weight, num_ranks, best, rank_of, room)
            if largest < best:
                best = largest
                best_rank_of[:] = rank_of
        collect(lpt, best_rank_of, weight, members, keys, room)
        separate_layer(weight, item_expert, members, keys)
        refine_layer(weight, item_expert, max_swaps, members, keys)
        rank_of_members(members, best_rank_of)
        scatter(lpt, best_rank_of, item_expert, num_ranks, phy2log[layer], room)


@dataclass(frozen=True)
class Ensemble:
    """The Hybrid Ensemble: many candidate orders a layer, greedy packing of all, the best one refined by swaps.

    Windows are summed; ``current`` is not looked at. Avoidable twins are parted. On a CUDA tensor (through
    `equipoise.rebalance_experts`) everything runs on the device, batched over layers and candidates, with the
    same result.

    Parameters
    ----------
    lpt, interleaved, random, noisy : candidates of each kind for a layer (of the first two at most 1)
    noise : weights are multiplied by a number uniform in [1 - noise, 1 + noise) before sorting
    max_swaps : refinement swaps for a layer
    """

    lpt: int = 1
    interleaved: int = 1
    random: int = 16
    noisy: int = 46
    noise: float = 0.2
    max_swaps: int = 20
    name: ClassVar[str] = "ensemble"

    def __post_init__(self) -> None:
        for kind in ("lpt", "interleaved", "random", "noisy", "max_swaps"):
            if getattr(self, kind) < 0:
                raise ArgumentError(f"{kind} must not be negative, got {getattr(self, kind)}")
        if self.lpt > 1 or self.interleaved > 1:
            raise ArgumentError("there is one LPT and one interleaved order: lpt and interleaved are 0 or 1")
        if not self.kinds.size:
            raise ArgumentError(
                "lpt, interleaved, random and noisy are all 0: at least one candidate is needed"
            )
        if not 0 <= self.noise < 1:
            raise ArgumentError(f"noise must be in [0, 1), got {self.noise}")

    @property
    def kinds(self) -> npt.NDArray[np.int64]:
        """The kind of each candidate, as `candidate_order` numbers them."""
        return np.repeat(np.arange(4), [self.lpt, self.interleaved, self.random, self.noisy])

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
            settings = (num_ranks, self.kinds, self.noise, self.max_swaps, seed)
            for_layers(_ensemble_layers, len(sub_loads), sub_loads, *settings, phy2log)
            return phy2log

        return plan_by_node(sum_windows(loads), topology, flat, exact_groups=True)

    def place_tensor(self, loads: Any, topology: Topology, *, seed: int = 0) -> Any:
        """The same plan for a torch tensor ``[W, L, E]``, computed on the tensor's device: ``[L, R]``."""
        from ..planning.torch_backend import plan_ensemble, sum_windows

        settings = (self.kinds.tolist(), self.noise, self.max_swaps, seed)
        return plan_ensemble(sum_windows(loads), topology, *settings)
