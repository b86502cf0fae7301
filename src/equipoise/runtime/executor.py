"""Moving one layer: stage everything, vote, commit in place. Live weights are written after the vote alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from ..placement import IntArray
from .transfer import LayerTransfer
from .transport import Transport
from .weights import ExpertWeights

_log = logging.getLogger("equipoise")
Reload = Callable[[int, int, int], None]
"""Called with layer, slot on this rank, and expert: load its weights into that slot's stage"""


class Executor:
    """Moves layers of one rank's weights, in step with the other ranks.

    Parameters
    ----------
    weights : of this rank
    transport : to the others
    phy2log : ``[L, R]``, what all ranks hold; the executor keeps its own copy
    """

    def __init__(self, weights: ExpertWeights, transport: Transport, phy2log: IntArray) -> None:
        self.weights, self.transport = weights, transport
        self.phy2log = np.array(phy2log, dtype=np.int64)
        self.versions = np.zeros(len(self.phy2log), dtype=np.int64)
        """``[L]``, commits of each layer"""
        self._voted: tuple[int, IntArray, list[int]] | None = None
        self._send = torch.empty(0, dtype=torch.uint8, device=weights.device)

    def move(self, transfer: LayerTransfer, row: IntArray, reload: Reload | None = None) -> bool:
        """Bring one layer to ``row [R]``. Returns whether all ranks had staged it, and so it was committed.

        Raises `TransportError` where ranks could not talk: the layer then holds what it held, on this rank.
        """
        staged = self._stage(transfer, reload)
        slots = self._changed(transfer)
        # From here on this rank may be asked to commit: it keeps the stage until the next layer's first round.
        self._voted = (transfer.layer, np.array(row), slots) if staged else None
        if self.transport.lowest(int(staged))[0] == 0:
            self._voted = None
            return False
        self._commit(transfer.layer, row, slots)
        return True

    def roll_forward(self, versions: IntArray) -> list[int]:
        """After a failure: commit what others have committed and this rank has staged.

        Parameters
        ----------
        versions : ``[L]``, the highest among the ranks that are left

        Returns
        -------
        layers that are still behind
        """
        if self._voted is not None and versions[self._voted[0]] > self.versions[self._voted[0]]:
            layer, row, slots = self._voted
            self._commit(layer, row, slots)
        return [int(layer) for layer in np.flatnonzero(versions > self.versions)]

    def _stage(self, transfer: LayerTransfer, reload: Reload | None) -> bool:
        """Stage all slots of this rank that change; false where an expert could not be reloaded."""
        self._voted = None
        rank, layer, weights = self.transport.rank, transfer.layer, self.weights
        for number in range(transfer.num_rounds):
            out, back = transfer.sends(rank, number), transfer.receives(rank, number)
            send = receive = None
            if out is not None:
                flat = self._packed(layer, out[0])
                send = (out[1], flat)
            if back is not None:
                receive = (back[1], weights.staged(layer, back[0]))
            self.transport.exchange(send, receive)
        for _, read, slot in transfer.copies[transfer.copies[:, 0] == rank]:
            weights.pack(layer, int(read), weights.staged(layer, int(slot)))
        for _, read, slot in transfer.twins[transfer.twins[:, 0] == rank]:
            weights.staged(layer, int(slot)).copy_(weights.staged(layer, int(read)))
        return self._reload(transfer, reload)

    def _reload(self, transfer: LayerTransfer, reload: Reload | None) -> bool:
        mine = transfer.lost[transfer.lost[:, 0] == self.transport.rank]
        if len(mine) and reload is None:
            return False
        try:
            for _, slot, expert in mine:
                assert reload is not None
                reload(transfer.layer, int(slot), int(expert))
        except Exception as error:  # a file that is not there, say: all ranks keep the layer as it is
            _log.warning("equipoise could not load an expert of layer %d: %s", transfer.layer, error)
            return False
        return True

    def _packed(self, layer: int, slot: int) -> torch.Tensor:
        size = self.weights.expert_bytes(layer)
        if len(self._send) < size:
            self._send = torch.empty(size, dtype=torch.uint8, device=self.weights.device)
        flat = self._send[:size]
        self.weights.pack(layer, slot, flat)
        return flat

    def _changed(self, transfer: LayerTransfer) -> list[int]:
        rank = self.transport.rank
        tables = (
            (transfer.fetches, 3, 4),
            (transfer.copies, 0, 2),
            (transfer.twins, 0, 2),
            (transfer.lost, 0, 1),
        )
        return sorted(
            int(slot) for table, who, where in tables for slot in table[table[:, who] == rank, where]
        )

    def _commit(self, layer: int, row: IntArray, slots: list[int]) -> None:
        self.weights.commit(layer, slots)
        self.phy2log[layer] = row
        self.versions[layer] += 1
