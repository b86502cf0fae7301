"""``robust``: plans that hold on the traffic that comes next, with few moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..planning.relabel import relabel
from ..planning.windows import merge_windows
from ..problem import Held, Problem
from ..search.affinity import bring_together
from ..search.batch import place_for_batches
from ..search.batch_held import place_from_held
from ..search.cut import place_for_shares
from ..search.fresh import place_fresh, planned_vectors
from ..search.layers import Limits
from ..search.names import name_ranks
from ..search.sublayers import ANCHORED, BY_NODE, WHOLE, Form, Sublayers
from ..search.warm import Search, search_held
from ..topology import Topology
from .protocol import Ability

IntArray = npt.NDArray[np.int64]

# How fast a gain becomes likelier to last with the windows that say so: the root would be that of a mean of
# independent windows, but steps are chosen for what they gain in these. benchmarks/bench_robust.py, replays.
TRUST = 2.0 / 3.0
# Of what a fetch must gain without a budget: whoever allows moves wants them if they gain at all.
WITHIN_BUDGET = 0.1
MOST_AFFINITY = 1e6  # objectives are sums of 8th powers


@dataclass(frozen=True)
class Robust:
    """Plans from many windows, starts from what ranks hold, honours a move budget.

    Every window is a vector of loads and counts alike. From nothing, a layer is packed greedily by what each choice
    does to the rank loads of all windows, then improved by swaps and exchanges of replicas. Where ranks hold a
    placement, the same search starts there and counts fetches. Two replicas of one expert never share a rank
    while another rank could take one.

    Parameters
    ----------
    groups : "auto" keeps groups on nodes where the topology allows it, as DeepSeek EPLB does; "nodes" demands
        it; "anchored" keeps one replica of every expert on its group's node and lets spare ones go anywhere;
        "global" ignores groups
    start : "current" searches from what ranks hold where that is known; "fresh" plans from nothing and then names
        ranks and slots so that as much as possible stays, unless a budget asks for few moves
    min_gain : what a move must earn: what one per cent of a layer's slots, fetched, must take off its imbalance where
        one window says so. With ``W`` windows it is divided by ``W ** (2 / 3)``, with a budget by ten
    max_windows : more windows than this are merged with their neighbours
    max_steps : swaps and exchanges for a layer
    split : "shares" plans for token shares (`equipoise.split_shares`): besides the plan for an even split it cuts
        experts so that every rank can carry the mean, and keeps what balances a layer better under its best
        shares. "batch" plans for a dispatcher that splits every batch by its load (`equipoise.split_batch`): a layer
        is searched on water-filled rank loads where that wins under cross-validation over the windows. Served with
        an even split, such a plan is worse than "even". Both plan all ranks at once, without groups on nodes, and
        "shares" from nothing
    affinity : what a layer's objective may become, as a multiple of what it is, for swaps that bring experts hit by
        the same tokens to one node (to one rank where there is one node): 1.02 to 1.3, see docs/communication.md.
        Needs pair counts, and plans from nothing, all ranks at once and for an even split; where ranks hold
        something, nodes and ranks are then named so that as much as possible stays and contents of nodes together.
        Without it, where pair counts are known and there are several nodes, flat plans from nothing are made with 1,
        what brings experts together and costs nothing, unless ranks hold something: names follow that
    """

    groups: Literal["auto", "nodes", "anchored", "global"] = "auto"
    start: Literal["current", "fresh"] = "current"
    min_gain: float = 0.0062
    max_windows: int = 16
    max_steps: int = 2000
    split: Literal["even", "shares", "batch"] = "even"
    affinity: float | None = None

    def __post_init__(self) -> None:
        if self.groups not in ("auto", "nodes", "anchored", "global"):
            raise ArgumentError(f"groups must be auto, nodes, anchored or global, got {self.groups!r}")
        if self.start not in ("current", "fresh"):
            raise ArgumentError(f"start must be current or fresh, got {self.start!r}")
        if self.split not in ("even", "shares", "batch"):
            raise ArgumentError(f"split must be even, shares or batch, got {self.split!r}")
        if not self.min_gain >= 0:
            raise ArgumentError(f"min_gain must not be negative, got {self.min_gain}")
        if self.affinity is not None and not _is_affinity(self.affinity):
            raise ArgumentError(
                f"affinity must be at least 1 and below {MOST_AFFINITY:g}, got {self.affinity}"
            )
        if self.affinity is not None and self.split != "even":
            raise ArgumentError("affinity is for an even split; leave out affinity or split")
        for name in ("max_windows", "max_steps"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """What reports call it."""
        return "robust-batch" if self.split == "batch" else "robust"

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can do depends on the split that it plans for; groups are kept unless it was told to part them."""
        if self.split == "batch":
            return frozenset({Ability.BATCH, Ability.BUDGET})
        found = {Ability.BUDGET, Ability.FRONTIER}
        if self.groups in ("auto", "nodes"):
            found.add(Ability.GROUPS)
        if self.split == "even":
            found.add(Ability.SPEEDS)
        return frozenset(found)

    def place(self, problem: Problem) -> IntArray:
        """See `equipoise.Policy`. Draws come from fixed seeds: ``problem.seed`` changes nothing."""
        topology, held, budget = problem.topology, problem.held, problem.max_moves
        form, least = self._form(topology), self._least_gain(problem)
        if self.affinity is not None:
            _check_affinity(problem, form)
        if self.split != "even":
            self._check_split(problem, form)
        anew = (self.start == "fresh" and budget is None) or self.affinity is not None
        if held is None or not held.complete or anew:
            if self.split != "even":
                return self._for_split(problem, least)
            return self._fresh(problem, form, least)
        most = None
        if budget is not None:
            least *= WITHIN_BUDGET
            most = 8 + 2 * budget // problem.num_layers  # no layer spends much more than its part
        windows = merge_windows(problem.loads, self.max_windows)
        if self.split == "batch" and len(windows) > 1:  # of one, no search for batches could be left out
            limits = Limits(self.max_steps, topology.num_slots, least)
            return place_from_held(windows, _complete(held), topology, limits, budget)
        return self.search(problem, most=most, min_gain=least).take(budget, least)

    def search(self, problem: Problem, *, most: int | None = None, min_gain: float = 0.0) -> Search:
        """Every step from what ranks hold that pays, before any is chosen; `Search.take` makes placements of it.

        Parameters
        ----------
        problem : with a complete placement that ranks hold
        most : fetches after which a layer is not searched further; all its slots unless given
        min_gain : what a fetch must take off a layer's imbalance for the search to go on
        """
        topology, held = problem.topology, _complete(problem.held)
        limits = Limits(self.max_steps, topology.num_slots if most is None else most, float(min_gain))
        windows = merge_windows(problem.loads, self.max_windows)
        return search_held(windows, held, topology, self._form(topology), limits, self._least_gain(problem))

    def _form(self, topology: Topology) -> Form:
        if self.groups in ("nodes", "anchored") and not topology.hierarchical:
            raise ArgumentError(
                f"groups={self.groups!r} needs several nodes that divide the groups, got "
                f"num_nodes={topology.num_nodes}, num_groups={topology.num_groups}"
            )
        if self.groups == "anchored":
            return ANCHORED
        return BY_NODE if topology.hierarchical and self.groups in ("auto", "nodes") else WHOLE

    def _least_gain(self, problem: Problem) -> float:
        """What one fetch must take off the imbalance of a layer: the more windows say so, the less is luck."""
        num_windows = len(merge_windows(problem.loads, self.max_windows))
        root = round(float(np.power(num_windows, TRUST)), 6)  # its last bit differs between machines
        return self.min_gain / root * 100.0 / problem.topology.num_slots

    def _fresh(self, problem: Problem, form: Form, least: float) -> IntArray:
        """From nothing; ranks and slots are then named so that as much as possible of what they hold stays."""
        topology, held = problem.topology, problem.held
        windows = merge_windows(problem.loads, self.max_windows)
        fresh = place_fresh(windows, topology, form, self.max_steps, least)
        if form == WHOLE and (held is None or self.affinity is not None):
            fresh = self._tied(problem, fresh, windows)
        if held is None:
            return fresh
        if problem.max_moves is not None:
            _complete(held)
        if self.affinity is not None and topology.num_nodes > 1:
            return _nodes_named_like(fresh, held, topology)
        return _named_like(fresh, held, topology, form)

    def _tied(self, problem: Problem, phy2log: IntArray, windows: npt.NDArray[np.float64]) -> IntArray:
        """Experts that are hit together nearer each other: at no cost, and as far as the affinity allows."""
        topology, pairs = problem.topology, problem.pair_counts
        if pairs is None or (self.affinity is None and topology.num_nodes == 1):
            return phy2log
        layers = Sublayers.whole(planned_vectors(windows, topology), topology).layers
        cap = 1.0 if self.affinity is None else self.affinity
        tied = bring_together(layers, _named(problem, phy2log), pairs, topology, cap)
        return _named(problem, tied)

    def _check_split(self, problem: Problem, form: Form) -> None:
        if form != WHOLE:
            raise ArgumentError(
                f"split={self.split!r} plans all ranks at once, without groups on nodes: num_groups must be 1, or "
                "the policy one that ignores groups"
            )
        if self.split == "shares" and (problem.held is not None or problem.max_moves is not None):
            unfit = "current" if problem.max_moves is None else "max_moves"
            raise ArgumentError(
                f"split='shares' plans from nothing: leave {unfit} out, or plan with split='even'"
            )

    def _for_split(self, problem: Problem, least: float) -> IntArray:
        """From nothing, for shares or batches; what ranks hold names ranks and slots."""
        if problem.max_moves is not None:
            _complete(problem.held)
        windows = merge_windows(problem.loads, self.max_windows)
        place = place_for_shares if self.split == "shares" else place_for_batches
        found = place(windows, problem.topology, self.max_steps, least)
        if problem.held is None:
            return _named(problem, found)
        return _named_like(found, problem.held, problem.topology, WHOLE)


