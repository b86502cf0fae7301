"""Where experts live: the placement of every layer, and what a change of placement moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError, PlacementError

if TYPE_CHECKING:
    from .problem import Held

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Value = TypeVar("Value")
SPLITS = ("even", "batch")
"""How the tokens of an expert are split among its replicas where a placement is served."""


class derived(cached_property[Value]):
    """`cached_property` without a lock: before Python 3.12 it has one, for all instances of the class together.

    A worker forked while another thread holds it would wait for ever. Computing a value twice does no harm.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Value:  # type: ignore[override]
        if instance is None:
            return self  # type: ignore[return-value]
        assert self.attrname is not None
        # Python looks here first the next time.
        value: Value = instance.__dict__.setdefault(self.attrname, self.func(instance))
        return value


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, made read-only."""
    array.flags.writeable = False
    return array


def check_layers(layers: Sequence[int] | None, count: int, num_model_layers: int | None) -> tuple[int, ...]:
    """The model's layer numbers of ``count`` MoE layers: strictly increasing, inside the model."""
    numbers = tuple(range(count)) if layers is None else tuple(int(layer) for layer in layers)
    if len(numbers) != count:
        raise ArgumentError(f"layers names {len(numbers)} layers, but the array has {count}")
    if any(b <= a for a, b in pairwise(numbers)) or (numbers and numbers[0] < 0):
        raise ArgumentError("layers must be the model's layer numbers: not negative, strictly increasing")
    if num_model_layers is not None and numbers and numbers[-1] >= num_model_layers:
        raise ArgumentError(f"layers names layer {numbers[-1]}, but num_model_layers is {num_model_layers}")
    return numbers


