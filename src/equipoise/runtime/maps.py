"""The maps that routers read on the device: as wide as they can ever be, and always at the same address."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import ArgumentError
from ..placement import IntArray


class LiveMaps:
    """What slots hold, as tensors that graphs may capture. Layers change one by one, between forward passes.

    Parameters
    ----------
    num_layers, num_experts : ``L`` and ``E``
    max_slots : most slots ``R`` that there will be; with fewer the rest of each row is empty
    device : where the router reads them

    Attributes
    ----------
    phy2log : ``[L, max_slots]`` int64, expert of each slot, -1 for none
    log2phy : ``[L, E, max_slots - E + 1]`` int64, slots of each expert ascending, padded with -1
    logcnt : ``[L, E]`` int64, replicas of each expert; 0 for one that is lost

    Examples
    --------
    >>> maps = LiveMaps(1, 3, max_slots=4)
    >>> maps.commit(0, np.array([2, 0, 1, 2]))
    >>> maps.log2phy.tolist(), maps.logcnt.tolist()
    ([[[1, -1], [2, -1], [0, 3]]], [[1, 1, 2]])
    """

    def __init__(
        self, num_layers: int, num_experts: int, max_slots: int, device: torch.device | str = "cpu"
    ) -> None:
        if max_slots < num_experts:
            raise ArgumentError(f"max_slots={max_slots} are fewer than {num_experts} experts")
        width = max_slots - num_experts + 1
        self.phy2log = torch.full((num_layers, max_slots), -1, dtype=torch.int64, device=device)
        self.log2phy = torch.full((num_layers, num_experts, width), -1, dtype=torch.int64, device=device)
        self.logcnt = torch.zeros((num_layers, num_experts), dtype=torch.int64, device=device)

    def commit(self, layer: int, row: IntArray) -> None:
        """Show one layer's slots ``row [R]``, -1 for an empty one.

        Raises
        ------
        ArgumentError
            if the row has more slots, or an expert more replicas, than there is room for; nothing changes then
        """
        _, num_experts, width = self.log2phy.shape
        phy2log = np.full(self.phy2log.shape[1], -1, np.int64)
        if len(row) > len(phy2log):
            raise ArgumentError(f"{len(row)} slots are more than max_slots={len(phy2log)}")
        phy2log[: len(row)] = row
        slots = np.flatnonzero(phy2log >= 0)
        slots = slots[np.argsort(phy2log[slots], kind="stable")]
        logcnt = np.bincount(phy2log[slots], minlength=num_experts)
        if len(logcnt) > num_experts or logcnt.max() > width:
            raise ArgumentError(f"an expert has {logcnt.max()} replicas, room is for {width}")
        nth = np.arange(len(slots)) - np.repeat(np.cumsum(logcnt) - logcnt, logcnt)
        log2phy = np.full((num_experts, width), -1, np.int64)
        log2phy[phy2log[slots], nth] = slots
        for tensor, array in ((self.phy2log, phy2log), (self.log2phy, log2phy), (self.logcnt, logcnt)):
            tensor[layer].copy_(torch.from_numpy(array))
