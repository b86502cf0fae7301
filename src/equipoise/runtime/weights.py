"""The expert tensors of a model on this rank, and room to stage a layer of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ArgumentError

ALIGNMENT = 16
"""bytes; no element of a tensor is larger"""


@dataclass(frozen=True)
class _Part:
    """Where a tensor's row of one expert lies in the bytes of that expert."""

    tensor: Tensor
    """``[slots_per_rank, ...]``"""
    start: int
    stop: int

    def packed(self, flat: Tensor) -> Tensor:
        """The place of this part in ``flat [expert_bytes]`` uint8, as the tensor's type and shape of one slot."""
        row = self.tensor[0]
        return flat[self.start : self.stop].view(self.tensor.dtype).view(row.shape)


class ExpertWeights:
    """All tensors that belong to experts, layer by layer, slot by slot.

    They stay where they are: addresses never change, so captured graphs stay valid. What one expert of a layer has
    moves together, as bytes, whatever the types: weights, scales, biases.

    Parameters
    ----------
    layers : for each layer the tensors by name, each ``[slots_per_rank, ...]``; layers may differ in shapes

    Raises
    ------
    ArgumentError
        naming layer and tensor: no tensors, another first axis, elements that share memory (an expanded tensor or a
        sliding window: slots would change together), tensors that overlap, more than one device

    Examples
    --------
    >>> import torch
    >>> weights = ExpertWeights([{"up": torch.zeros(3, 8, 4), "scale": torch.ones(3)}])
    >>> weights.slots_per_rank, weights.expert_bytes(0)
    (3, 144)
    """

    def __init__(self, layers: Sequence[Mapping[str, Tensor]]) -> None:
        if not layers or not all(layers):
            raise ArgumentError("weights need at least one layer, and each layer at least one tensor")
        first = next(iter(layers[0].values()))
        self.slots_per_rank = int(first.shape[0]) if first.dim() else 0
        self.device = first.device
        self._parts: list[tuple[_Part, ...]] = []
        self._layouts: list[str] = []
        for number, tensors in enumerate(layers):
            for name, tensor in tensors.items():
                self._check(f"layer {number}, {name!r}", tensor)
            self._parts.append(tuple(_placed(tensors.values())))
            self._layouts.append(", ".join(_described(name, tensor) for name, tensor in tensors.items()))
        _check_apart(layers)
        self._stage = torch.empty(
            (self.slots_per_rank, max(map(self.expert_bytes, range(len(layers))))),
            dtype=torch.uint8,
            device=self.device,
        )

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self._parts)

    @property
    def layout(self) -> str:
        """What the bytes of an expert mean, layer by layer: names, types and shapes of its tensors."""
        return "; ".join(self._layouts)

    def expert_bytes(self, layer: int) -> int:
        """Bytes of one expert, each tensor's part padded to `ALIGNMENT`."""
        return -(-self._parts[layer][-1].stop // ALIGNMENT) * ALIGNMENT

    def pack(self, layer: int, slot: int, flat: Tensor) -> None:
        """Copy what a slot holds into ``flat [expert_bytes]`` uint8."""
        for part in self._parts[layer]:
            part.packed(flat).copy_(part.tensor[slot])

    def staged(self, layer: int, slot: int) -> Tensor:
        """The room ``[expert_bytes]`` uint8 in which a slot's next expert is staged."""
        return self._stage[slot, : self.expert_bytes(layer)]

    def commit(self, layer: int, slots: Iterable[int]) -> None:
        """Copy what is staged into the slots."""
        with torch.inference_mode():  # tensors that were made in it can be written in it alone, others too
            for slot in slots:
                flat = self.staged(layer, slot)
                for part in self._parts[layer]:
                    part.tensor[slot].copy_(part.packed(flat))

    def _check(self, where: str, tensor: Tensor) -> None:
        if tensor.dim() == 0 or tensor.shape[0] != self.slots_per_rank or self.slots_per_rank == 0:
            raise ArgumentError(
                f"{where}: its first axis must be the {self.slots_per_rank} slots of this rank, "
                f"got {list(tensor.shape)}"
            )
        if _shares_elements(tensor):
            raise ArgumentError(
                f"{where}: strides {list(tensor.stride())} let several elements share memory: call contiguous() on it"
            )
        if tensor.numel() == 0:
            raise ArgumentError(f"{where}: is empty, {list(tensor.shape)}")
        if tensor.device != self.device:
            raise ArgumentError(f"{where}: is on {tensor.device}, others are on {self.device}")


def _described(name: str, tensor: Tensor) -> str:
    return f"{name} {tensor.dtype} {list(tensor.shape[1:])}"


def _placed(tensors: Iterable[Tensor]) -> Iterable[_Part]:
    start = 0
    for tensor in tensors:
        stop = start + tensor[0].numel() * tensor.element_size()
        yield _Part(
            tensor.detach(), start, stop
        )  # parameters may ask for gradients: moving is no computation
        start = -(-stop // ALIGNMENT) * ALIGNMENT


def _shares_elements(tensor: Tensor) -> bool:
    """Whether elements may share memory: from the smallest stride on, each must step over all that came before."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _check_apart(layers: Sequence[Mapping[str, Tensor]]) -> None:
    """No byte may belong to two tensors; views into one storage that only interleave are refused, too."""
    spans = []
    for number, tensors in enumerate(layers):
        for name, tensor in tensors.items():
            reach = sum(
                (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            )
            start = tensor.data_ptr()
            spans.append((start, start + (reach + 1) * tensor.element_size(), f"layer {number}, {name!r}"))
    spans.sort()
    for (_, stop, one), (start, _, other) in pairwise(spans):
        if start < stop:
            raise ArgumentError(f"{one} and {other} overlap in memory: each needs its own")
