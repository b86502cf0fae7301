"""``robust``: plans that hold on the traffic that comes next, with few moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..metrics import imbalance, rank_loads
from ..placement import Placement
from ..planning.frontier import Options, choose, hull
from ..planning.hierarchical import (
    enter,
    groups_to_nodes,
    home_of_experts,
    join,
    nodes_of_groups,
    split_vectors,
)
from ..planning.relabel import relabel
from ..planning.scale import to_integers
from ..planning.single import plan_single
from ..planning.split import split_windows
from ..planning.vectors import apply_steps, plan_fresh, search_from
from ..planning.windows import merge_windows, to_vectors
from ..planning.wrap import wrap_layer
from ..topology import Topology

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MOST_ROUNDS = 8
FEW_SLOTS = 9
# From nothing, later steps fit the windows and not the traffic: on recorded loads they gain nothing held-out.
LEAST_STEPS = 64
STEPS_A_RANK = 3
GROUPED = 1e7  # what bringing groups back to nodes is worth, in imbalance: it comes before twins and any gain


@dataclass(frozen=True)
class Robust:
    """Plans from many windows, starts from the current placement, honours a move budget.

    Every window is a vector of loads and counts alike. Without ``current`` a layer is packed greedily by what each
    choice does to the rank loads of all windows, then improved by swaps and exchanges of replicas. With
    ``current`` the same search starts there and counts fetches. Two replicas of one expert never share a rank
    while another rank could take one.

    Parameters
    ----------
    groups : "auto" keeps groups on nodes where the topology allows it, as DeepSeek EPLB does; "nodes" demands
        it; "anchored" keeps one replica of every expert on its group's node and lets spare ones go anywhere;
        "global" ignores groups
    start : "current" searches from ``current`` where it is given; "fresh" plans from nothing and then names ranks
        and slots so that as much as possible stays, unless a budget asks for few moves
    min_gain : without a budget, what a move must earn: the share of a layer's imbalance that one per cent of its
        slots, fetched, takes off
    max_windows : more windows than this are merged with their neighbours
    max_steps : swaps and exchanges for a layer
    split : "shares" plans for token shares (`equipoise.split_shares`): besides the plan for an even split it cuts
        experts so that every rank can carry the mean, and keeps what balances a layer better under its best
        shares. Only for flat plans from nothing
    """

    groups: Literal["auto", "nodes", "anchored", "global"] = "auto"
    start: Literal["current", "fresh"] = "current"
    min_gain: float = 0.002
    max_windows: int = 16
    max_steps: int = 2000
    split: Literal["even", "shares"] = "even"
    name: ClassVar[str] = "robust"
    honours_max_moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.groups not in ("auto", "nodes", "anchored", "global"):
            raise ArgumentError(f"groups must be auto, nodes, anchored or global, got {self.groups!r}")
        if self.start not in ("current", "fresh"):
            raise ArgumentError(f"start must be current or fresh, got {self.start!r}")
        if self.split not in ("even", "shares"):
            raise ArgumentError(f"split must be even or shares, got {self.split!r}")
        if not self.min_gain >= 0:
            raise ArgumentError(f"min_gain must not be negative, got {self.min_gain}")
        for name in ("max_windows", "max_steps"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")

    def place(
        self,
        loads: npt.NDArray[np.float64],
        topology: Topology,
        *,
        current: Placement | None = None,
        max_moves: int | float | None = None,
        seed: int = 0,
    ) -> IntArray:
        """See `equipoise.Policy`. Nothing is drawn: ``seed`` changes nothing."""
        windows = merge_windows(loads, self.max_windows)
        by_node = self._by_node(topology)
        if self.split == "shares":
            if by_node or self.groups == "anchored" or current is not None:
                raise ArgumentError(
                    "split='shares' plans all ranks at once, from nothing: no groups, no current"
                )
            return self._for_shares(windows, topology)
        if current is None:
            return self._fresh(windows, topology, by_node)
        budget = None if max_moves is None else moves_allowed(max_moves, current)
        if self.start == "fresh" and budget is None:
            fresh = self._fresh(windows, topology, by_node)
            if not by_node and self.groups != "anchored":  # any rank may take any other's name
                topology = Topology(topology.num_ranks, topology.slots_per_rank)
            return relabel(fresh, current.phy2log, topology, current.num_experts)
        if budget is None:
            least = self._least_gain(topology)
            return self.search(loads, topology, current, min_gain=least).take(None, least)
        # No layer spends much more than its part of the budget.
        most = 8 + 2 * budget // current.num_layers
        return self.search(loads, topology, current, most=most).take(budget)

    def _by_node(self, topology: Topology) -> bool:
        if self.groups in ("nodes", "anchored") and not topology.hierarchical:
            raise ArgumentError(
                f"groups={self.groups!r} needs several nodes that divide the groups, got "
                f"num_nodes={topology.num_nodes}, num_groups={topology.num_groups}"
            )
        return topology.hierarchical and self.groups in ("auto", "nodes")

    def _fresh(self, windows: FloatArray, topology: Topology, by_node: bool) -> IntArray:
        ranks, per_node = topology.num_ranks, topology.ranks_per_node
        flat = not by_node and self.groups != "anchored"
        if flat and len(windows) == 1:
            return self._single(windows, topology)
        vectors = to_vectors(windows, ranks)
        if flat:
            return self._flat(vectors, np.full(vectors.shape[::2], -1), ranks, ranks, topology)
        groups = groups_to_nodes(to_integers(vectors.sum(axis=1)), topology, exact=True)
        if not by_node:
            home = home_of_experts(groups, topology, vectors.shape[2])
            return self._flat(vectors, home, per_node, ranks, topology)
        sub_vectors, experts = split_vectors(vectors, groups, topology)
        home = np.full(experts.shape, -1)
        return join(self._flat(sub_vectors, home, per_node, per_node, topology), experts, topology.num_nodes)

    def _single(self, windows: FloatArray, topology: Topology) -> IntArray:
        """One window, all ranks alike: vectors are made of the layers alone that `_settled` may improve."""
        integers = to_integers(windows[0])
        phy2log, largest = plan_single(integers, topology.num_ranks, topology.num_slots, self.max_steps)
        excess = largest * topology.num_ranks / np.maximum(integers.sum(axis=1), 1) - 1.0
        rows = np.flatnonzero(excess > self._least_gain(topology))
        if rows.size:
            vectors = to_vectors(windows[:, rows], topology.num_ranks)
            free = np.full(vectors.shape[::2], -1)
            phy2log[rows] = self._settled(
                vectors, phy2log[rows], excess[rows] + 1.0, free, topology.num_ranks, topology
            )
        return phy2log

    def _for_shares(self, windows: FloatArray, topology: Topology) -> IntArray:
        vectors = to_vectors(windows, topology.num_ranks)
        ranks, slots = topology.num_ranks, topology.slots_per_rank
        result = self._fresh(windows, topology, by_node=False)
        cut = result.copy()
        for layer, loads in enumerate(to_integers(vectors.sum(axis=1))):
            row = wrap_layer(loads, ranks, slots)
            if row is not None:
                cut[layer] = row
        better = _under_best_shares(vectors, cut, ranks) < _under_best_shares(vectors, result, ranks) - 1e-6
        result[better] = cut[better]
        return result

    def _flat(
        self, vectors: FloatArray, home: IntArray, ranks_per_node: int, num_ranks: int, topology: Topology
    ) -> IntArray:
        num_slots = num_ranks * topology.slots_per_rank
        if vectors.shape[1] == 1 and home[0, 0] < 0:
            integers = to_integers(vectors[:, 0])
            phy2log, largest = plan_single(integers, num_ranks, num_slots, self.max_steps)
            sums = np.maximum(integers.sum(axis=1), 1)
            return self._settled(vectors, phy2log, largest * num_ranks / sums, home, num_ranks, topology)
        peaks = to_integers(vectors.max(axis=1))
        # With few slots a rank, a replica that turns hot in one window has nothing to hide behind.
        few = topology.slots_per_rank <= FEW_SLOTS
        counts_from = peaks if few else to_integers(vectors.sum(axis=1))
        steps = min(self.max_steps, max(LEAST_STEPS, STEPS_A_RANK * num_ranks))
        return plan_fresh(vectors, counts_from, peaks, home, ranks_per_node, num_ranks, num_slots, steps)

    def _settled(
        self,
        vectors: FloatArray,
        phy2log: IntArray,
        largest: FloatArray,
        home: IntArray,
        num_ranks: int,
        topology: Topology,
    ) -> IntArray:
        """Moves that would earn their gain if this plan were the current one are made at once."""
        least = self._least_gain(topology)
        # Where the busiest rank is closer to the mean than one fetch must gain, no move can.
        means = vectors[:, 0].sum(axis=1) / num_ranks
        open_layers = np.flatnonzero((largest - 1.0) * means > least)
        for _ in range(MOST_ROUNDS):
            if not open_layers.size:
                break
            start = phy2log[open_layers]
            options, steps = search_from(
                vectors[open_layers],
                start,
                home[open_layers],
                num_ranks,
                num_ranks,
                self.max_steps,
                topology.num_slots,
                least,
            )
            counts = np.array(choose(options, None, least))
            phy2log[open_layers] = apply_steps(start, steps, counts.tolist())
            open_layers = open_layers[counts > 0]
        return phy2log

    def _least_gain(self, topology: Topology) -> float:
        """What one fetch must take off the imbalance of a layer."""
        return self.min_gain * 100.0 / topology.num_slots

    def search(
        self,
        loads: FloatArray,
        topology: Topology,
        current: Placement,
        *,
        most: int | None = None,
        min_gain: float = 0.0,
    ) -> Search:
        """Every step from a placement that pays, before any is chosen; `Search.take` makes placements of it.

        Parameters
        ----------
        loads : ``[W, L, E]``
        most : fetches after which a layer is not searched further; all its slots unless given
        min_gain : what a fetch must take off a layer's imbalance for the search to go on
        """
        windows = merge_windows(loads, self.max_windows)
        by_node = self._by_node(topology)
        vectors = to_vectors(windows, topology.num_ranks)
        num_layers, _, num_experts = vectors.shape
        previous = current.phy2log
        limits = (self.max_steps, topology.num_slots if most is None else most, min_gain)
        kept = np.ones(num_layers, np.bool_)
        home = np.full((num_layers, num_experts), -1)
        experts = None
        if topology.hierarchical and (by_node or self.groups == "anchored"):
            groups, kept = nodes_of_groups(current, topology, whole=by_node)
            if not by_node:
                home = home_of_experts(groups, topology, num_experts)
        # Layers whose groups are where they belong are searched; the others are planned from nothing.
        old, rebuilt = np.flatnonzero(kept), np.flatnonzero(~kept)
        per_node = topology.ranks_per_node
        if by_node:
            sub_vectors, experts = split_vectors(vectors[old], groups[old], topology)
            start = enter(previous[old], experts, topology)
            free = np.full(experts.shape, -1)
            options, steps = search_from(sub_vectors, start, free, per_node, per_node, *limits)
        else:
            start = previous[old]
            ranks = topology.num_ranks
            options, steps = search_from(vectors[old], start, home[old], per_node, ranks, *limits)
        fresh = previous[rebuilt]
        if rebuilt.size:
            fresh = self._fresh(windows[:, rebuilt], topology, by_node)
            fresh = relabel(fresh, previous[rebuilt], topology, num_experts)
            for new, was in zip(fresh, previous[rebuilt], strict=True):
                cost = _fetches(new, was, current.num_ranks)
                options.append((np.array([0, cost]), np.array([0.0, -GROUPED])))
        return Search(options, start, steps, experts, old, rebuilt, fresh, current, topology)


@dataclass(frozen=True)
class Search:
    """What a search from the current placement found."""

    options: list[Options]
    """fetches and values of the prefixes of each searched (sub-)layer, then of each rebuilt layer"""
    start: IntArray
    steps: IntArray
    experts: IntArray | None
    searched: IntArray
    rebuilt: IntArray
    fresh: IntArray
    current: Placement
    topology: Topology

    def take(self, budget: int | None, min_gain: float = 0.0) -> IntArray:
        """The placement ``phy2log [L, R]`` for a budget of fetches, or with all steps that gain enough."""
        counts = choose(self.options, budget, min_gain)
        found = apply_steps(self.start, self.steps, counts[: len(self.start)])
        result: IntArray = self.current.phy2log.copy()
        if self.experts is None:
            result[self.searched] = found
        else:
            result[self.searched] = join(found, self.experts, self.topology.num_nodes)
        for layer, row, count in zip(self.rebuilt, self.fresh, counts[len(self.start) :], strict=True):
            if count:
                result[layer] = row
        return result

    @property
    def most(self) -> int:
        """Fetches of the search when every step that lowers its layer's value is taken."""
        return sum(int(options[0][hull(options)[-1]]) for options in self.options)


def moves_allowed(max_moves: int | float, current: Placement) -> int:
    """A budget as a number of fetches over all layers: a float is a share of all slots."""
    all_slots = current.num_layers * current.num_slots
    if isinstance(max_moves, (float, np.floating)):
        return int(min(float(max_moves), 1.0) * all_slots + 1e-9)
    return min(int(max_moves), all_slots)


def _under_best_shares(vectors: FloatArray, phy2log: IntArray, num_ranks: int) -> FloatArray:
    """Imbalance per layer under the best shares, mean over windows: ``[L]``."""
    shares = split_windows(vectors, phy2log, num_ranks)
    placement = Placement(phy2log, num_ranks, vectors.shape[2])
    loads = rank_loads(vectors.transpose(1, 0, 2), placement, shares)
    return np.asarray(imbalance(loads).mean(axis=0))


def _fetches(new: IntArray, was: IntArray, num_ranks: int) -> int:
    pairs = zip(new.reshape(num_ranks, -1), was.reshape(num_ranks, -1), strict=True)
    return sum(len(set(mine.tolist()) - set(theirs.tolist())) for mine, theirs in pairs)
