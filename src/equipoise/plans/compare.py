"""Placements that exist, side by side: how they hold on loads, and what it takes to go from one to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import Balance, balance, imbalance
from ..placement import Placement
from ..routes import PairCounts, Routes
from ..topology import Topology
from ..trace import LoadTrace
from .activated import Activated, ExpectedActivated, known_activated
from .communication import Communication, Together, where_tokens_go
from .served import served_loads


@dataclass(frozen=True)
class Scored:
    """One placement on the loads, served with the split that it was made for."""

    name: str
    placement: Placement
    balance: Balance
    """over the windows"""
    summed: float
    """mean imbalance of the windows added up, which is what a plan's report calls in-sample"""
    communication: Communication | Together | None = None
    """where tokens go, as far as routes tell"""
    activated: Activated | ExpectedActivated | None = None
    """activated experts on the busiest rank, as far as single batches or the loads tell"""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found; placements come in the order given."""

    scored: tuple[Scored, ...]
    moves: npt.NDArray[np.int64]
    """fetches over all layers from placement ``i`` to placement ``j``, ``[K, K]``; -1 where their ranks differ"""

    @property
    def best(self) -> Scored:
        """The one whose mean imbalance over windows is lowest; of equals the first."""
        return min(self.scored, key=lambda one: one.balance.mean_imbalance)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; a number of moves that there is not is None."""
        return {
            "placements": [
                {
                    "name": one.name,
                    "num_ranks": one.placement.num_ranks,
                    "slots_per_rank": one.placement.slots_per_rank,
                    "split": one.placement.split,
                    **one.balance.as_dict(),
                    "mean_imbalance_summed": one.summed,
                    "twins": int(one.placement.twins.sum()),
                    "communication": None if one.communication is None else one.communication.as_dict(),
                    "activated": None if one.activated is None else one.activated.as_dict(),
                }
                for one in self.scored
            ],
            "best": self.best.name,
            "moves": [[None if moves < 0 else int(moves) for moves in row] for row in self.moves],
        }


def compare(
    placements: Mapping[str, Placement],
    trace: LoadTrace,
    *,
    routes: Routes | PairCounts | None = None,
    num_nodes: int = 1,
    batches: LoadTrace | None = None,
) -> Comparison:
    """Score placements on the windows of a trace, with the moves between them.

    Parameters
    ----------
    placements : by name, each of the trace's layers and experts; they may have different ranks and slots
    trace : the loads, ``T`` windows
    routes : token routes or pair counts, where known: each placement is then also scored by where tokens go
    num_nodes : servers that the ranks are on, for routes
    batches : single batches (windows of one step), where known: each placement is then also scored by the experts
        that they activate on the busiest rank

    Raises
    ------
    ArgumentError
        if a placement does not fit the loads
    """
    total = trace.total().astype(np.float64)[None]
    return Comparison(
        tuple(
            Scored(
                name,
                placement,
                balance(served_loads(trace.counts, placement)),
                float(imbalance(served_loads(total, placement)).mean()),
                where_tokens_go(
                    routes, placement, Topology(placement.num_ranks, placement.slots_per_rank, num_nodes)
                ),
                known_activated(trace, batches, placement),
            )
            for name, placement in placements.items()
        ),
        np.array([[_moves(old, new) for new in placements.values()] for old in placements.values()]),
    )


def _moves(old: Placement, new: Placement) -> int:
    return int(new.moves_from(old).sum()) if old.num_ranks == new.num_ranks else -1
