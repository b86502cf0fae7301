"""Placements for a dispatcher on a device."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ..placement import Placement
from ..planning.tensors import has_triton, is_tensor


class DeviceMaps(NamedTuple):
    """Where the replicas of experts are, as tensors that a captured graph may read.

    `split_batch`, `assign` and `assign_by_turns` take it in place of a `Placement`. Who commits another placement
    copies its maps into these tensors; the next replay of a graph splits by them.

    Examples
    --------
    >>> import torch
    >>> from equipoise import Placement
    >>> DeviceMaps.of(Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3), "cpu").log2phy.tolist()
    [[[0, 2], [1, -1], [3, -1]]]
    """

    log2phy: Any
    """``[L, E, X]`` integers: slots of experts in ascending order; what is behind ``logcnt`` of them is not read"""
    logcnt: Any
    """``[L, E]`` integers: replicas of experts, at most ``X``; 0 for one that has no slot"""
    num_ranks: int
    """``P``"""
    num_slots: int
    """``R``, divisible by ``P``"""

    @property
    def most_several(self) -> int:
        """How many experts of a layer may have several replicas while each has one; more are split evenly."""
        num_experts = int(self.logcnt.shape[1])
        return max(0, min(num_experts, self.num_slots - num_experts))

    @classmethod
    def of(cls, placement: Placement, device: Any) -> DeviceMaps:
        """The maps of a placement, copied to a device."""
        import torch

        log2phy, logcnt = (
            torch.tensor(array, device=device) for array in (placement.log2phy, placement.logcnt)
        )
        return cls(log2phy, logcnt, placement.num_ranks, placement.num_slots)


def on_device(value: Any, placement: Placement | DeviceMaps) -> tuple[ModuleType, DeviceMaps] | None:
    """The module whose functions take a tensor, and the maps that they read.

    ``None`` where the compiled kernels do: for arrays, and for tensors on the processor with a `Placement`.
    """
    if not is_tensor(value):
        if isinstance(placement, DeviceMaps):
            raise ArgumentError(
                f"DeviceMaps are for torch tensors: pass a Placement with {type(value).__name__}"
            )
        return None
    if isinstance(placement, Placement):
        if value.device.type == "cpu":
            return None
        placement = DeviceMaps.of(placement, value.device)
    if value.device != placement.log2phy.device:
        raise ArgumentError(f"the maps are on {placement.log2phy.device}, what is split on {value.device}")
    if has_triton(value):
        from . import triton_backend as backend
    else:
        from . import torch_backend as backend  # type: ignore[no-redef]
    return backend, placement


def check_shape(name: str, value: Any, axes: str, expected: tuple[int, ...]) -> None:
    """Raise `ArgumentError` unless an array or a tensor has the shape that the placement asks for."""
    if tuple(value.shape) != expected:
        raise ArgumentError(f"{name} has {axes} = {list(value.shape)}, the placement {list(expected)}")
