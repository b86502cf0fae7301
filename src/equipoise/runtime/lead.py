"""Rank 0's word to the others: what came of a plan, the placement that it asks for, and which layers move first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..control.balancer import Proposal
from ..metrics import imbalance, rank_loads
from ..placement import IntArray, Placement
from ..problem import Held
from ..topology import Topology
from .pace import Answer
from .planner import kind, legal
from .transport import Transport


class Word(NamedTuple):
    """What all ranks know of a plan."""

    answer: Answer
    target: Placement | None = None
    """with `Answer.MOVE`"""
    order: tuple[int, ...] = ()
    """layers that change, those first that gain most"""


def hand_round(
    transport: Transport,
    planned: Proposal | BaseException | None,
    held: Held,
    topology: Topology,
    window: IntArray | None,
) -> Word:
    """Give all ranks what rank 0 has to say; they call it together.

    Parameters
    ----------
    planned : of rank 0, see `Planner.answer`; not read on others
    held, topology : the same on all ranks
    window : ``[L, E]``, the last one, by which rank 0 puts layers in order
    """
    header = torch.zeros(1, dtype=torch.int64)
    table = torch.zeros((held.num_layers, 1 + topology.num_slots), dtype=torch.int64)
    if transport.rank == 0:
        header[0] = kind(planned)
        placement = legal(planned)
        if placement is not None:
            table[:, 0] = torch.from_numpy(_order(held, placement, window))
            table[:, 1:] = torch.from_numpy(np.array(placement.phy2log))
    transport.broadcast(header, 0)
    answer = Answer(int(header[0]))
    if answer is not Answer.MOVE:
        return Word(answer)
    transport.broadcast(table, 0)
    phy2log = table[:, 1:].numpy()
    changed = [int(layer) for layer in table[:, 0] if (phy2log[layer] != held.phy2log[layer]).any()]
    return Word(answer, Placement(phy2log, topology.num_ranks, held.num_experts), tuple(changed))


def _order(held: Held, new: Placement, window: IntArray | None) -> IntArray:
    """Layers ``[L]``, those first that win most on the window."""
    if window is None or not held.complete:
        return np.arange(held.num_layers)
    old = Placement(held.phy2log, held.num_ranks, held.num_experts)
    gain = imbalance(rank_loads(window, old)) - imbalance(rank_loads(window, new))
    return np.argsort(-gain, kind="stable")
