"""One series while it is being made: propose, decide, score, interval by interval."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..control.cost import CostModel
from ..control.forecast import Past
from ..control.gate import Gate
from ..errors import PolicyError
from ..metrics import Balance, balance, imbalance, rank_loads
from ..placement import Placement
from ..plans.plan import ask, checked_placement
from ..policy.protocol import Ability, Policy, can
from ..problem import Problem
from ..topology import Topology
from ..trace import LoadTrace
from .result import CEILING, FLOOR, GATED, ONCE, PAST, Replan

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """What all series of a replay share."""

    trace: LoadTrace
    steps: FloatArray
    """``[T]``, steps of each window"""
    history: int
    horizon: int
    max_moves: int | float | None
    seed: int
    cost: CostModel | None


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


@dataclass(frozen=True)
class Proposal:
    """A plan that has been made, but not yet taken."""

    placement: Placement
    in_sample: float
    moves: int
    move_s: float | None
    planning_s: float


@dataclass
class Track:
    """One series while it is being made; the placement in force is carried from interval to interval."""

    role: str
    policy: str
    forecast: str
    topology: Topology
    placement: Placement
    planner: Policy
    gate: Gate = field(default_factory=Gate)
    scores: list[Scores] = field(default_factory=list)
    replans: list[Replan | None] = field(default_factory=list)

    def step(self, scene: Scene, past: Past, forecast: FloatArray | None, interval: Interval) -> None:
        """Plan from the past (the oracle: from the interval itself), then score the interval."""
        if self.role == FLOOR or (self.role == ONCE and self.scores):
            self.scores.append(score(self.placement, interval.counts, interval.steps, scene.cost))
            self.replans.append(None)
            return
        if self.role == CEILING:
            handed = interval.counts
        elif self.role == PAST:
            handed = past.total()[None]
        else:
            assert forecast is not None
            handed = forecast
        proposal = self._propose(scene, handed, interval.start)
        if self.role == GATED:
            self._decide(scene, past, handed, proposal, interval)
        else:
            self.placement = proposal.placement
            scores = score(self.placement, interval.counts, interval.steps, scene.cost)
            self._record(scene, proposal, scores, interval.start)

    def _propose(self, scene: Scene, handed: FloatArray, start: int) -> Proposal:
        # The references show what loads are worth, so they plan from nothing: no move holds them back.
        current = None if self.role in (PAST, CEILING) else self.placement
        limited = current is not None and can(self.planner, Ability.BUDGET)
        budget = scene.max_moves if limited else None
        seen = handed.copy()  # the policy may keep what it is handed, or spoil it
        clock = time.perf_counter()
        problem = Problem.trusting(seen, self.topology, current=current, max_moves=budget, seed=scene.seed)
        phy2log = ask(self.policy, self.planner, problem)
        planning_s = time.perf_counter() - clock
        try:
            placement = checked_placement(self.policy, phy2log, scene.trace, self.topology)
        except PolicyError as error:
            raise PolicyError(f"at window {start}: {error}") from error
        move_s = None
        if scene.cost is not None:
            move_s = scene.cost.move_time(placement, self.placement, self.topology)
        return Proposal(
            placement,
            in_sample=float(imbalance(rank_loads(handed, placement)).mean()),
            moves=int(placement.moves_from(self.placement).sum()),
            move_s=move_s,
            planning_s=planning_s,
        )

    def _decide(
        self, scene: Scene, past: Past, handed: FloatArray, proposal: Proposal, interval: Interval
    ) -> None:
        """Let the gate choose, score its choice, and tell it what the proposal would have brought."""
        promise = self._promise(scene, past, handed, proposal)
        trust = self.gate.trust
        assert proposal.move_s is not None
        taken = self.gate.takes(promise * scene.horizon, proposal.move_s)
        before = score(self.placement, interval.counts, interval.steps, scene.cost)
        after = score(proposal.placement, interval.counts, interval.steps, scene.cost)
        assert before.layer_time_s is not None
        assert after.layer_time_s is not None
        kept = float((before.layer_time_s - after.layer_time_s).sum())
        self.gate.learn(promise * len(interval.counts), kept)
        if taken:
            self.placement = proposal.placement
        gain = promise * scene.horizon * trust
        self._record(scene, proposal, after if taken else before, interval.start, taken, gain, trust)

    def _promise(self, scene: Scene, past: Past, handed: FloatArray, proposal: Proposal) -> float:
        """Seconds that the proposal saves in a window like the forecast, at the volume of the history."""
        history = past.last(scene.history)
        volume, offered = history.sum() / len(history), handed.sum() / len(handed)
        typical = handed * (volume / offered if offered > 0 else 0.0)
        steps = np.full(len(handed), scene.steps[past.seen - len(history) : past.seen].mean())
        now = score(self.placement, typical, steps, scene.cost).layer_time_s
        then = score(proposal.placement, typical, steps, scene.cost).layer_time_s
        assert now is not None
        assert then is not None
        return float((now - then).mean())

    def _record(
        self,
        scene: Scene,
        proposal: Proposal,
        scores: Scores,
        start: int,
        taken: bool = True,
        predicted_gain_s: float | None = None,
        trust: float | None = None,
    ) -> None:
        self.scores.append(scores)
        self.replans.append(
            Replan(
                window=start,
                taken=taken,
                in_sample=proposal.in_sample,
                held_out=float(np.mean([each.mean_imbalance for each in scores.balances])),
                moves=proposal.moves,
                bytes=None if scene.cost is None else proposal.moves * scene.cost.expert_bytes,
                move_s=proposal.move_s,
                planning_s=proposal.planning_s,
                predicted_gain_s=predicted_gain_s,
                trust=trust,
            )
        )


def score(placement: Placement, counts: FloatArray, steps: FloatArray, cost: CostModel | None) -> Scores:
    """Serve ``counts [I, L, E]`` by a placement."""
    loads = rank_loads(counts, placement)
    balances = tuple(balance(window) for window in loads)
    times = None
    if cost is not None:
        times = cost.layer_times(counts, loads, placement, steps).sum(axis=1)
    return Scores(imbalance(loads), balances, times, loads.sum(axis=0))
