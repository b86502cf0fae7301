"""Counts what logical experts are given where the model runs, in tensors that stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..trace import UNITS
from .pairs import PairSample


class LoadCounter:
    """Counts what the router chose, before logical experts become slots: a change of maps cannot mix two meanings.

    Counting makes no trip to the host and allocates nothing whose address matters, so that it can be captured in a
    graph. A pass is counted aside and joins the window with `end_pass`, or is dropped.

    Parameters
    ----------
    num_layers, num_experts : ``L`` and ``E``
    device : where the model's choices are
    unit : "tokens", or "batches": an expert counts once a pass in which a token of this rank chose it, for decode,
        where a rank's time is the experts that it reads. Ranks with batches of their own are added up, so an expert
        that two ranks chose in the same pass counts twice, of two batches
    pairs_every : also count which experts the same token chose, on one token of so many; ``None`` counts no pairs.
        Takes 46 MB for 58 layers of 256 experts

    Raises
    ------
    ArgumentError
        for another unit; if ``pairs_every`` is not a positive integer

    Examples
    --------
    >>> counter = LoadCounter(1, 4)
    >>> counter.add(0, torch.tensor([[0, 2], [2, -1]]))  # -1 is padding
    >>> counter.end_pass()
    >>> counter.take().tolist()
    [[1, 0, 2, 0]]
    >>> counter = LoadCounter(1, 4, unit="batches")
    >>> counter.add(0, torch.tensor([[0, 2], [2, 1]]))
    >>> counter.end_pass()
    >>> counter.take().tolist()
    [[1, 1, 1, 0]]
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        device: torch.device | str = "cpu",
        *,
        unit: str = "tokens",
        pairs_every: int | None = None,
    ) -> None:
        if unit not in UNITS:
            raise ArgumentError(f"unit must be {' or '.join(UNITS)}, got {unit!r}")
        self.num_experts, self.unit = num_experts, unit
        self._pairs = None
        if pairs_every is not None:
            self._pairs = PairSample(num_layers, num_experts, pairs_every, device)
        # The first and the last column take what does not count.
        self._pass = torch.zeros(num_layers, num_experts + 2, dtype=torch.int64, device=device)
        self._window = torch.zeros_like(self._pass)
        self._one = torch.ones(1, dtype=torch.int64, device=device)

    @property
    def settings(self) -> tuple[int, int]:
        """What is counted, as numbers that ranks compare."""
        return UNITS.index(self.unit), 0 if self._pairs is None else self._pairs.every

    def add(self, layer: int, topk: Tensor, valid: Tensor | None = None) -> None:
        """Count the choices of one layer; a pass may hand them over in several parts.

        Parameters
        ----------
        layer : row of the placement
        topk : integers ``[N, k]``, logical experts of each token; what is not from 0 to E - 1 does not count
        valid : booleans ``[N]``, false for tokens that are padding

        Raises
        ------
        ArgumentError
            if the shapes do not fit; contents are not looked at
        """
        if topk.dim() != 2 or (valid is not None and valid.shape != topk.shape[:1]):
            shapes = list(topk.shape), None if valid is None else list(valid.shape)
            raise ArgumentError(
                f"topk must be [tokens, k] and valid [tokens], got {shapes[0]} and {shapes[1]}"
            )
        topk = topk.long()  # -1 and E are out of the range of some small types
        if valid is not None:
            topk = torch.where(valid[:, None], topk, -1)
        column = topk.clamp(-1, self.num_experts) + 1
        if self._pairs is not None:
            self._pairs.add(layer, column)
        column = column.reshape(-1)
        if self.unit == "batches":
            self._pass[layer].index_fill_(0, column, 1)
        else:
            self._pass[layer].scatter_add_(0, column, self._one.expand(len(column)))

    def end_pass(self, record: bool = True) -> None:
        """End a forward pass; without ``record`` (warm-up, a dummy batch) it leaves no trace."""
        if record:
            self._window += self._pass
        self._pass.zero_()
        if self._pairs is not None:
            self._pairs.end_pass(record)

    def take(self) -> Tensor:
        """The window so far ``[L, E]`` int64 on the CPU, and begin another. This waits for the device."""
        window = self._window[:, 1:-1].to("cpu", copy=True)
        self._window.zero_()
        return window

    def take_pairs(self) -> Tensor | None:
        """The pairs so far ``[L, E, E]`` int64 on the CPU, and begin anew; ``None`` where none are counted.

        Symmetric: tokens of the sample that chose both experts, and on the diagonal those that chose the expert.
        `equipoise.PairCounts` takes them, of one rank or added up over ranks. This waits for the device.
        """
        return None if self._pairs is None else self._pairs.take()
