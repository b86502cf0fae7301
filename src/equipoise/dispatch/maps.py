"""Placements for a dispatcher on a device."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..placement import IntArray, Placement
from ..planning.sweeps import forests
from ..planning.tensors import has_triton, is_tensor, to_array
from ..trace import check_loads

MOST_SWEEPS = 1 << 31


def check_sweeps(sweeps: Any) -> int:
    """A number of sweeps, from 0 on."""
    if isinstance(sweeps, bool) or not isinstance(sweeps, int | np.integer) or not 0 <= sweeps < MOST_SWEEPS:
        raise ArgumentError(f"sweeps must be a whole number, not negative and below 2**31, got {sweeps!r}")
    return int(sweeps)


def to_experts(topk: Any) -> npt.NDArray[Any]:
    """The entries of ``topk``, a tensor on the processor or what NumPy can read, as an array."""
    try:
        return np.asarray(to_array(topk))
    except ValueError:
        raise ArgumentError("topk is ragged: all tokens need the same number of experts") from None


def to_loads(counts: Any, placement: Placement) -> npt.NDArray[np.float64]:
    """Counts ``[L, E]`` of a batch, checked against the placement, as an array."""
    loads = np.asarray(check_loads(to_array(counts), "counts", (2,)), np.float64)
    check_shape("counts", loads, "[layers, experts]", (placement.num_layers, placement.num_experts))
    return loads


class DeviceMaps(NamedTuple):
    """A placement as tensors that a captured graph may read.

    `split_batch`, `assign` and `assign_by_number` take it in place of a `Placement`. `commit` writes another
    placement into the same tensors, and the next replay of a graph splits by that.

    Examples
    --------
    >>> from equipoise import Placement
    >>> maps = DeviceMaps.of(Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3), "cpu")
    >>> maps.log2phy.tolist()
    [[[0, 2], [1, -1], [3, -1]]]
    >>> maps.commit(Placement([[0, 1, 2, 1]], num_ranks=2, num_experts=3))
    >>> maps.log2phy.tolist()
    [[[0, -1], [1, 3], [2, -1]]]
    """

    log2phy: Any
    """``[L, E, X]`` integers: slots of experts in ascending order; what is behind ``logcnt`` of them is not read"""
    logcnt: Any
    """``[L, E]`` integers: replicas of experts, at most ``X``"""
    experts: Any
    """``[L, M]`` integers: those that several ranks share, in the order of sweeps; -1 behind the last"""
    parents: Any
    """``[L, M]`` integers: the rank through which each was reached"""
    num_slots: int
    """``R``, divisible by ``P``"""
    num_ranks: int
    """``P``"""

    @classmethod
    def of(cls, placement: Placement, device: Any) -> DeviceMaps:
        """The maps of a placement, copied to a device; as wide as any placement of as many slots needs."""
        import torch

        tensors: list[Any] = [torch.tensor(array, device=device) for array in _arrays(placement)]
        return cls(*tensors, placement.num_slots, placement.num_ranks)  # type: ignore[call-arg,arg-type]

    def commit(self, placement: Placement) -> None:
        """Write another placement of the same layers, experts, ranks and slots into the tensors.

        Raises
        ------
        ArgumentError
            if it has others; nothing changes then
        """
        import torch

        if placement.num_ranks != self.num_ranks:
            raise ArgumentError(
                f"the maps are of {self.num_ranks} ranks, the placement of {placement.num_ranks}"
            )
        arrays = _arrays(placement)
        for name, tensor, array in zip(self._fields, self, arrays, strict=False):
            check_shape(name, tensor, "the placement's axes", array.shape)
        for tensor, array in zip(self, arrays, strict=False):
            tensor.copy_(torch.from_numpy(array))


def _arrays(placement: Placement) -> tuple[IntArray, ...]:
    """What the tensors of `DeviceMaps` hold, in their order."""
    num_layers, num_experts, width = placement.log2phy.shape
    log2phy = np.full((num_layers, num_experts, placement.num_slots - num_experts + 1), -1, np.int64)
    log2phy[:, :, :width] = placement.log2phy
    order = forests(placement.phy2log, placement.num_ranks, num_experts)
    return log2phy, placement.logcnt.copy(), *order


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
