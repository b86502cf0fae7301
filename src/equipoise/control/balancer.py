"""The balancer: from the windows that were served to what should be served next. It decides and moves nothing."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..metrics import imbalance
from ..placement import Placement
from ..plans.plan import ask, check_spending, checked_placement
from ..plans.served import served_loads
from ..policy.protocol import Ability, Policy, can
from ..policy.registry import DEFAULT, find_policy
from ..problem import Held, Problem
from ..topology import Topology
from ..trace import check_loads
from .cost import CostModel
from .forecast import FORECASTS, Past
from .gate import Gate

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Proposal:
    """What to serve from now on, and why."""

    placement: Placement | None
    """what to serve; ``None`` means keep what is served"""
    plan: Placement | None
    """what the policy planned, also where it is not worth its moves; ``None`` where nothing was planned"""
    moves: int = 0
    """fetches from what ranks hold to ``plan``"""
    imbalance_now: float | None = None
    """mean over windows and layers that were planned from, as it is served; ``None`` where that is not legal"""
    imbalance_planned: float | None = None
    """the same under ``plan``"""
    gain_s: float | None = None
    """with a cost model: seconds that ``plan`` saves over the horizon, times ``trust``"""
    cost_s: float | None = None
    """with a cost model: seconds that the moves take"""
    trust: float | None = None
    """with a cost model: the part of their promises that earlier plans kept, 0 to 1"""
    reason: str = ""
    """one line in words"""

    @property
    def keep(self) -> bool:
        """Whether to change nothing."""
        return self.placement is None


@dataclass
class Promise:
    """What a plan promised to save, and what it would have saved in the windows that came."""

    served: Placement
    plan: Placement
    per_window_s: float
    saved_s: list[float] = field(default_factory=list)
    """seconds, one number for each window since"""


class Balancer:
    """When to re-place experts, and how: `observe` each window, `propose` when it is time, `commit` what is served.

    It is deterministic and has no clock: same settings and the same calls, same proposals, on any machine.

    Parameters
    ----------
    topology : the machine
    num_layers, num_experts : MoE layers ``L`` and logical experts ``E`` of each
    policy : a name in `equipoise.policies`, or a policy
    history : windows that a plan is made from
    max_moves : budget of every re-planning, for policies that keep to one: a float is a share of all slots, an
        integer a number of fetches, ``None`` no limit. It does not bind what replaces something that is not legal
    seed : handed to the policy
    cost : with a cost model a `Gate` lets only plans through that pay for their moves
    horizon : windows over which they must; ``history`` unless given
    forecast : a name in `FORECASTS`

    Raises
    ------
    ArgumentError
        if a setting is out of range or a name unknown

    Examples
    --------
    >>> balancer = Balancer(Topology(2, 3), num_layers=1, num_experts=4)
    >>> balancer.observe([[8, 4, 2, 2]])
    >>> proposal = balancer.propose()
    >>> proposal.reason
    'place: nothing is known to be served'
    >>> balancer.commit(proposal.placement)
    >>> balancer.observe([[8, 4, 2, 2]])
    >>> balancer.propose().reason
    'keep: the plan is what is served'
    """

    def __init__(
        self,
        topology: Topology,
        num_layers: int,
        num_experts: int,
        *,
        policy: str | Policy = DEFAULT,
        history: int = 8,
        max_moves: int | float | None = 0.05,
        seed: int = 0,
        cost: CostModel | None = None,
        horizon: int | None = None,
        forecast: str = "windows",
    ) -> None:
        horizon = history if horizon is None else horizon
        numbers = {
            "num_layers": num_layers,
            "num_experts": num_experts,
            "history": history,
            "horizon": horizon,
        }
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
        if forecast not in FORECASTS:
            raise ArgumentError(f"unknown forecast {forecast!r}; known are {', '.join(FORECASTS)}")
        self.num_layers, self.num_experts = int(num_layers), int(num_experts)
        self.history, self.horizon = int(history), int(horizon)
        self.max_moves = getattr(max_moves, "item", lambda: max_moves)()  # plain numbers, for `save`
        self.seed = seed
        self.cost, self.forecast = cost, forecast
        self.name, self.policy = find_policy(policy)
        self._past = Past(self.num_layers, self.num_experts, self.history)
        self._gate = Gate()
        self._placement: Placement | None = None
        self._promise: Promise | None = None
        self._check(topology)
        self._topology = topology
        self.seed = int(seed)

    @property
    def topology(self) -> Topology:
        """The machine that plans are made for."""
        return self._topology

    @property
    def placement(self) -> Placement | None:
        """What was committed last."""
        return self._placement

    @property
    def windows(self) -> int:
        """Windows that a plan would be made from now."""
        return min(self._past.seen, self.history)

    def observe(self, counts: npt.ArrayLike, *, steps: float = 1.0, phase: str | None = None) -> None:
        """Take in the loads of one window; one without any load is passed over.

        Parameters
        ----------
        counts : ``[L, E]``, tokens of each logical expert, added up over all ranks
        steps : forward passes in the window
        phase : for the forecast ``phase-mix``

        Raises
        ------
        ArgumentError
            for another shape, negative or not finite numbers, no steps; nothing is remembered then
        """
        window = self._window(counts)
        if isinstance(steps, bool) or not isinstance(steps, Real) or not 0 < float(steps) < np.inf:
            raise ArgumentError(f"steps must be a positive number, got {steps!r}")
        if phase is None and self.forecast == "phase-mix":
            raise ArgumentError("the forecast phase-mix needs the phase of every window")
        if not window.any():
            return
        self._past.observe(window, float(steps), phase)
        if self._promise is not None:
            one, length = window[None], np.array([float(steps)])
            served, plan = self._promise.served, self._promise.plan
            saved = self._seconds(served, one, length) - self._seconds(plan, one, length)
            self._promise.saved_s.append(float(saved[0]))

    def propose(self, current: Placement | Held | None = None) -> Proposal:
        """Plan from the last windows, and say whether to serve the plan.

        Parameters
        ----------
        current : what ranks hold now; what was committed last unless given. It may have empty slots, lost experts or
            another number of ranks than the topology: a plan is then proposed whatever it costs

        Raises
        ------
        ArgumentError
            if ``current`` has other layers or experts
        PolicyError
            if the policy failed, or its plan is not legal
        """
        self._settle()
        if not self._past.seen:
            return Proposal(None, None, reason="keep: no load has been observed")
        loads = FORECASTS[self.forecast](self._past, self.history)
        current = self._placement if current is None else current
        limited = can(self.policy, Ability.BUDGET)
        problem = self._problem(loads, current, None)
        served = self._legal(problem.held)
        if served is not None and limited:
            problem = self._problem(loads, current, self.max_moves)
        plan = checked_placement(self.name, self.policy, ask(self.name, self.policy, problem), problem)
        check_spending(self.name, plan, problem)
        return self._judge(loads, problem.held, served, plan)

    def commit(self, placement: Placement) -> None:
        """Say what is served now. Raises `ArgumentError` if that does not fit the topology."""
        if not isinstance(placement, Placement):
            raise ArgumentError(f"commit needs an equipoise.Placement, got {type(placement).__name__}")
        topology = self._topology
        wanted = (self.num_layers, self.num_experts, topology.num_ranks, topology.num_slots)
        found = (placement.num_layers, placement.num_experts, placement.num_ranks, placement.num_slots)
        if found != wanted:
            raise ArgumentError(
                f"the placement has (layers, experts, ranks, slots) = {found}, served are {wanted}: "
                "change_topology tells of ranks that were lost or joined"
            )
        self._placement = placement

    def change_topology(self, topology: Topology) -> None:
        """Ranks were lost or joined: plan for another machine from now on; what was observed stays.

        What was committed last stays what ranks hold, ranks keeping their numbers. Where the numbers change, hand
        `propose` a `Held` with the new ones.
        """
        self._check(topology)
        self._topology = topology
        self._promise = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that proposals depend on; at every instant the old file or the whole new one is there."""
        from .saved import save

        save(self, path)

    @classmethod
    def restore(cls, path: str | os.PathLike[str], *, policy: str | Policy | None = None) -> Balancer:
        """A balancer that proposes what the saved one would have.

        Parameters
        ----------
        path : written by `save`
        policy : the one that was saved unless given; needed where that was not made by its name alone

        Raises
        ------
        FormatError
            if the file is damaged or another kind of file
        ArgumentError
            if the policy that was saved is not at hand
        """
        from .saved import restore

        return restore(path, policy)

    def state(self, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """What was observed, committed and promised: arrays are put into ``arrays``, the rest is returned."""
        state: dict[str, Any] = {"past": self._past.state(arrays), "gate": asdict(self._gate)}
        if self._placement is not None:
            arrays["phy2log"], state["num_ranks"] = self._placement.phy2log, self._placement.num_ranks
        if self._promise is not None:
            arrays["served"], arrays["plan"] = self._promise.served.phy2log, self._promise.plan.phy2log
            arrays["saved_s"] = np.array(self._promise.saved_s, dtype=np.float64)
            state["per_window_s"] = self._promise.per_window_s
        return state

    def resume(self, state: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take up a state of a balancer with the same settings."""
        self._past.resume(state["past"], arrays)
        self._gate = Gate(**state["gate"])
        if "phy2log" in arrays:
            self._placement = Placement(
                arrays["phy2log"], state["num_ranks"], self.num_experts, split=self._split
            )
        if "per_window_s" in state:
            served, plan = (
                Placement(arrays[name], self._topology.num_ranks, self.num_experts, split=self._split)
                for name in ("served", "plan")
            )
            self._promise = Promise(served, plan, state["per_window_s"], arrays["saved_s"].tolist())

    def _check(self, topology: Topology) -> None:
        """Whether plans for this topology, with this budget and seed, can be asked for."""
        shape = (1, self.num_layers, self.num_experts)
        problem = Problem.trusting(np.ones(shape), topology, seed=self.seed)
        held = Held(
            np.zeros((self.num_layers, topology.num_slots), np.int64), topology.num_ranks, self.num_experts
        )
        Problem.trusting(problem.loads, topology, current=held, max_moves=self.max_moves)
        if self.cost is not None:
            self.cost.check(topology)

    def _window(self, counts: npt.ArrayLike) -> FloatArray:
        window = np.array(check_loads(counts, "counts", (2,)), dtype=np.float64, order="C")
        if window.shape != (self.num_layers, self.num_experts):
            raise ArgumentError(
                f"counts must be [layers, experts] = {[self.num_layers, self.num_experts]}, got {list(window.shape)}"
            )
        return window

    def _problem(
        self, loads: FloatArray, current: Placement | Held | None, max_moves: int | float | None
    ) -> Problem:
        # A copy: the policy may keep what it is handed, or spoil it.
        return Problem.trusting(
            loads.copy(), self._topology, current=current, max_moves=max_moves, seed=self.seed
        )

    @property
    def _split(self) -> str:
        """How batches are split where this balancer's plans are served."""
        return "batch" if can(self.policy, Ability.BATCH) else "even"

    def _legal(self, held: Held | None) -> Placement | None:
        """What ranks hold, as a placement; ``None`` where slots are empty or experts lost."""
        if held is None or not held.complete:
            return None
        return Placement(held.phy2log, held.num_ranks, held.num_experts, split=self._split)

    def _judge(
        self, loads: FloatArray, held: Held | None, served: Placement | None, plan: Placement
    ) -> Proposal:
        """Whether a plan is worth its moves."""
        planned = float(imbalance(served_loads(loads, plan)).mean())
        if held is None:
            reason = "place: nothing is known to be served"
            return Proposal(plan, plan, int(plan.holds.sum()), imbalance_planned=planned, reason=reason)
        moves = int(plan.moves_from(held).sum())
        cost_s = None if self.cost is None else self.cost.move_time(plan, held, self._topology)
        what = f"{moves:,} of {plan.phy2log.size:,} slots"
        if served is None:
            reason = f"move {what}: {_missing(held)}"
            return Proposal(plan, plan, moves, imbalance_planned=planned, cost_s=cost_s, reason=reason)
        now = float(imbalance(served_loads(loads, served)).mean())
        better = f"imbalance {now:.4f} -> {planned:.4f}"
        judged = Proposal(plan, plan, moves, now, planned, cost_s=cost_s, reason=f"move {what}: {better}")
        if np.array_equal(plan.phy2log, served.phy2log):
            judged = replace(judged, placement=None, reason="keep: the plan is what is served")
        return judged if cost_s is None else self._weigh(judged, cost_s, loads, served, plan)

    def _weigh(
        self, judged: Proposal, cost_s: float, loads: FloatArray, served: Placement, plan: Placement
    ) -> Proposal:
        """Let the gate choose between what is served and a plan, and remember what the plan promised."""
        promise = Promise(served, plan, self._saving(loads, served, plan))
        trust = self._gate.trust
        gain_s = promise.per_window_s * self.horizon
        taken = self._gate.takes(gain_s, cost_s)
        self._promise = promise
        reason = judged.reason
        if not judged.keep:
            weighed = f"saves {trust * gain_s:.3g} s over {self.horizon} windows for {cost_s:.3g} s of moving"
            reason = f"{reason}, {weighed}" if taken else f"keep: to {reason}, {weighed}"
        return replace(
            judged, placement=plan if taken else None, gain_s=trust * gain_s, trust=trust, reason=reason
        )

    def _saving(self, loads: FloatArray, served: Placement, plan: Placement) -> float:
        """Seconds that a plan saves in a window like those it was made from, at the volume of the history."""
        history = self._past.last(self.history)
        volume, offered = history.sum() / len(history), loads.sum() / len(loads)
        typical = loads * (volume / offered if offered > 0 else 0.0)
        steps = np.full(len(loads), self._past.last_steps(self.history).mean())
        return float((self._seconds(served, typical, steps) - self._seconds(plan, typical, steps)).mean())

    def _seconds(self, placement: Placement, counts: FloatArray, steps: FloatArray) -> FloatArray:
        """Estimated seconds ``[W]`` of windows ``[W, L, E]`` under a placement."""
        assert self.cost is not None
        loads = served_loads(counts, placement)
        return np.asarray(self.cost.layer_times(counts, loads, placement, steps).sum(axis=1))

    def _settle(self) -> None:
        """Tell the gate what came of the last promise, as far as windows came."""
        promise, self._promise = self._promise, None
        if promise is not None and promise.saved_s:
            windows = len(promise.saved_s)
            self._gate.learn(promise.per_window_s * windows, float(np.sum(promise.saved_s)))


def _missing(held: Held) -> str:
    lost, empty = int(held.lost.sum()), int((held.phy2log < 0).sum())
    parts = [f"{empty} slots are empty"] if empty else []
    return ", ".join([*parts, f"{lost} experts of a layer are lost"] if lost else parts)
