"""One series while it is being made: a balancer, or a reference, scored interval by interval."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..control.balancer import Balancer, Proposal
from ..control.cost import CostModel
from ..control.forecast import Past
from ..errors import PolicyError
from ..metrics import Balance, balance, imbalance, rank_loads
from ..placement import IntArray, Placement
from ..plans.activated import Activated, count_activated
from ..plans.communication import communication, together
from ..plans.plan import ask, checked_placement
from ..plans.served import SWEEPS, Splits, served_loads, side_by_side
from ..policy.protocol import Ability, Policy, can
from ..problem import Problem
from ..routes import PairCounts, Routes
from ..topology import Topology
from ..trace import LoadTrace
from .result import FLOOR, GATED, ONCE, PAST, Replan

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """What all series of a replay share."""

    trace: LoadTrace
    steps: FloatArray
    """``[T]``, steps of each window"""
    seed: int
    cost: CostModel | None
    split: str = "even"
    """whether windows are split by their load as well, side by side ("batch")"""
    routes: Sequence[Routes] | PairCounts | None = None
    """``[T]``, of each window, or pair counts of no window in particular, where known"""
    batches: npt.NDArray[np.int64] | None = None
    """``[T, B, L, E]``, tokens of the single batches of each window, where known"""


@dataclass(frozen=True)
class Interval:
    """The windows that follow a re-planning: scored on, and known to nobody but the oracle before."""

    start: int
    counts: FloatArray
    """``[I, L, E]``"""
    steps: FloatArray
    """``[I]``"""


@dataclass(frozen=True)
class Scores:
    """What one placement made of one interval of ``I`` windows."""

    imbalance: FloatArray
    """``[I, L]``"""
    balances: tuple[Balance, ...]
    """one a window, ``I`` of them"""
    layer_time_s: FloatArray | None
    """``[I]``"""
    rank_loads: FloatArray
    """``[L, P]``, over the whole interval"""
    where: Mapping[str, FloatArray]
    """where tokens go, by the name in `Summary`: ``[I]``, means over layers; nothing where routes are not known"""
    splits: tuple[Splits, ...] = ()
    """one a window, where asked for"""
    step_s: tuple[tuple[float, float], ...] = ()
    """then, with a cost model: seconds of a layer and step, even and swept, one pair a window"""
    activated: Activated | None = None
    """of the interval's single batches, where known"""


@dataclass
class Stopwatch:
    """A policy that remembers how long it was asked: balancers have no clock."""

    name: str
    policy: Policy
    seconds: float = 0.0

    @property
    def abilities(self) -> frozenset[Ability]:
        """Those of the policy that bear on `place`; one that knows no speeds is not told of them."""
        found = {one for one in (Ability.BUDGET, Ability.BATCH) if can(self.policy, one)}
        return frozenset(found | {Ability.SPEEDS})

    def place(self, problem: Problem) -> IntArray:
        """What the policy places."""
        if not can(self.policy, Ability.SPEEDS):
            problem = replace(problem, topology=replace(problem.topology, rank_speed=None))
        clock = time.perf_counter()
        try:
            return self.policy.place(problem)
        finally:
            self.seconds = time.perf_counter() - clock