@dataclass(frozen=True, eq=False)
class Placement:
    """The logical expert of every slot, for all MoE layers of a model. Validated and immutable.

    Parameters
    ----------
    phy2log : integers ``[L, R]``
        logical expert of each slot; slot ``p`` of a layer lives on rank ``p // (R / P)``
    num_ranks : EP ranks ``P``
    num_experts : logical experts ``E`` per layer
    layers : the model's own numbers of the ``L`` layers; 0, 1, ... unless given
    num_model_layers : layers of the whole model, dense ones included, where known
    split : how tokens are split among replicas where it is served: "even", or "batch", by the load of every batch
        (`equipoise.split_batch`). One made for "batch" is worse under an even split

    Raises
    ------
    PlacementError
        naming the layer and the expert or slot, if this is not a legal placement

    Examples
    --------
    >>> placement = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)
    >>> placement.logcnt.tolist(), placement.log2phy.tolist()
    ([[2, 1, 1]], [[[0, 3], [1, -1], [2, -1]]])
    """

    phy2log: IntArray
    num_ranks: int
    num_experts: int
    layers: tuple[int, ...] = field(default=(), kw_only=True)
    num_model_layers: int | None = field(default=None, kw_only=True)
    split: str = field(default="even", kw_only=True)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise PlacementError(f"split must be {' or '.join(SPLITS)}, got {self.split!r}")
        given = np.asarray(self.phy2log)
        if given.ndim != 2 or given.dtype.kind not in "iu" or 0 in given.shape:
            raise PlacementError(
                f"phy2log must be an integer array [layers, slots], got {given.dtype} {list(given.shape)}"
            )
        phy2log = np.array(given, dtype=np.int64, order="C")
        num_layers, num_slots = phy2log.shape
        if self.num_ranks < 1 or num_slots % self.num_ranks:
            raise PlacementError(f"{num_slots} slots are not divisible by num_ranks={self.num_ranks}")
        bad = (phy2log < 0) | (phy2log >= self.num_experts)
        if bad.any():
            layer, slot = (int(i) for i in np.argwhere(bad)[0])
            raise PlacementError(
                f"layer {layer}, slot {slot} holds expert {phy2log[layer, slot]}, "
                f"but experts are 0 to {self.num_experts - 1}"
            )
        object.__setattr__(self, "phy2log", read_only(phy2log))
        object.__setattr__(
            self, "layers", check_layers(self.layers or None, num_layers, self.num_model_layers)
        )
        if not self.logcnt.all():
            layer, expert = (int(i) for i in np.argwhere(self.logcnt == 0)[0])
            raise PlacementError(f"layer {layer}: expert {expert} has no slot; every expert needs one")

    @property
    def num_layers(self) -> int:
        """MoE layers ``L``."""
        return int(self.phy2log.shape[0])

    @property
    def num_slots(self) -> int:
        """Slots of a layer ``R``."""
        return int(self.phy2log.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """Slots of a rank ``R / P``."""
        return self.num_slots // self.num_ranks

    @derived
    def logcnt(self) -> IntArray:
        """Replica counts ``[L, E]``."""
        keys = self.phy2log + np.arange(self.num_layers)[:, None] * self.num_experts
        counts = np.bincount(keys.ravel(), minlength=self.num_layers * self.num_experts)
        counts = counts.reshape(self.num_layers, self.num_experts).astype(np.int64, copy=False)
        return read_only(counts)

    @derived
    def log2phy(self) -> IntArray:
        """Slots of each expert in ascending order, padded with -1: ``[L, E, X]``, ``X = logcnt.max()``."""
        num_layers, num_slots = self.phy2log.shape
        # NumPy sorts 16-bit keys by radix, five times as fast as 64-bit ones.
        narrow = np.int16 if self.num_experts <= 1 << 15 else np.int64
        slots = np.argsort(self.phy2log.astype(narrow), axis=1, kind="stable")
        flat_counts = self.logcnt.ravel()
        first = np.cumsum(flat_counts) - flat_counts
        width = int(flat_counts.max())
        nth = np.arange(num_layers * num_slots) - np.repeat(first, flat_counts)
        owner = np.repeat(np.arange(flat_counts.size), flat_counts)
        table = np.full(flat_counts.size * width, -1, dtype=np.int64)
        table[owner * width + nth] = slots.ravel()
        return read_only(table.reshape(num_layers, self.num_experts, width))

    @derived
    def holds(self) -> BoolArray:
        """Whether a rank holds an expert: booleans ``[L, P, E]``."""
        table = np.zeros((self.num_layers, self.num_ranks, self.num_experts), dtype=np.bool_)
        ranks = np.arange(self.num_slots) // self.slots_per_rank
        table[np.arange(self.num_layers)[:, None], ranks[None, :], self.phy2log] = True
        return read_only(table)

    def layer(self, index: int) -> Placement:
        """The placement of one layer."""
        number = self.layers[index]
        return Placement(
            self.phy2log[index : index + 1],
            self.num_ranks,
            self.num_experts,
            layers=(number,),
            num_model_layers=self.num_model_layers,
            split=self.split,
        )

    @property
    def twins(self) -> IntArray:
        """Replicas that share a rank with another replica of the same expert, per layer ``[L]``.

        A rank with ``n`` replicas of one expert counts ``n - 1``.
        """
        return np.asarray(self.num_slots - self.holds.sum(axis=(1, 2)), dtype=np.int64)

    def moves_from(self, previous: Placement | Held) -> IntArray:
        """Fetches per layer ``[L]``: (rank, expert) pairs held here that the rank did not hold before."""
        self._check_comparable(previous)
        return np.asarray((self.holds & ~previous.holds).sum(axis=(1, 2)), dtype=np.int64)

    def _check_comparable(self, other: Placement | Held) -> None:
        mine = (self.num_layers, self.num_ranks, self.num_experts)
        theirs = (other.num_layers, other.num_ranks, other.num_experts)
        if mine != theirs:
            raise PlacementError(
                f"placements differ in layers, ranks or experts: {mine} here, {theirs} in the other one"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return (
            self.num_ranks == other.num_ranks
            and self.num_experts == other.num_experts
            and self.layers == other.layers
            and self.num_model_layers == other.num_model_layers
            and self.split == other.split
            and np.array_equal(self.phy2log, other.phy2log)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Placement({self.num_layers} layers, {self.num_experts} experts, "
            f"{self.num_ranks} ranks x {self.slots_per_rank} slots)"
        )


def contiguous_placement(
    num_layers: int, num_experts: int, num_ranks: int, num_slots: int | None = None
) -> Placement:
    """The placement of an engine that does not balance: slot ``p`` holds expert ``p % E``.

    This is what SGLang, vLLM and TensorRT-LLM start from; redundant slots repeat the first experts.
    """
    slots = num_experts if num_slots is None else num_slots
    row = np.arange(slots, dtype=np.int64) % num_experts
    return Placement(np.tile(row, (num_layers, 1)), num_ranks, num_experts)
