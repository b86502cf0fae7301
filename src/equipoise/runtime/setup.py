"""What a runtime is set up with: parts that have to fit together, and numbers that have to be alike on all ranks."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from ..control.balancer import Balancer
from ..errors import ArgumentError
from ..placement import IntArray
from ..topology import Topology
from .counter import LoadCounter
from .maps import LiveMaps
from .pace import Pace
from .transport import Transport
from .weights import ExpertWeights


@dataclass(frozen=True, eq=False)
class Setup:
    """Of one rank, for as long as it lives; ranks and topology may change.

    Parameters
    ----------
    weights, maps, pace, counter : see `equipoise.runtime.LiveBalancer`
    """

    weights: ExpertWeights
    maps: LiveMaps
    pace: Pace
    counter: LoadCounter

    def check(self, topology: Topology, transport: Transport) -> None:
        """Raise `ArgumentError` unless ranks, slots and experts of these fit the weights and maps."""
        topology.check_experts(self.maps.logcnt.shape[1])
        wanted = (transport.num_ranks, self.weights.slots_per_rank)
        found = (topology.num_ranks, topology.slots_per_rank)
        if found != wanted:
            raise ArgumentError(
                f"the topology has (ranks, slots a rank) = {found}, the group and weights {wanted}"
            )
        if topology.num_slots > self.maps.phy2log.shape[1]:
            raise ArgumentError(
                f"the topology has {topology.num_slots} slots, room was made for {self.maps.phy2log.shape[1]}: "
                "max_ranks= says how many ranks there can be"
            )

    def numbers(self, topology: Topology) -> IntArray:
        """What steers transfers besides the maps, and what is counted.

        A rank with other nodes would wait for another sender.
        """
        sizes = [*self.maps.log2phy.shape, topology.slots_per_rank, *topology.nodes]
        layout = np.frombuffer(self.weights.layout.encode(), np.uint8)
        return np.append(np.array([*astuple(self.pace), *sizes, *self.counter.settings]), layout)


def check_parts(balancer: Balancer, weights: ExpertWeights, unit: str) -> None:
    """Raise `ArgumentError` unless a runtime can drive this balancer over these weights, with counts of ``unit``."""
    if balancer.forecast == "phase-mix":
        raise ArgumentError("the forecast phase-mix needs phases, which a runtime does not know: use another")
    if unit != "tokens" and balancer.cost is not None:
        raise ArgumentError(
            "the cost model is one of tokens: leave out unit='batches', or the balancer's cost"
        )
    if weights.num_layers != balancer.num_layers:
        raise ArgumentError(f"weights have {weights.num_layers} layers, the balancer {balancer.num_layers}")