@dataclass
class Track:
    """One series while it is being made; the placement in force is carried from interval to interval."""

    role: str
    policy: str
    forecast: str
    topology: Topology
    placement: Placement
    watch: Stopwatch
    balancer: Balancer | None = None
    """of those that plan from the windows that were served, as a server does; references have none"""
    scores: list[Scores] = field(default_factory=list)
    replans: list[Replan | None] = field(default_factory=list)

    def observe(self, scene: Scene, window: int) -> None:
        """Let a window that has been served be seen."""
        if self.balancer is not None and not self._kept:
            phases = scene.trace.phases
            self.balancer.observe(
                scene.trace.counts[window],
                steps=scene.steps[window],
                phase=None if phases is None else phases[window],
            )

    def step(self, scene: Scene, past: Past, interval: Interval) -> None:
        """Plan from the past (the oracle: from the interval itself), then score the interval."""
        found: Proposal | None = None
        before = self.placement
        if self.balancer is not None:
            if not self._kept:
                found = self._propose(interval.start)
        elif self.role != FLOOR:
            found = self._refer(scene, past.total()[None] if self.role == PAST else interval.counts)
        if found is not None and found.placement is not None:
            self.placement = found.placement
        scores = score(self.placement, interval, scene, self.topology)
        self.scores.append(scores)
        self.replans.append(self._replan(scene, found, before, interval, scores))

    @property
    def _kept(self) -> bool:
        """Whether the first plan stands, and is kept."""
        return self.role == ONCE and bool(self.scores)

    def _propose(self, start: int) -> Proposal:
        assert self.balancer is not None
        try:
            found = self.balancer.propose()
        except PolicyError as error:
            raise PolicyError(f"at window {start}: {error}") from error
        if found.placement is not None:
            self.balancer.commit(found.placement)
        return found

    def _refer(self, scene: Scene, loads: FloatArray) -> Proposal:
        # The references show what loads are worth, so they plan from nothing: no move holds them back.
        problem = Problem.trusting(loads.copy(), self.topology, seed=scene.seed)
        plan = checked_placement(self.policy, self.watch, ask(self.policy, self.watch, problem), problem)
        return Proposal(
            plan,
            plan,
            moves=int(plan.moves_from(self.placement).sum()),
            imbalance_planned=float(imbalance(served_loads(loads, plan), self.topology.rank_speed).mean()),
        )

    def _replan(
        self, scene: Scene, found: Proposal | None, before: Placement, interval: Interval, scores: Scores
    ) -> Replan | None:
        if found is None or found.plan is None or found.imbalance_planned is None:
            return None
        cost = scene.cost
        return Replan(
            window=interval.start,
            taken=not (self.role == GATED and found.keep),
            in_sample=found.imbalance_planned,
            held_out=float(np.mean([each.mean_imbalance for each in scores.balances])),
            moves=found.moves,
            bytes=None if cost is None else found.moves * cost.expert_bytes,
            move_s=None if cost is None else cost.move_time(found.plan, before, self.topology),
            planning_s=self.watch.seconds,
            predicted_gain_s=found.gain_s,
            trust=found.trust,
        )


def score(
    placement: Placement,
    interval: Interval,
    scene: Scene,
    topology: Topology,
) -> Scores:
    """Serve an interval by a placement, split as it was made for, on ranks of the topology's speeds."""
    counts, speed = interval.counts, topology.rank_speed
    loads = served_loads(counts, placement)
    balances = tuple(balance(window, rank_speed=speed) for window in loads)
    times = None
    if scene.cost is not None:
        times = scene.cost.layer_times(counts, loads, placement, interval.steps).sum(axis=1)
    found = Scores(
        imbalance(loads, speed),
        balances,
        times,
        loads.sum(axis=0),
        _where(placement, interval, scene, topology),
        activated=_activated(placement, interval, scene),
    )
    return found if scene.split == "even" else _with_splits(found, placement, interval, scene.cost)


def _activated(placement: Placement, interval: Interval, scene: Scene) -> Activated | None:
    """Experts that the interval's single batches activate, where these are known."""
    if scene.batches is None:
        return None
    windows = scene.batches[interval.start : interval.start + len(interval.counts)]
    return count_activated(windows.reshape(-1, *windows.shape[2:]), placement)


def _where(
    placement: Placement, interval: Interval, scene: Scene, topology: Topology
) -> dict[str, FloatArray]:
    """Where the interval's tokens go, by the names of `Summary`: ``[I]``, as far as routes or pairs tell."""
    routes, many = scene.routes, len(interval.counts)
    if routes is None:
        return {}
    if isinstance(routes, PairCounts):
        share = together(routes, placement, topology)
        return {
            "pairs_on_one_rank": np.full(many, share.on_rank.mean()),
            "pairs_on_one_node": np.full(many, share.on_node.mean()),
        }
    found = [communication(each, placement, topology) for each in routes[interval.start :][:many]]
    return {
        "ranks_per_token": np.array([each.ranks_per_token.mean() for each in found]),
        "nodes_per_token": np.array([each.nodes_per_token.mean() for each in found]),
    }


def _with_splits(found: Scores, placement: Placement, interval: Interval, cost: CostModel | None) -> Scores:
    """Scores with every window of the interval split in all ways."""
    counts = interval.counts
    splits = tuple(side_by_side(window[None], placement) for window in counts)
    if cost is None:
        return replace(found, splits=splits)
    both = (rank_loads(counts, placement), served_loads(counts, placement, SWEEPS))
    even, swept = (cost.step_times(loads, interval.steps).mean(axis=1).tolist() for loads in both)
    return replace(found, splits=splits, step_s=tuple(zip(even, swept, strict=True)))
