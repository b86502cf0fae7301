"""What a policy is asked: loads, the machine, what ranks hold now, and how much may move. Checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError
from .placement import BoolArray, IntArray, Placement, derived, read_only
from .topology import Topology
from .trace import check_loads

FloatArray = npt.NDArray[np.float64]
Rows = slice | Sequence[int] | IntArray

MAX_SEED = 1 << 62


@dataclass(frozen=True, eq=False)
class Held:
    """What ranks hold now. Unlike a `Placement` it may have empty slots, and experts that nobody holds.

    Parameters
    ----------
    phy2log : integers ``[L, R]``
        logical expert of each slot, -1 for an empty one; slot ``p`` of a layer lives on rank ``p // (R / P)``
    num_ranks : ranks ``P``
    num_experts : logical experts ``E`` per layer

    Raises
    ------
    ArgumentError
        naming the layer and slot whose expert is out of range

    Examples
    --------
    >>> held = Held([[0, 1, 2, -1]], num_ranks=2, num_experts=4)
    >>> held.complete, held.lost.tolist()
    (False, [[False, False, False, True]])
    """

    phy2log: IntArray
    num_ranks: int
    num_experts: int

    def __post_init__(self) -> None:
        for name in ("num_ranks", "num_experts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
        given = _as_array(self.phy2log, "held slots")
        if given.ndim != 2 or given.dtype.kind not in "iu" or 0 in given.shape:
            raise ArgumentError(
                f"held slots must be an integer array [layers, slots], got {given.dtype} {list(given.shape)}"
            )
        if given.shape[1] % self.num_ranks:
            raise ArgumentError(f"{given.shape[1]} slots are not divisible by num_ranks={self.num_ranks}")
        bad = (given < -1) | (given >= self.num_experts)
        if bad.any():
            layer, slot = (int(i) for i in np.argwhere(bad)[0])
            raise ArgumentError(
                f"layer {layer}, slot {slot} holds expert {given[layer, slot]}, "
                f"but experts are 0 to {self.num_experts - 1}, and -1 for an empty slot"
            )
        object.__setattr__(self, "phy2log", read_only(np.array(given, dtype=np.int64, order="C")))

    @classmethod
    def of(cls, placement: Placement) -> Held:
        """The slots of a placement, as they are held."""
        return cls(placement.phy2log, placement.num_ranks, placement.num_experts)

    @property
    def num_layers(self) -> int:
        """MoE layers ``L``."""
        return int(self.phy2log.shape[0])

    @property
    def num_slots(self) -> int:
        """Slots of a layer ``R``."""
        return int(self.phy2log.shape[1])

    @derived
    def holds(self) -> BoolArray:
        """Whether a rank holds an expert: booleans ``[L, P, E]``."""
        table = np.zeros((self.num_layers, self.num_ranks, self.num_experts + 1), np.bool_)
        ranks = np.arange(self.num_slots) // (self.num_slots // self.num_ranks)
        table[np.arange(self.num_layers)[:, None], ranks[None, :], self.phy2log] = True
        return read_only(np.ascontiguousarray(table[:, :, :-1]))  # -1 fell into the last column

    @property
    def lost(self) -> BoolArray:
        """Whether no rank holds an expert: booleans ``[L, E]``."""
        return np.asarray(~self.holds.any(axis=1))

    @derived
    def complete(self) -> bool:
        """Whether every slot has an expert, and every expert a slot: whether this is a legal placement."""
        return bool((self.phy2log >= 0).all() and not self.lost.any())

    def layers(self, rows: Rows) -> Held:
        """What ranks hold of some of the layers."""
        return replace(self, phy2log=self.phy2log[rows])

    def on(self, topology: Topology) -> Held:
        """The same as ranks and slots of a topology: ranks keep their numbers, new ones are empty.

        Where a rank has fewer slots than before it keeps the first of its experts.
        """
        if (self.num_ranks, self.num_slots) == (topology.num_ranks, topology.num_slots):
            return self
        before = self.phy2log.reshape(self.num_layers, self.num_ranks, -1)
        after = np.full((self.num_layers, topology.num_ranks, topology.slots_per_rank), -1, np.int64)
        ranks = min(self.num_ranks, topology.num_ranks)
        slots = min(before.shape[2], topology.slots_per_rank)
        after[:, :ranks, :slots] = before[:, :ranks, :slots]
        return Held(after.reshape(self.num_layers, -1), topology.num_ranks, self.num_experts)


@dataclass(frozen=True, eq=False)
class Problem:
    """One request for a placement. `Problem.of` checks its arguments; the constructor takes them as they are.

    Parameters
    ----------
    loads : ``[W, L, E]`` float64, finite and not negative, oldest window first; must not be modified
    topology : ranks, slots, nodes and groups; fits ``E`` experts
    held : what ranks hold now, on the ranks and slots of ``topology``, where known
    max_moves : fetches allowed over all layers together, ``None`` for no limit; needs ``held``
    seed : of everything that is drawn
    pair_counts : ``[L, E, E]``, how often two experts were hit by the same token, where known
    """

    loads: FloatArray
    topology: Topology
    held: Held | None = None
    max_moves: int | None = None
    seed: int = 0
    pair_counts: FloatArray | None = None

    @classmethod
    def of(
        cls,
        loads: npt.ArrayLike,
        topology: Topology,
        *,
        current: Placement | Held | None = None,
        max_moves: int | float | None = None,
        seed: int = 0,
        pair_counts: npt.ArrayLike | None = None,
    ) -> Problem:
        """A problem from a caller's arguments, all of them checked.

        Parameters
        ----------
        loads : counts ``[L, E]`` or ``[W, L, E]``
        current : the placement that ranks hold now; it may have another number of ranks or slots
        max_moves : budget of fetches over all layers together: a float is a share of all slots, an integer a number

        Raises
        ------
        ArgumentError
            naming the argument, what was found and what to do

        Examples
        --------
        >>> Problem.of([[8, 4, 2, 2]], Topology(2, 3)).loads.shape
        (1, 1, 4)
        """
        counts = check_loads(loads, "loads", (2, 3))
        windows = np.array(counts if counts.ndim == 3 else counts[None], dtype=np.float64, order="C")
        return cls.trusting(
            windows, topology, current=current, max_moves=max_moves, seed=seed, pair_counts=pair_counts
        )

    @classmethod
    def trusting(
        cls,
        loads: FloatArray,
        topology: Topology,
        *,
        current: Placement | Held | None = None,
        max_moves: int | float | None = None,
        seed: int = 0,
        pair_counts: npt.ArrayLike | None = None,
    ) -> Problem:
        """As `of`, for loads ``[W, L, E]`` that have been checked already, as those of a `LoadTrace` are."""
        num_layers, num_experts = loads.shape[1:]
        if not isinstance(topology, Topology):
            raise ArgumentError(f"topology must be an equipoise.Topology, got {type(topology).__name__}")
        topology.check_experts(num_experts)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < MAX_SEED:
            raise ArgumentError(f"seed must be an integer from 0 to 2^62 - 1, got {seed!r}")
        held = _checked_held(current, num_layers, num_experts, topology)
        return cls(
            loads,
            topology,
            held,
            _checked_budget(max_moves, held),
            int(seed),
            _checked_pairs(pair_counts, num_layers, num_experts),
        )

    @property
    def num_layers(self) -> int:
        """MoE layers ``L``."""
        return int(self.loads.shape[1])

    @property
    def num_experts(self) -> int:
        """Logical experts ``E`` per layer."""
        return int(self.loads.shape[2])

    def layers(self, rows: Rows) -> Problem:
        """The same for some of the layers. The budget is over all layers, so a part has none."""
        return replace(
            self,
            loads=self.loads[:, rows],
            held=None if self.held is None else self.held.layers(rows),
            max_moves=None,
            pair_counts=None if self.pair_counts is None else self.pair_counts[rows],
        )

    def first_windows(self, count: int) -> Problem:
        """The same with the first ``count`` windows alone."""
        return replace(self, loads=self.loads[:count])


def _as_array(given: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError:  # ragged nested lists
        raise ArgumentError(f"{name} are ragged: every layer needs as many") from None


def _checked_held(current: Any, num_layers: int, num_experts: int, topology: Topology) -> Held | None:
    if current is None:
        return None
    if not isinstance(current, (Placement, Held)):
        raise ArgumentError(
            f"current must be an equipoise.Placement or Held, got {type(current).__name__}: "
            "Placement(phy2log, num_ranks, num_experts) makes one"
        )
    wanted, found = (num_layers, num_experts), (current.num_layers, current.num_experts)
    if found != wanted:
        raise ArgumentError(
            f"current does not fit: it has (layers, experts) = {found}, the loads have {wanted}"
        )
    return (current if isinstance(current, Held) else Held.of(current)).on(topology)


def _checked_budget(max_moves: Any, held: Held | None) -> int | None:
    """A budget as a number of fetches over all layers: a float is a share of all slots."""
    if max_moves is None:
        return None
    if isinstance(max_moves, bool) or not isinstance(max_moves, (int, float, np.integer, np.floating)):
        raise ArgumentError(f"max_moves must be an integer or a float, got {max_moves!r}")
    share = isinstance(max_moves, (float, np.floating))
    if not max_moves >= 0 or (share and max_moves > 1):
        raise ArgumentError(
            f"max_moves must be a count of at least 0 or a share from 0.0 to 1.0, got {max_moves!r}"
        )
    if held is None:
        raise ArgumentError("max_moves needs current=: without it every slot is a move")
    all_slots = held.num_layers * held.num_slots
    return int(float(max_moves) * all_slots + 1e-9) if share else min(int(max_moves), all_slots)


def _checked_pairs(pair_counts: Any, num_layers: int, num_experts: int) -> FloatArray | None:
    if pair_counts is None:
        return None
    counts = _as_array(pair_counts, "pair_counts")
    wanted = (num_layers, num_experts, num_experts)
    if counts.shape != wanted:
        raise ArgumentError(
            f"pair_counts must be [layers, experts, experts] = {list(wanted)}, got shape {list(counts.shape)}"
        )
    return np.asarray(check_loads(counts, "pair_counts", (3,)), dtype=np.float64)