def _named_like(fresh: IntArray, held: Held, topology: Topology, form: Form) -> IntArray:
    """A placement ``[L, R]`` with ranks and slots named so that as much as possible stays where it is held."""
    if form == WHOLE:  # any rank may take any other's name
        topology = replace(topology, num_nodes=1, num_groups=1, node_of_rank=None)
    return relabel(fresh, held.phy2log, topology, held.num_experts)


def _nodes_named_like(fresh: IntArray, held: Held, topology: Topology) -> IntArray:
    """The same while the contents of nodes stay together; nodes of different size keep their names."""
    if topology.even:
        return relabel(fresh, held.phy2log, replace(topology, num_groups=1), held.num_experts)
    result: IntArray = fresh.copy()
    node_of_slot = np.repeat(topology.nodes, topology.slots_per_rank)
    for node in range(topology.num_nodes):
        ranks, slots = np.array(topology.nodes) == node, node_of_slot == node
        speed = None if topology.rank_speed is None else tuple(np.array(topology.rank_speed)[ranks].tolist())
        alone = Topology(int(ranks.sum()), topology.slots_per_rank, rank_speed=speed)
        result[:, slots] = relabel(fresh[:, slots], held.phy2log[:, slots], alone, held.num_experts)
    return result


def _is_affinity(value: Any) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and bool(1.0 <= value < MOST_AFFINITY)


def _check_affinity(problem: Problem, form: Form) -> None:
    if problem.pair_counts is None:
        raise ArgumentError(
            "affinity needs to know which experts are hit together: pass routes, or leave it out"
        )
    if form != WHOLE:
        raise ArgumentError(
            "affinity plans all ranks at once, without groups on nodes: num_groups must be 1, or the policy one that "
            "ignores groups"
        )
    if problem.max_moves is not None:
        raise ArgumentError("affinity plans from nothing: leave max_moves out, or plan without affinity")


def _named(problem: Problem, phy2log: IntArray) -> IntArray:
    """A plan from nothing, its ranks named so that experts that are hit together share a node."""
    if problem.pair_counts is None or problem.topology.num_nodes == 1:
        return phy2log
    return name_ranks(phy2log, problem.pair_counts, problem.topology)


def _complete(held: Held | None) -> Held:
    """What ranks hold, which has to be a placement: fetches are counted from it."""
    if held is None or not held.complete:
        raise ArgumentError(
            "max_moves needs a current= in which every slot of these ranks has an expert and every expert a slot: "
            "ranks, slots or experts have come or gone, so leave max_moves out this once"
        )
    return held
