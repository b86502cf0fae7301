"""Counts pairs of experts that the same token chose, where the model runs, on a sample of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError


class PairSample:
    """How often two experts were chosen by the same token, counted on one token of ``every``.

    The first token of a batch that is counted moves on by one with each pass, so that ``every`` passes in a row count
    each place of a batch once. Like `LoadCounter` it makes no trip to the host, and a pass is counted aside until it
    ends. The tables take ``12 * L * E * E`` bytes. A pass has fewer than 2**24 tokens.

    Parameters
    ----------
    num_layers, num_experts : ``L`` and ``E``
    every : counts one token of so many
    device : where the choices are

    Raises
    ------
    ArgumentError
        if ``every`` is not an integer from 1 to 2**31 - 1
    """

    def __init__(self, num_layers: int, num_experts: int, every: int, device: torch.device | str) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or not 1 <= every < 1 << 31:
            raise ArgumentError(f"pairs_every must be an integer from 1 to 2**31 - 1, got {every!r}")
        self.every = every
        shape = (num_layers, num_experts, num_experts)
        # Floats, for products of matrices: whole numbers below 2**24 and 2**53 are exact in them.
        self._pass = torch.zeros(shape, dtype=torch.float32, device=device)
        self._window = torch.zeros(shape, dtype=torch.float64, device=device)
        self._first = torch.zeros(1, dtype=torch.int64, device=device)

    def add(self, layer: int, column: Tensor) -> None:
        """Count the choices ``[N, k]`` of one layer, int64 from 0 to E + 1; 0 and E + 1 are no experts."""
        place = torch.arange(0, len(column), self.every, device=column.device) + self._first
        rows = column.index_select(0, place.clamp(max=len(column) - 1))
        there = (place < len(column)).to(self._pass.dtype)  # as many rows, whatever is the first
        hit = self._pass.new_zeros(len(rows), self._pass.shape[1] + 2)
        hit.scatter_(1, rows, there[:, None].expand(rows.shape))
        hit = hit[:, 1:-1]
        self._pass[layer].addmm_(hit.T, hit)

    def end_pass(self, record: bool) -> None:
        """End a forward pass; without ``record`` it leaves no trace."""
        if record:
            self._window += self._pass
            self._first.add_(1).remainder_(self.every)
        self._pass.zero_()

    def take(self) -> Tensor:
        """The counts so far ``[L, E, E]`` int64 on the CPU, and begin anew. This waits for the device."""
        found = self._window.to("cpu", torch.int64)
        self._window.zero_()
        return found
