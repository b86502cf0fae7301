"""Counts pairs of experts that the same token chose, where the model runs, on a sample of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError


class PairSample:
    """How often two experts were chosen by the same token, counted on one token of ``every``.

    The first token of a batch that is counted moves on by one with each pass, so that ``every`` passes in a row count
    each place of a batch once. Like `LoadCounter` it makes no trip to the host, and a pass is counted aside until it
    ends. The tables take ``12 * L * (E * E + 1)`` bytes.

    Parameters
    ----------
    num_layers, num_experts : ``L`` and ``E``
    every : counts one token of so many
    device : where the choices are

    Raises
    ------
    ArgumentError
        if ``every`` is not a positive integer
    """

    def __init__(self, num_layers: int, num_experts: int, every: int, device: torch.device | str) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ArgumentError(f"pairs_every must be a positive integer, got {every!r}")
        self.every, self._num_experts = every, num_experts
        cells = num_experts * num_experts
        # The last column takes what does not count. No pass has 2**31 tokens.
        self._pass = torch.zeros(num_layers, cells + 1, dtype=torch.int32, device=device)
        self._window = torch.zeros(num_layers, cells + 1, dtype=torch.int64, device=device)
        self._first = torch.zeros(1, dtype=torch.int64, device=device)
        self._one = torch.ones(1, dtype=torch.int32, device=device)

    def add(self, layer: int, topk: Tensor) -> None:
        """Count the choices ``[N, k]`` of one layer, int64; what is not from 0 to E - 1 does not count."""
        rows = self._sampled(topk)
        hit = (rows >= 0) & (rows < self._num_experts)
        hit &= ~_repeated(rows)
        cell = rows[:, :, None] * self._num_experts + rows[:, None, :]
        cell = torch.where(hit[:, :, None] & hit[:, None, :], cell, self._pass.shape[1] - 1).reshape(-1)
        self._pass[layer].scatter_add_(0, cell, self._one.expand(len(cell)))

    def end_pass(self, record: bool) -> None:
        """End a forward pass; without ``record`` it leaves no trace."""
        if record:
            self._window += self._pass
            self._first.add_(1).remainder_(self.every)
        self._pass.zero_()

    def take(self) -> Tensor:
        """The counts so far ``[L, E, E]`` int64 on the CPU, and begin anew. This waits for the device."""
        found = self._window[:, :-1].to("cpu", copy=True)
        self._window.zero_()
        return found.reshape(len(found), self._num_experts, self._num_experts)

    def _sampled(self, topk: Tensor) -> Tensor:
        """The tokens that are counted, -1 for those behind the last one: their number hangs on no value."""
        place = torch.arange(0, len(topk), self.every, device=topk.device) + self._first
        rows = topk.index_select(0, place.clamp(max=len(topk) - 1))
        return torch.where((place < len(topk))[:, None], rows, -1)


def _repeated(rows: Tensor) -> Tensor:
    """Whether a token ``[n, k]`` has named an expert before: booleans ``[n, k]``."""
    return (rows[:, :, None] == rows[:, None, :]).tril(-1).any(dim=2)
