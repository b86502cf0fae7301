"""Held-out replay: walk a trace in time, plan from the windows seen, score on the windows that follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, EquipoiseError, PolicyError
from ..metrics import balance, imbalance, rank_loads
from ..placement import Placement, contiguous_placement
from ..policies import find_policy
from ..policies.base import Policy, honours_max_moves
from ..topology import Topology
from ..trace import LoadTrace
from .cost import CostModel
from .forecast import FORECASTS, Past, forecast_error, noise_floor
from .gate import Gate
from .result import (
    CEILING,
    FLOOR,
    GATED,
    ONCE,
    PAST,
    POLICY,
    ForecastError,
    Replan,
    ReplayResult,
    ReplaySettings,
    Series,
)
from .summary import series_of

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass
class Scores:
    """What one placement made of one interval of ``I`` windows."""

    imbalance: FloatArray
    """``[I, L]``"""
    aggregates: FloatArray
    """``[I, 4]``: mean imbalance, worst layer, mean of ratios, ratio of sums"""
    layer_time_s: FloatArray | None
    """``[I]``"""
    rank_loads: FloatArray
    """``[L, P]``, over the whole interval"""


@dataclass
class Track:
    """One series while it is being made."""

    role: str
    policy: str
    forecast: str
    topology: Topology
    placement: Placement
    planner: Policy | None = None
    gate: Gate = field(default_factory=Gate)
    scores: list[Scores] = field(default_factory=list)
    replans: list[Replan | None] = field(default_factory=list)


@dataclass
class Proposal:
    """A plan that has been made and paid for, but not yet taken."""

    placement: Placement
    in_sample: float
    moves: int
    move_s: float | None
    planning_s: float


class Replay:
    """A replay that can be stopped: `run` it, then ask for the `result`, even of a run that was interrupted.

    Parameters
    ----------
    trace : the loads, ``T`` windows of ``L`` layers and ``E`` experts
    topologies : the machines to place the experts on, side by side
    policies : names or policies
    interval : windows between two re-plannings
    history : windows that a plan is made from; the first plan is made when there are as many
    forecasts : names of `FORECASTS`; every policy plans from each of them
    reference : name or policy behind ``all-past`` and ``oracle``; the first policy unless given
    max_moves : budget of every re-planning (float: share of all slots; integer: fetches), for the policies
        that honour one
    seed : handed to every policy
    gate : also follow every policy with a `Gate` before it, and with its first plan kept
    horizon : windows over which the gate lets a move pay for itself; the interval unless given
    cost : needed for times and bytes and for the gate

    Raises
    ------
    ArgumentError
        if a setting is out of range, a name unknown, or the trace too short
    """

    def __init__(
        self,
        trace: LoadTrace,
        topologies: Sequence[Topology],
        policies: Sequence[str | Policy],
        *,
        interval: int = 8,
        history: int = 8,
        forecasts: Sequence[str] = ("windows",),
        reference: str | Policy | None = None,
        max_moves: int | float | None = None,
        seed: int = 0,
        gate: bool = False,
        horizon: int | None = None,
        cost: CostModel | None = None,
    ) -> None:
        horizon = interval if horizon is None else horizon
        _check(trace, topologies, policies, forecasts, interval=interval, history=history, horizon=horizon)
        self._trace = trace
        self._cost = cost
        self._max_moves = max_moves
        self._policies = [find_policy(policy) for policy in policies]
        names = [name for name, _ in self._policies]
        if len(set(names)) < len(names):
            raise ArgumentError(f"policies must have different names, got {', '.join(names)}")
        self._reference = self._policies[0] if reference is None else find_policy(reference)
        if max_moves is not None and not any(honours_max_moves(policy) for _, policy in self._policies):
            raise ArgumentError(
                f"max_moves is honoured by none of the policies {', '.join(names)}; add robust or leave it out"
            )
        if gate and cost is None:
            raise ArgumentError(
                "gate needs a cost model to weigh moves against gains: name the model (model='deepseek-v3'; "
                "on the command line --model)"
            )
        for topology in topologies:
            topology.check_experts(trace.num_experts)
            if cost is not None:
                cost.check(topology)
        assert trace.steps is not None
        self._steps = (trace.steps[:, 1] - trace.steps[:, 0]).astype(np.float64)
        self.settings = ReplaySettings(
            source=trace.source,
            num_windows=trace.num_windows,
            num_experts=trace.num_experts,
            layers=trace.layers,
            steps_per_window=float(self._steps.mean()),
            interval=interval,
            history=history,
            policies=tuple(names),
            forecasts=tuple(forecasts),
            topologies=tuple(topologies),
            reference=self._reference[0],
            max_moves=max_moves,
            seed=seed,
            gate=gate,
            horizon=horizon,
            cost=None if cost is None else cost.as_dict(),
        )
        self._starts = list(range(history, trace.num_windows, interval))
        self._names = [*forecasts, *(name for name in FORECASTS if name not in forecasts)]
        if trace.phases is None and "phase-mix" not in forecasts:
            self._names.remove("phase-mix")
        self._tracks = [track for topology in topologies for track in self._tracks_on(topology)]
        self._errors: list[dict[str, float]] = []
        self._floors: list[float | None] = []
        self._done = 0

    @property
    def intervals_done(self) -> int:
        """Intervals for which every series has been scored."""
        return self._done

    def run(self, progress: Progress | None = None) -> ReplayResult:
        """Walk the whole trace. After a KeyboardInterrupt `result` holds what was scored so far."""
        self._warm_up()
        past = Past(self._trace)
        total = len(self._starts) * len(self._tracks)
        for number, start in enumerate(self._starts):
            past.advance(start)
            end = min(start + self.settings.interval, self._trace.num_windows)
            loads = {name: FORECASTS[name](past, self.settings.history) for name in self._names}
            actual = np.array(self._trace.counts[start:end], dtype=np.float64)
            for index, track in enumerate(self._tracks):
                self._step(track, past, loads, start, actual)
                if progress is not None:
                    progress(number * len(self._tracks) + index + 1, total)
            coming = actual.sum(axis=0)
            self._errors.append({name: forecast_error(loads[name], coming) for name in self._names})
            self._floors.append(noise_floor(coming))
            self._done = number + 1
        return self.result()

    def result(self) -> ReplayResult:
        """What has been scored so far; raises `EquipoiseError` if that is nothing."""
        if not self._done:
            raise EquipoiseError("the replay was stopped before its first interval was scored")
        windows = self._windows()
        return ReplayResult(
            settings=self.settings,
            series=tuple(self._series(windows)),
            forecasts=tuple(self._forecast_errors()),
            complete=self._done == len(self._starts),
        )

    def _tracks_on(self, topology: Topology) -> Iterator[Track]:
        trace = self._trace
        rows = contiguous_placement(
            trace.num_layers, trace.num_experts, topology.num_ranks, topology.num_slots
        )
        start = self._placement(rows.phy2log, topology)
        yield Track(FLOOR, "contiguous", "", topology, start)
        roles = (POLICY, GATED, ONCE) if self.settings.gate else (POLICY,)
        for name, policy in self._policies:
            for forecast in self.settings.forecasts:
                for role in roles:
                    yield Track(role, name, forecast, topology, start, policy)
        for role in (PAST, CEILING):
            yield Track(role, self._reference[0], "", topology, start, self._reference[1])

    def _placement(self, phy2log: npt.NDArray[np.int64], topology: Topology) -> Placement:
        trace = self._trace
        return Placement(
            phy2log,
            topology.num_ranks,
            trace.num_experts,
            layers=trace.layers,
            num_model_layers=trace.num_model_layers,
        )

    def _warm_up(self) -> None:
        """Let every planner compile its kernels, so that its first planning time is like the others."""
        loads = np.array(self._trace.counts[: self.settings.history, :1], dtype=np.float64)
        topology = self.settings.topologies[0]
        for name, policy in [*self._policies, self._reference]:
            _place(name, policy, loads.copy(), topology, None, None, self.settings.seed, 0)

    def _step(
        self, track: Track, past: Past, loads: dict[str, FloatArray], start: int, actual: FloatArray
    ) -> None:
        """Plan at ``start`` and score the interval that follows."""
        steps = self._steps[start : start + len(actual)]
        if track.planner is None or (track.role == ONCE and start > self._starts[0]):
            track.scores.append(self._score(track.placement, actual, steps))
            track.replans.append(None)
            return
        if track.role == CEILING:
            handed = actual.copy()
        elif track.role == PAST:
            handed = past.total()[None]
        else:
            handed = loads[track.forecast].copy()
        proposal = self._propose(track, handed, start)
        before, promise, trust = track.placement, None, None
        taken = True
        if track.role == GATED:
            promise, trust = self._promise(track, proposal, handed, past), track.gate.trust
            taken = track.gate.takes(promise * self.settings.horizon, proposal.move_s or 0.0)
        track.placement = proposal.placement if taken else before
        scores = self._score(track.placement, actual, steps)
        if promise is not None and scores.layer_time_s is not None:
            other = self._score(before if taken else proposal.placement, actual, steps).layer_time_s
            assert other is not None
            kept = float((other - scores.layer_time_s).sum()) * (1 if taken else -1)
            track.gate.learn(promise * len(actual), kept)
        track.scores.append(scores)
        track.replans.append(self._replan(track, proposal, scores, start, taken, promise, trust))

    def _propose(self, track: Track, handed: FloatArray, start: int) -> Proposal:
        assert track.planner is not None
        budget = self._max_moves if honours_max_moves(track.planner) else None
        seen = handed.copy()  # the policy may keep or spoil what it is handed
        clock = time.perf_counter()
        phy2log = _place(
            track.policy,
            track.planner,
            seen,
            track.topology,
            track.placement,
            budget if track.role in (POLICY, GATED, ONCE) else None,
            self.settings.seed,
            start,
        )
        planning_s = time.perf_counter() - clock
        try:
            placement = self._placement(phy2log, track.topology)
        except EquipoiseError as error:
            raise PolicyError(f"policy {track.policy!r} planned for window {start}: {error}") from None
        expected = (self._trace.num_layers, track.topology.num_slots)
        if placement.phy2log.shape != expected:
            raise PolicyError(
                f"policy {track.policy!r} planned for window {start}: phy2log must be [layers, slots] = "
                f"{list(expected)}, got {list(placement.phy2log.shape)}"
            )
        return Proposal(
            placement,
            in_sample=float(imbalance(rank_loads(handed, placement)).mean()),
            moves=int(placement.moves_from(track.placement).sum()),
            move_s=None
            if self._cost is None
            else self._cost.move_time(placement, track.placement, track.topology),
            planning_s=planning_s,
        )

    def _promise(self, track: Track, proposal: Proposal, handed: FloatArray, past: Past) -> float:
        """Seconds that the proposal saves in a window like the forecast, at the volume of the history."""
        history = past.last(self.settings.history)
        volume = history.sum() / len(history)
        offered = handed.sum() / len(handed)
        typical = handed * (volume / offered if offered > 0 else 0.0)
        steps = np.full(len(handed), self._steps[past.seen - len(history) : past.seen].mean())
        now, then = (
            self._score(placement, typical, steps).layer_time_s
            for placement in (track.placement, proposal.placement)
        )
        assert now is not None
        assert then is not None
        return float((now - then).mean())

    def _score(self, placement: Placement, actual: FloatArray, steps: FloatArray) -> Scores:
        loads = rank_loads(actual, placement)
        each = [balance(window) for window in loads]
        times = None
        if self._cost is not None:
            times = self._cost.layer_times(actual, loads, placement, steps).sum(axis=1)
        return Scores(
            imbalance=imbalance(loads),
            aggregates=np.array(
                [[b.mean_imbalance, b.worst_layer, b.mean_of_ratios, b.ratio_of_sums] for b in each]
            ),
            layer_time_s=times,
            rank_loads=loads.sum(axis=0),
        )

    def _replan(
        self,
        track: Track,
        proposal: Proposal,
        scores: Scores,
        start: int,
        taken: bool,
        promise: float | None,
        trust: float | None,
    ) -> Replan:
        gain = None
        if promise is not None and trust is not None:
            gain = promise * self.settings.horizon * trust
        return Replan(
            window=start,
            taken=taken,
            in_sample=proposal.in_sample,
            held_out=float(scores.aggregates[:, 0].mean()),
            moves=proposal.moves,
            bytes=None if self._cost is None else proposal.moves * self._cost.expert_bytes,
            move_s=proposal.move_s,
            planning_s=proposal.planning_s,
            predicted_gain_s=gain,
            trust=trust,
        )

    def _windows(self) -> npt.NDArray[np.int64]:
        last = self._starts[self._done - 1] + self.settings.interval
        return np.arange(self._starts[0], min(last, self._trace.num_windows), dtype=np.int64)

    def _series(self, windows: npt.NDArray[np.int64]) -> Iterator[Series]:
        floor_time: FloatArray | None = None
        for track in self._tracks:
            scores = track.scores[: self._done]  # an interrupt may leave some tracks an interval ahead
            times = None
            if self._cost is not None:
                times = np.concatenate([s.layer_time_s for s in scores if s.layer_time_s is not None])
            if track.role == FLOOR:
                floor_time = times
            yield series_of(
                role=track.role,
                policy=track.policy,
                forecast=track.forecast,
                topology=track.topology,
                windows=windows,
                imbalances=np.concatenate([s.imbalance for s in scores]),
                aggregates=np.concatenate([s.aggregates for s in scores]),
                layer_time_s=times,
                floor_time_s=floor_time,
                replans=tuple(replan for replan in track.replans[: self._done] if replan is not None),
                last_rank_loads=scores[-1].rank_loads,
            )

    def _forecast_errors(self) -> Iterator[ForecastError]:
        floors: FloatArray | None = None
        known = [floor for floor in self._floors[: self._done] if floor is not None]
        if len(known) == self._done:
            floors = np.array(known)
        for name in self._names:
            errors = np.array([found[name] for found in self._errors[: self._done]])
            yield ForecastError(
                forecast=name,
                windows=np.array(self._starts[: self._done], dtype=np.int64),
                errors=errors,
                floors=floors,
                mean_error=float(errors.mean()),
                mean_floor=None if floors is None else float(floors.mean()),
            )


def replay(
    trace: LoadTrace,
    topologies: Topology | Sequence[Topology],
    policies: Sequence[str | Policy],
    *,
    interval: int = 8,
    history: int = 8,
    forecasts: Sequence[str] = ("windows",),
    reference: str | Policy | None = None,
    max_moves: int | float | None = None,
    seed: int = 0,
    gate: bool = False,
    horizon: int | None = None,
    cost: CostModel | None = None,
    progress: Progress | None = None,
) -> ReplayResult:
    """Score policies on windows that their plans have not seen; `Replay` describes the arguments.

    Examples
    --------
    >>> from equipoise import LoadTrace, Topology
    >>> from equipoise.replay import replay
    >>> trace = LoadTrace([[[8, 4, 2, 2]]] * 6)
    >>> found = replay(trace, Topology(2, 2), ["greedy"], interval=2, history=2)
    >>> [(series.label, series.summary.mean_imbalance) for series in found.series][:2]
    [('do-nothing', 1.5), ('greedy', 1.25)]
    """
    several = [topologies] if isinstance(topologies, Topology) else topologies
    return Replay(
        trace,
        several,
        policies,
        interval=interval,
        history=history,
        forecasts=forecasts,
        reference=reference,
        max_moves=max_moves,
        seed=seed,
        gate=gate,
        horizon=horizon,
        cost=cost,
    ).run(progress)


def _check(
    trace: LoadTrace,
    topologies: Sequence[Topology],
    policies: Sequence[str | Policy],
    forecasts: Sequence[str],
    **counts: int,
) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ArgumentError(f"{name} must be a positive number of windows, got {value!r}")
    for name, given in (("topologies", topologies), ("policies", policies), ("forecasts", forecasts)):
        if isinstance(given, str) or not len(given):
            raise ArgumentError(f"{name} must be a sequence of at least one, got {given!r}")
        if name != "policies" and len(set(given)) < len(given):
            raise ArgumentError(f"{name} names something twice: {given!r}")
    for forecast in forecasts:
        if forecast not in FORECASTS:
            raise ArgumentError(f"unknown forecast {forecast!r}; known are {', '.join(FORECASTS)}")
    if trace.phases is None and "phase-mix" in forecasts:
        raise ArgumentError(
            "the forecast phase-mix needs a trace whose windows are tagged with phases (prefill, decode); "
            "use last, sum, ewma or windows"
        )
    if trace.num_windows <= counts["history"]:
        raise ArgumentError(
            f"the trace has {trace.num_windows} windows, but a plan is made from history={counts['history']} "
            "and scored on later ones: use a longer trace, shorter windows or a shorter history"
        )


def _place(
    name: str,
    policy: Policy,
    loads: FloatArray,
    topology: Topology,
    current: Placement | None,
    max_moves: int | float | None,
    seed: int,
    window: int,
) -> npt.NDArray[np.int64]:
    """Ask a policy; whatever goes wrong inside it becomes one `PolicyError`."""
    try:
        return policy.place(loads, topology, current=current, max_moves=max_moves, seed=seed)
    except EquipoiseError:
        raise
    except Exception as error:
        raise PolicyError(
            f"policy {name!r} failed when planning for window {window}: {type(error).__name__}: {error}"
        ) from error
